"""From a table to a predictor: fit every law, choose one, calibrate its intervals, find the sweet spots."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from sweetspot import __version__, gpus
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.heldout import FEWEST_FOR_FOLDS, SCHEMES, Calibration, HeldOut, calibrate, hold_out
from sweetspot.laws import LAWS, Law, per_token, sweet_spot
from sweetspot.outliers import screen
from sweetspot.schema import CELL, GROUP, group_name
from sweetspot.shared import fit_shared
from sweetspot.solve import Array, Mask, Points, Skipped, Solution, as_json, design, solve, units
from sweetspot.table import Table

SCHEMA_VERSION = 2
# Two laws are equally good where their held-out errors differ by less than the standard error of the difference;
# the second number (percentage points) is less than what any measurement repeats to.
_STANDARD_ERRORS, _AS_GOOD_PERCENT = 1.0, 0.1
_LENGTHS_OF_A_MINIMUM = 3  # between two output lengths no cell shows a minimum, whatever the law says
_DRAWS = 500  # of the coefficients, for the confidence set of a sweet spot
_SEED = 0
_PLATEAU = 0.01  # energies this near to the lowest are called the same


Schemes = Mapping[str, list[HeldOut]]


def fit_table(table: Table, architectures: Mapping[str, Architecture] | None = None) -> dict[str, Any]:
    """Fit every law to every group of a table: the content of predictor.json (docs: its schema).

    With `architectures` (of the models that have one, by name) also the law across models, for each GPU and engine.
    Raises SweetspotError when no group has cells enough for any law.
    """
    screened = screen(table.frame)
    groups = [
        fit_group(frame, _of_group(table.frame, frame), _of_group(screened.outliers, frame))
        for frame in screened.cells.partition_by(GROUP, maintain_order=True)
    ]
    if not any(group["law"] for group in groups):
        reasons = [f"{group_name(group[name] for name in GROUP)}: {group['chosen_because']}" for group in groups]
        raise SweetspotError("\n".join(reasons or ["no valid row: every row is marked invalid"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "sweetspot-predictor",
        "created_by": f"sweetspot {__version__}",
        "groups": groups,
        "shared": fit_shared(screened.cells, architectures or {}),
    }


def fit_group(frame: pl.DataFrame, rows: pl.DataFrame, outliers: pl.DataFrame) -> dict[str, Any]:
    """Fit every law to the cells of one group, choose one, and find the sweet spots.

    `rows`: all rows of the group as measured; `outliers`: those that were set aside (see `outliers.screen`).
    """
    identity = frame.row(0, named=True)
    points = Points.of(frame)
    held_out = {name: hold_out_all(law, points) for name, law in LAWS.items() if law.terms}
    laws = {name: _fits(law, points, frame, held_out.get(name)) for name, law in LAWS.items()}
    chosen, because = choose(laws, held_out, points)
    for_all = {name: fits for name, fits in laws.items() if LAWS[name].has_batch_terms}
    any_batch, _ = choose(for_all, held_out, points)
    valid = rows.filter(pl.col("valid"))
    return {
        **{name: identity[name] for name in (*GROUP, "source")},
        "cells": frame.height,
        "rows": valid.height,
        "batches": [int(batch) for batch in np.unique(points.batch)],
        "measured_range": {
            "input_tokens": _range(points.n),
            "output_tokens": _range(points.m),
            "batch": _range(points.batch),
            "total_tokens": _range(points.n + points.m),
            "tokens_in_flight": _range(points.in_wave * (points.n + points.m)),
            "requests_in_flight": [float(points.in_wave.min()), float(points.in_wave.max())],
        },
        "kv_capacity": _kv_capacity(frame),
        "experts": _experts(identity),
        "idle_w": frame["idle_w"].mean(),
        "power_cap_w": board.tdp_w if (board := gpus.find(identity["gpu"])) else None,
        "sensor_gain": valid["uncertainty_gain"].max(),
        "outliers": outliers.select(*CELL, "repetition", "energy_j", "outlier").to_dicts(),
        "law": chosen,
        "chosen_because": because,
        "law_any_batch": any_batch,
        "laws": laws,
        "sweet_spots": _sweet_spots(LAWS[chosen], points, laws[chosen]) if chosen else [],
    }


def hold_out_all(law: Law, points: Points) -> dict[str, list[HeldOut]]:
    """The folds of every scheme that holds anything out."""
    return {scheme: hold_out(law, points, scheme) for scheme in SCHEMES if scheme != "in-sample"}


def choose(
    laws: Mapping[str, list[dict[str, Any]]], held_out: Mapping[str, Schemes], points: Points
) -> tuple[str | None, str]:
    """Name of the law to predict with and one sentence why; None where no law could be fitted.

    Of the laws that cover the most cells, those stay that are as good as the best under every scheme that can judge
    them (paired errors of the same cells, within the noise of their difference). Of these, one set of
    coefficients for every batch goes before a set per batch, and then the fewest coefficients win.
    """
    covered = {name: _covered(fits, points) for name, fits in laws.items()}
    most = max(int(mask.sum()) for mask in covered.values())
    if not most:
        asked = [fits for name, fits in laws.items() if LAWS[name].terms and not LAWS[name].needs_experts]
        reasons = {fit["skipped"] for fits in asked for fit in fits}
        return None, "no law can be fitted: " + "; ".join(sorted(reasons))
    candidates = [name for name, mask in covered.items() if mask.sum() == most]
    size = {name: sum(len(fit.get("terms", ())) for fit in laws[name]) for name in candidates}
    errors = {scheme: _errors(candidates, held_out, scheme, points) for scheme in SCHEMES if scheme != "in-sample"}
    judged = [name for name in candidates if name in errors["5-fold"]]
    if not judged:
        name = min(candidates, key=lambda name: size[name])
        return name, (
            f"fewest coefficients ({size[name]}): too few cells to hold any out and compare, so its error is not known"
        )
    worse = {name: _shortfall(name, errors) for name in judged}
    good = [name for name in judged if worse[name] <= 0] or [min(judged, key=lambda name: worse[name])]
    several = len(np.unique(points.batch)) > 1
    name = min(
        good, key=lambda name: (several and not LAWS[name].has_batch_terms, size[name], errors["5-fold"][name].mean())
    )
    shown = ", ".join(
        f"{_scheme_name(scheme, points)} {of[name].mean():.3g} % (lowest: {best} {of[best].mean():.3g} %)"
        if (best := min(of, key=lambda other: of[other].mean())) != name
        else f"{_scheme_name(scheme, points)} {of[name].mean():.3g} % (lowest)"
        for scheme, of in errors.items()
        if name in of
    )
    return name, f"held-out MAPE {shown}; {size[name]} coefficients, the fewest of the laws that are as good"


def _errors(names: Sequence[str], held_out: Mapping[str, Schemes], scheme: str, points: Points) -> dict[str, Array]:
    """APE in percent of the held-out cells that every law with a say under this scheme can predict, in one order."""
    everything = {}
    for name in names:
        if name in held_out and (folds := held_out[name][scheme]):
            everything[name] = np.concatenate(
                [100 * np.abs(fold.predicted / points.target - 1)[fold.mask] for fold in folds]
            )
    known = {name: int(np.isfinite(error).sum()) for name, error in everything.items()}
    having = {name: error for name, error in everything.items() if known[name]}
    if scheme == "5-fold":  # what cannot predict a part of the cells that others can does not compete
        having = {name: error for name, error in having.items() if known[name] == max(known.values())}
    common = np.all([np.isfinite(error) for error in having.values()], axis=0) if having else np.array([])
    return {name: error[common] for name, error in having.items()} if common.any() else {}


def _shortfall(name: str, errors: Mapping[str, Mapping[str, Array]]) -> float:
    """By how much a law is worse than the best, in the worst scheme and in percentage points beyond the noise; <= 0:
    as good as the best in all."""
    worst = -np.inf
    for of in errors.values():
        if name in of:
            best = min(of, key=lambda other: of[other].mean())
            difference = of[name] - of[best]
            noise = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
            worst = max(worst, float(difference.mean() - _STANDARD_ERRORS * noise - _AS_GOOD_PERCENT))
    return worst


def _scheme_name(scheme: str, points: Points) -> str:
    return "leave-one-cell-out" if scheme == "5-fold" and len(points) < FEWEST_FOR_FOLDS else scheme


def _fits(law: Law, points: Points, frame: pl.DataFrame, held_out: Schemes | None) -> list[dict[str, Any]]:
    if held_out is None:
        return [{"law": law.name, "batch": None, "skipped": law.no_terms}]
    calibration = calibrate(points, held_out)
    times = Points.of(frame, "duration_s")
    return [
        {"law": law.name, "batch": batch} | _fit(law, points.take(unit), times.take(unit), calibration)
        for batch, unit in units(law, points)
    ]


def _fit(law: Law, points: Points, times: Points, calibration: Calibration) -> dict[str, Any]:
    solution = solve(law, points)
    if isinstance(solution, Skipped):
        return {"skipped": solution.reason}
    return as_json(solution, points, design(law, points)) | {
        "interval_scale": calibration.scale,
        "relative_error_per_octave": dict(calibration.per_octave),
        "duration": _duration(law, times),
    }


def _duration(law: Law, times: Points) -> dict[str, Any] | None:
    """The same law for the time of a batch run; None where the table has too few durations."""
    timed = times.take(np.isfinite(times.target))
    solution = solve(law, timed) if len(timed) else Skipped("no durations")
    if isinstance(solution, Skipped):
        return None
    content = as_json(solution, timed, design(law, timed))
    return {
        "terms": {name: term["value"] for name, term in content["terms"].items()},
        **{name: content[name] for name in ("relative_residual_sd", "t_quantile_95", "in_sample_mape_percent")},
    }


def _covered(fits: Sequence[dict[str, Any]], points: Points) -> Mask:
    covered = np.zeros(len(points), dtype=bool)
    for fit in fits:
        if "skipped" not in fit:
            covered |= np.ones(len(points), dtype=bool) if fit["batch"] is None else points.batch == fit["batch"]
    return covered


def _of_group(frame: pl.DataFrame, group: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.all_horizontal(pl.col(name) == group[name][0] for name in GROUP))


def _range(values: Array) -> list[int]:
    return [int(values.min()), int(values.max())]


def _experts(cell: Mapping[str, Any]) -> dict[str, int] | None:
    """E and k of a mixture of experts; None for a dense model."""
    if cell["experts"] is None or cell["experts_per_token"] is None:
        return None
    return {"experts": cell["experts"], "per_token": cell["experts_per_token"]}


def _kv_capacity(frame: pl.DataFrame) -> list[dict[str, int]]:
    """How many requests of n + m tokens ran at once where the KV cache was full; empty where it never was."""
    full = (
        frame.filter(pl.col("waves") > 1)
        .with_columns(
            total_tokens=pl.col("input_tokens") + pl.col("output_tokens"),
            requests=pl.col("in_flight").fill_null((pl.col("batch") / pl.col("waves")).floor()).cast(pl.Int64),
        )
        .group_by("total_tokens")
        .agg(pl.col("requests").max())
        .sort("total_tokens")
    )
    return full.to_dicts()


def _sweet_spots(law: Law, points: Points, fits: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each batch and each measured input length of it."""
    spots = []
    for (_, unit), fit in zip(units(law, points), fits, strict=True):
        solution = solve(law, points.take(unit))
        if isinstance(solution, Skipped):
            continue
        lengths = np.unique(points.m[unit])
        draws = _draws(solution, fit["interval_scale"])
        for batch in np.unique(points.batch[unit]):
            of_batch = points.take(unit & (points.batch == batch))
            place = (batch, float(of_batch.active.max()) if law.needs_experts else 1.0)
            for n in np.unique(of_batch.n):
                known = len(lengths) >= _LENGTHS_OF_A_MINIMUM and _knows_spot(solution, n, batch)
                spots.append(
                    {"batch": int(batch), "input_tokens": int(n)}
                    | (_spot(solution, draws, n, place, of_batch.m) if known else _NO_SPOT)
                )
    return spots


