"""From a table to a predictor: fit every law, choose one, calibrate its intervals, find the sweet spots."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from sweetspot import __version__, gpus
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.heldout import FEWEST_FOR_FOLDS, SCHEMES, Calibration, HeldOut, calibrate, hold_out
from sweetspot.laws import LAWS, Law
from sweetspot.outliers import screen
from sweetspot.schema import CELL, GROUP, group_name
from sweetspot.shared import fit_shared
from sweetspot.solve import Array, Mask, Points, Skipped, as_json, design, solve, units
from sweetspot.spots import sweet_spots
from sweetspot.table import Table

SCHEMA_VERSION = 2
# Two laws are equally good where their held-out errors differ by less than the standard error of the difference;
# the second number (percentage points) is less than what any measurement repeats to.
_STANDARD_ERRORS, _AS_GOOD_PERCENT = 1.0, 0.1


Schemes = Mapping[str, list[HeldOut]]


def fit_table(table: Table, architectures: Mapping[str, Architecture] | None = None) -> dict[str, Any]:
    """Fit every law to every group of a table: the content of predictor.json (docs: its schema).

    With `architectures` (of the models that have one, by name) also the law across models, for each GPU and engine.
    Raises SweetspotError when no group has cells enough for any law, nor all together for one across models.
    """
    screened = screen(table.frame)
    groups = [
        fit_group(frame, _of_group(table.frame, frame), _of_group(screened.outliers, frame))
        for frame in screened.cells.partition_by(GROUP, maintain_order=True)
    ]
    across = fit_shared(screened.cells, architectures or {})
    if not any(group["law"] for group in groups) and all(entry["reason"] for entry in across):
        reasons = [f"{group_name(group[name] for name in GROUP)}: {group['chosen_because']}" for group in groups]
        raise SweetspotError("\n".join(reasons or ["no valid row: every row is marked invalid"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "sweetspot-predictor",
        "created_by": f"sweetspot {__version__}",
        "groups": groups,
        "not_fitted": not_fitted(table.frame),
        "shared": across,
    }


def _extremes(frame: pl.DataFrame, sign: int) -> list[list[int]]:
    """The measured cells that no other exceeds in batch, input and output at once (sign -1: falls below)."""
    cells = frame.select(CELL).unique(maintain_order=True).to_numpy()
    least = sign * cells
    exceeded = [bool(((least >= cell).all(axis=1) & (least > cell).any(axis=1)).any()) for cell in least]
    return [[int(value) for value in cell] for cell, beaten in zip(cells, exceeded, strict=True) if not beaten]


def not_fitted(frame: pl.DataFrame) -> dict[str, int]:
    """How many invalid rows of a table have which reasons ("": none given)."""
    if "reasons" not in frame.columns:
        return {"": count} if (count := frame.filter(~pl.col("valid")).height) else {}
    invalid = frame.filter(~pl.col("valid")).with_columns(pl.col("reasons").fill_null(""))
    return dict(invalid.group_by("reasons", maintain_order=True).len().iter_rows())


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
    capacity = _kv_capacity(frame)
    any_batch, _ = choose(for_all, held_out, points)
    if chosen and (tokens := frame["kv_tokens"].to_list()[0]):
        because += (
            ". The table names no waves, but its energies show that requests queue: the KV cache is taken to hold "
            f"about {tokens[1]:,} tokens ({tokens[0]:,} to {tokens[2]:,}), estimated from all cells, held-out ones too"
        )
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
        "measured_corners": {"largest": _extremes(frame, 1), "smallest": _extremes(frame, -1)},
        "kv_capacity": capacity,
        "experts": _experts(identity),
        "idle_w": frame["idle_w"].mean(),
        "power_cap_w": board.tdp_w if (board := gpus.find(identity["gpu"])) else None,
        "sensor_gain": valid["uncertainty_gain"].max(),
        "outliers": outliers.select(*CELL, "repetition", "energy_j", "outlier").to_dicts(),
        "law": chosen,
        "chosen_because": because,
        "law_any_batch": any_batch,
        "laws": laws,
        "sweet_spots": sweet_spots(LAWS[chosen], points, laws[chosen], capacity) if chosen else [],
    }


def hold_out_all(law: Law, points: Points) -> dict[str, list[HeldOut]]:
    """The folds of every scheme that holds anything out."""
    return {scheme: hold_out(law, points, scheme) for scheme in SCHEMES if scheme != "in-sample"}


def choose(
    laws: Mapping[str, list[dict[str, Any]]], held_out: Mapping[str, Schemes], points: Points
) -> tuple[str | None, str]:
    """Name of the law to predict with and one sentence why; None where no law could be fitted.

    Of the laws that cover the most cells, and of which 5-fold judges as many as of any, one scheme after another drops
    those that are worse than the best of them (paired errors of the cells that both predict, beyond the noise of their
    difference). So a law that a scheme cannot judge is not dropped there, but cannot push out one that it judges. Of
    those left, one set of coefficients for every batch goes before a set per batch, and then the fewest coefficients.
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
    left = judged
    for of in errors.values():
        left = _as_good(left, of)
    several = len(np.unique(points.batch)) > 1
    fold_errors = {name: float(np.nanmean(error)) for name, error in errors["5-fold"].items()}
    name = min(left, key=lambda name: (several and not LAWS[name].has_batch_terms, size[name], fold_errors[name]))
    shown = ", ".join(
        f"{_scheme_name(scheme, points)} {_shown(name, of, judged, several)}"
        for scheme, of in errors.items()
        if name in of
    )
    rivals = "laws for every batch" if several and LAWS[name].has_batch_terms else "laws"
    return name, f"held-out MAPE {shown}; {size[name]} coefficients, the fewest of the {rivals} that are as good"


