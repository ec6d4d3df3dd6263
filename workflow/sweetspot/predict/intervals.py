"""How far a prediction may be off: the parts of its interval, relative to it. Standard library only."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from sweetspot.predict.laws import Law
from sweetspot.predict.prediction import Interval
from sweetspot.vocabulary import CONFIDENCE

NORMAL_95 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Half the width of an interval at the confidence level, in standard deviations of a normal distribution."""

Place = tuple[float, float, float, float]
"""Input tokens, output tokens, requests in flight, and the share of the experts that a token activates."""


def of_law(law: Law, fit: Mapping[str, Any], energy: float, tokens: float, *place: float) -> float:
    """Relative half-width for the scatter of cells about the law and for its coefficients, scaled by held-out cells.

    `energy` is per output token, of a batch run of so many output `tokens`; scatter falls with the size of a run.
    """
    features = [term.value(*place) for term in law.terms if term.name in fit["terms"]]
    rows = zip(features, fit["covariance"], strict=True)
    coefficients = sum(x * y * entry for x, row in rows for y, entry in zip(features, row, strict=True))
    variance = scatter(fit, energy * tokens) ** 2 + max(coefficients, 0.0) / energy**2
    return float(fit["t_quantile_95"] * fit["interval_scale"]) * math.sqrt(variance)


def scatter(fit: Mapping[str, Any], size: float) -> float:
    """Relative standard deviation of cells about the law, for a batch run of `size` (J or s)."""
    return float(fit["relative_residual_sd"] * (fit["residual_size"] / size) ** fit["residual_power"])


def of_distance(
    group: Mapping[str, Any], fit: Mapping[str, Any], n: int, m: int, batch: float, requests: float
) -> float:
    """Relative half-width for the distance to the measured cells, from the error per octave of held-out cells."""
    measured = group["measured_range"]
    lengths = max(_octaves(n, *measured["input_tokens"]), _octaves(m, *measured["output_tokens"]))
    beyond = {
        "lengths": lengths + gap(group, n, m, batch),
        "batch": min(abs(math.log2(requests / known)) for known in measured["requests_in_flight"]),
    }
    parts = [fit["relative_error_per_octave"][axis] * octaves for axis, octaves in beyond.items()]
    return NORMAL_95 * math.hypot(*parts)


def gap(group: Mapping[str, Any], n: int, m: int, batch: float) -> float:
    """How far, in octaves, a request lies from the measured cells if they are no full grid; 0 if less than one octave.

    A grid has a cell that is at least as large on every axis, and one that is at least as small. Otherwise the distance
    is that of the closest outermost cell, on its worst axis. Values outside the ranges are clamped to them.
    """
    measured = group["measured_range"]
    asked = {"batch": batch, "input_tokens": n, "output_tokens": m}
    place = [min(max(value, measured[name][0]), measured[name][1]) for name, value in asked.items()]
    gaps = [0.0]
    for sign, corners in ((1, "largest"), (-1, "smallest")):
        cells = group["measured_corners"][corners]
        lacks = [max(sign * math.log2(value / own) for value, own in zip(place, cell, strict=True)) for cell in cells]
        gaps.append(min(lacks, default=0.0))
    return max(gaps) if max(gaps) > 1 else 0.0


def _octaves(value: float, low: float, high: float) -> float:
    return max(0.0, math.log2(low / value), math.log2(value / high))


def around(value: float, half: float) -> Interval:
    """The interval with relative half-width `half` around a value; neither end is negative."""
    return Interval(value, max(value * (1 - half), 0.0), value * (1 + half))