_NO_SPOT = dict.fromkeys(
    (
        "output_tokens",
        "output_tokens_low",
        "output_tokens_high",
        "plateau_low",
        "plateau_high",
        "energy_per_output_token_j",
    )
) | {"status": "not identified"}


def _spot(solution: Solution, draws: Array, n: float, place: tuple[float, float], measured: Array) -> dict[str, Any]:
    """The sweet spot with its 95 % confidence set, and the plateau around it. `place`: batch, active experts' share.

    An end of the confidence set is null where the coefficients that the cells allow give no minimum on that side.
    """
    law, (batch, _) = solution.law, place
    values = dict(zip((term.name for term in law.terms), solution.values, strict=True))
    spot = sweet_spot(law, values, n, batch)
    if spot is None:
        return _NO_SPOT | {"status": "no interior minimum"}
    powers = np.array([term.powers(n, batch) for term in law.terms])
    inverse, linear, square = (draws @ powers).T
    with np.errstate(divide="ignore", invalid="ignore"):
        # The cubic's root by a few Newton steps from the quadratic's or the cubic's own, whichever is less.
        drawn = np.minimum(np.sqrt(inverse / linear), np.cbrt(inverse / (2 * square)))
        for _ in range(20 if square.any() else 0):
            drawn -= (2 * square * drawn**3 + linear * drawn**2 - inverse) / (
                6 * square * drawn**2 + 2 * linear * drawn
            )
    drawn = np.where(inverse <= 0, 0.0, np.where(np.isfinite(drawn), drawn, np.inf))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    replies = np.geomspace(max(1.0, spot / 64), spot * 64, 2000)
    features = np.stack([np.broadcast_to(term.value(n, replies, *place), replies.shape) for term in law.terms], axis=1)
    energies = features @ solution.values
    lowest = per_token(law, values, n, spot, *place)
    flat = replies[energies <= (1 + _PLATEAU) * lowest]
    inside = measured.min() <= spot <= measured.max()
    return {
        "output_tokens": spot,
        "output_tokens_low": float(low) if low > 0 else None,
        "output_tokens_high": float(high) if np.isfinite(high) else None,
        "plateau_low": float(flat.min(initial=spot)),
        "plateau_high": float(flat.max(initial=spot)),
        "energy_per_output_token_j": lowest,
        "status": "interior" if inside else "outside measured range",
    }


def _draws(solution: Solution, scale: float) -> Array:
    """Coefficients that the cells allow: draws × terms, normal with their covariance, within the bounds."""
    random = np.random.default_rng(_SEED)
    sd = np.sqrt(np.diag(solution.covariance))
    units_ = np.where(sd > 0, sd, 1.0)  # coefficients differ by orders of magnitude
    spread, directions = np.linalg.eigh(solution.covariance / np.outer(units_, units_))
    normal = random.standard_normal((_DRAWS, len(spread))) * np.sqrt(np.maximum(spread, 0)) * scale
    lower = np.array([-np.inf if term.lower is None else term.lower for term in solution.law.terms])
    return np.asarray(np.maximum(solution.values + normal @ directions.T * units_, np.minimum(lower, solution.values)))


def _knows_spot(solution: Solution, n: float, batch: float) -> bool:
    """Whether the cells tell what grows with the reply from what falls with it, at this input length and batch."""
    parts = np.array([term.powers(n, batch) for term in solution.law.terms]).T
    return bool(solution.determines(parts[parts.any(axis=1)]).all())
