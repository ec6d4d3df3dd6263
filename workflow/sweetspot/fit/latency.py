"""Fits the latency laws to the cells of a group, and judges them on held-out cells as the energy laws are."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from sweetspot.fit.choice import hold_out_all
from sweetspot.fit.heldout import HeldOut, calibrate
from sweetspot.fit.solve import Points, Solution, as_json, design, solve
from sweetspot.predict.latency import PASS_TOKENS, law_of, per_law
from sweetspot.vocabulary import LATENCIES

_CLEARLY = 0.9  # passes are assumed only if they lower the scatter at least by this factor


def latency_fits(frame: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The fits of one group's cells (see `cell_means`), by name of the latency; without those that lack cells."""
    found = {}
    pass_tokens = _pass_tokens(frame)
    for name in LATENCIES:
        points, law = _points(frame, name), law_of(name, pass_tokens)
        solution = solve(law, points) if len(points) and _spans(points, Points.of(frame)) else None
        if not isinstance(solution, Solution):
            continue
        held_out = hold_out_all(law, points)
        found[name] = as_json(solution, points, design(law, points)) | {
            "law": law.name,
            "pass_tokens": getattr(law, "pass_tokens", None),
            "share": getattr(law, "share", None),
            **calibrate(points, held_out).as_dict(),
            "held_out_mape_percent": {scheme: _error(folds, points) for scheme, folds in held_out.items()},
        }
    return found


def _points(frame: pl.DataFrame, name: str) -> Points:
    """The cells that have this latency, as the laws see it."""
    points = Points.of(frame)
    target = frame[name].to_numpy() / per_law(name, points.m, points.in_wave)
    return replace(points, target=target).take(np.isfinite(target) & (target > 0))


def _spans(points: Points, everything: Points) -> bool:
    """Whether the cells that have a latency reach as far in batch and prompt as all cells, whose range is stated."""
    return all(
        min(own) == min(whole) and max(own) == max(whole)
        for own, whole in ((points.batch, everything.batch), (points.n, everything.n))
    )


def _pass_tokens(frame: pl.DataFrame) -> int | None:
    """The prompt tokens per prefill pass that explain the mean time to first token best; None for a single pass.

    Without that mean, the first other time to first token that the cells have.
    """
    having = {name: points for name in LATENCIES if name.startswith("ttft") and len(points := _points(frame, name))}
    name = next(iter(having), "")
    best, least = None, np.inf
    for tokens in PASS_TOKENS if name else ():
        solution = solve(law_of(name, tokens), having[name])
        if isinstance(solution, Solution) and solution.relative_sd < _CLEARLY * least:
            best, least = tokens, solution.relative_sd
    return best


def _error(folds: list[HeldOut], points: Points) -> float | None:
    """Mean absolute relative error of the held-out cells that were predicted, in percent; None if none was."""
    errors = [np.abs(fold.predicted / points.target - 1)[fold.known] for fold in folds]
    everything = np.concatenate(errors) if errors else np.array([])
    return float(100 * everything.mean()) if len(everything) else None
