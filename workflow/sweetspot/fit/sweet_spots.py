"""Finds the sweet spots of a fitted law, with a confidence set for each.

`predict.sweet_spots` finds the sweet spot itself, here as everywhere. This module adds what needs the fit: whether the
cells identify it, and which other replies the uncertainty of the coefficients leaves possible.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sweetspot.fit.solve import Array, Points, Skipped, Solution, number, solve, units
from sweetspot.predict import sweet_spots as search
from sweetspot.predict.laws import FORMS, Law
from sweetspot.predict.predictor import waves

_LENGTHS_OF_A_MINIMUM = 3  # two output lengths show no minimum, whatever the law
_APART = 0.9  # if ranks of prompts and replies correlate more, only the law's form separates their costs
_WIDE = 1.25  # a plateau is wide if it ends at this many times its beginning
_REACH, _REPLIES = 64, 961  # the confidence set is searched up to this factor away, over this many replies


def sweet_spots(
    law: Law, points: Points, fits: Sequence[Mapping[str, Any]], capacity: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One entry for each batch and each input length measured at it.

    `fits` are those of the law, `capacity` is its group's `kv_capacity`, both as in predictor.json. An entry has the
    fields of `SweetSpot` and the 95 % confidence set, output_tokens_low and output_tokens_high; an end is None if the
    cells allow that there is no minimum on that side.
    """
    spots = []
    measured = float(points.m.min()), float(points.m.max())
    for (_, unit), fit in zip(units(law, points), fits, strict=True):
        solution = solve(law, points.take(unit))
        if isinstance(solution, Skipped):
            continue
        shown = _replies_vary(points.n[unit], points.m[unit])
        values = {name: term["value"] for name, term in fit["terms"].items()}
        for batch in np.unique(points.batch[unit]):
            of_batch = points.take(unit & (points.batch == batch))
            chosen = float(of_batch.chosen.max()) if law.needs_experts else 1.0
            for n in np.unique(of_batch.n):
                waves_of = _waves_of(capacity, int(n), float(batch))
                spot = search.SweetSpot("not identified")
                if shown and _identifies_spot(solution):
                    spot = search.sweet_spot(law, values, float(n), float(batch), measured, waves_of, chosen)
                scale = fit["interval_scale"]
                low, high = _confidence_set(solution, scale, n, batch, chosen, spot, waves_of, measured)
                if spot.output_tokens is not None:  # nothing finer than the step of the measured replies is known
                    replies = np.unique(of_batch.m[of_batch.n == n])
                    low = low and min(low, max(replies[replies <= spot.output_tokens], default=low))
                    high = high and max(high, min(replies[replies >= spot.output_tokens], default=high))
                ends = {"output_tokens_low": low and float(low), "output_tokens_high": high and float(high)}
                spots.append({"batch": number(batch), "input_tokens": int(n), **spot.as_dict(), **ends})
    return spots


def _waves_of(capacity: Sequence[Mapping[str, Any]], n: int, batch: float) -> Callable[[int], int] | None:
    return (lambda m: waves(capacity, n + m, batch)) if capacity else None


def plateau(spot: Mapping[str, Any]) -> str:
    """ " (a plateau from A to B)" if B is at least 1.25 times A, else nothing."""
    low, high = spot["plateau_low"], spot["plateau_high"]
    return f" (a plateau from {low:,.0f} to {high:,.0f})" if high >= _WIDE * low else ""


def _confidence_set(
    solution: Solution,
    scale: float,
    n: float,
    batch: float,
    chosen: float,
    spot: search.SweetSpot,
    waves_of: Callable[[int], int] | None,
    measured: tuple[float, float],
) -> tuple[float | None, float | None]:
    """The ends of the replies that may need the least energy: those whose energy is not clearly above the least.

    A difference is clear beyond its 95 % interval, from the coefficients and from the law's misfit in two cells.
    """
    if spot.output_tokens is None:
        return None, None
    inside = search.steps(*measured) if waves_of else []
    together = np.array([batch / waves_of(m) for m in inside]) if waves_of else np.array([])
    one_wave = not len(together) or together.min() == batch
    if one_wave:
        replies = np.geomspace(spot.output_tokens / _REACH, spot.output_tokens * _REACH, _REPLIES)
    else:
        replies = np.array(inside, dtype=float)
    features = _features(solution.law, n, replies, batch if one_wave else together, chosen)
    energies = features @ solution.values
    least = int(energies.argmin())
    difference = features - features[least]
    variance = np.einsum("ij,jk,ik->i", difference, solution.covariance, difference)
    variance = np.maximum(variance, 0) + 2 * (solution.relative_sd * energies[least]) ** 2
    possible = np.flatnonzero(energies - energies[least] <= solution.quantile * scale * np.sqrt(variance))
    low, high = int(possible[0]), int(possible[-1])
    if one_wave:  # at an end of the search: no minimum on that side
        return (float(replies[low]) if low > 0 else None), (float(replies[high]) if high < len(replies) - 1 else None)
    # widened by the step of the search
    return float(replies[max(low - 1, 0)]), float(replies[min(high + 1, len(replies) - 1)])


def _features(law: Law, n: float, replies: Array, batch: Array | float, chosen: float) -> Array:
    """replies × terms."""
    return np.stack([np.broadcast_to(t.value(n, replies, batch, chosen), replies.shape) for t in law.terms], axis=1)


def _replies_vary(prompts: Array, replies: Array) -> bool:
    """Whether the cells separate the cost of a reply from the cost of its prompt, whatever the law.

    They do not if longer prompts always come with longer replies, or always with shorter ones (for example, one sum).
    """
    ranks = [np.unique(lengths, return_inverse=True)[1].astype(float) for lengths in (prompts, replies)]
    if ranks[1].max() + 1 < _LENGTHS_OF_A_MINIMUM:
        return False
    return ranks[0].max() == 0 or bool(abs(np.corrcoef(ranks[0], ranks[1])[0, 1]) <= _APART)


def _identifies_spot(solution: Solution) -> bool:
    """Whether the cells, and not the prior, say what grows with the reply."""
    grows = [t.saturates_at is None and any(b > 0 for _, _, b in FORMS[t.form].parts) for t in solution.law.terms]
    return not solution.from_prior[grows].any()