def _errors(names: Sequence[str], held_out: Mapping[str, Schemes], scheme: str, points: Points) -> dict[str, Array]:
    """APE in percent of the held-out cells, in one order, by every law with a say under this scheme; NaN: not known."""
    everything = {}
    for name in names:
        if name in held_out and (folds := held_out[name][scheme]):
            everything[name] = np.concatenate(
                [100 * np.abs(fold.predicted / points.target - 1)[fold.mask] for fold in folds]
            )
    having = {name: error for name, error in everything.items() if _known(error)}
    if scheme == "5-fold":  # what cannot predict a part of the cells that others can does not compete
        most = max(map(_known, having.values()), default=0)
        having = {name: error for name, error in having.items() if _known(error) == most}
    return having


def _known(error: Array) -> int:
    return int(np.isfinite(error).sum())


def _as_good(names: Sequence[str], errors: Mapping[str, Array]) -> list[str]:
    """Those of `names` that are as good as the best of them that this scheme judges, or that it does not judge."""
    judged = sorted((name for name in names if name in errors), key=lambda name: -_known(errors[name]))
    best = next(iter(judged), "")
    for name in judged[1:]:
        shared = _shared_difference(errors[name], errors[best])
        best = name if len(shared) and shared.mean() < 0 else best
    return [name for name in names if name not in errors or not _worse(errors[name], errors[best])]


def _shared_difference(error: Array, other: Array) -> Array:
    """By how much one law errs more than another, over the cells that both predict."""
    difference = error - other
    return difference[np.isfinite(difference)]


def _worse(error: Array, best: Array) -> bool:
    difference = _shared_difference(error, best)
    if len(difference) < 2:
        return False
    noise = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(difference.mean() > _STANDARD_ERRORS * noise + _AS_GOOD_PERCENT)


def _shown(name: str, errors: Mapping[str, Array], judged: Sequence[str], several: bool) -> str:
    """The error of a law under a scheme and the lowest, as validation has them, and over which cells if not all."""
    most = max(_known(errors[law]) for law in judged if law in errors)

    def said(law: str) -> str:
        part = f" over {_known(errors[law])} of {most} cells" if _known(errors[law]) < most else ""
        return f"{np.nanmean(errors[law]):.3g} %{part}"

    best = min((law for law in judged if law in errors), key=lambda law: np.nanmean(errors[law]))
    if best == name:
        return f"{said(name)} (lowest)"
    alone = ", fitted to each batch alone," if several and not LAWS[best].has_batch_terms else ""
    both = np.isfinite(errors[name]) & np.isfinite(errors[best])
    same = ""
    if both.any() and both.sum() < max(_known(errors[name]), _known(errors[best])):
        means = " and ".join(f"{errors[law][both].mean():.3g}" for law in (name, best))
        same = f"; over the {both.sum()} that both predict {means} %"
    return f"{said(name)} (lowest: {best}{alone} {said(best)}{same})"


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


def _kv_capacity(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """How many requests of n + m tokens ran at once where the KV cache was full, and what it then holds in tokens.

    `tokens`: [least, likely, below which it is], from the table's cells of this length or, where the table says neither
    waves nor requests in flight, as estimated from all cells. Empty where the cache never was full.
    """
    batch, waves = pl.col("batch"), pl.col("waves")
    full = (
        frame.filter(waves > 1)
        .with_columns(
            total_tokens=pl.col("input_tokens") + pl.col("output_tokens"),
            requests=pl.col("in_flight").fill_null((batch / waves).ceil()).cast(pl.Int64),
            too_many=(pl.col("in_flight") + 1).fill_null((batch / (waves - 1)).ceil().clip(upper_bound=batch)),
        )
        .group_by("total_tokens")
        .agg(pl.col("requests").max(), pl.col("too_many").min().cast(pl.Int64))
        .sort("total_tokens")
    )
    entries, estimated = [], frame["kv_tokens"].to_list()[0]
    for total, least, too_many in full.iter_rows():
        below = max(too_many, least + 1)
        held = estimated or [least * total, (least + below) / 2 * total, below * total]
        entries.append({"total_tokens": total, "requests": least, "tokens": held})
    return entries
