"""Turns a table into a predictor: fits every law, chooses one, calibrates its intervals, finds the sweet spots."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from sweetspot import __version__, gpus
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.fit.across_models import fit_across_models
from sweetspot.fit.choice import Schemes, choose, hold_out_all
from sweetspot.fit.heldout import Calibration, calibrate
from sweetspot.fit.latency import latency_fits
from sweetspot.fit.outliers import screen
from sweetspot.fit.solve import Array, Points, Skipped, as_json, design, number, power_of_size, solve, t_quantile, units
from sweetspot.fit.sweet_spots import sweet_spots
from sweetspot.parallelism import Parallelism
from sweetspot.predict import latency
from sweetspot.predict.laws import LAWS, Law
from sweetspot.predict.predictor import KIND, SCHEMA_VERSION
from sweetspot.table.read import Table
from sweetspot.table.schema import CELL, GROUP, group_name, rows_of
from sweetspot.vocabulary import UNSPECIFIED


def fit_table(table: Table, architectures: Mapping[str, Architecture] | None = None) -> dict[str, Any]:
    """Fit every law to every group of a table; returns the content of predictor.json (docs: its schema).

    With `architectures`, by model name, also fits the law across models, for each GPU and engine. Raises SweetspotError
    if no group has enough cells for any law and all groups together have too few for the law across models.
    """
    screened = screen(table.frame)
    groups = [
        fit_group(
            frame,
            rows_of(table.frame, group := frame.row(0, named=True)),
            rows_of(screened.outliers, group),
            (architectures or {}).get(group["model"]),
        )
        for frame in screened.cells.partition_by(GROUP, maintain_order=True)
    ]
    across, _ = fit_across_models(screened.cells, architectures or {})
    if not any(group["law"] for group in groups) and all(entry["reason"] for entry in across):
        reasons = [f"{group_name(group[name] for name in GROUP)}: {group['chosen_because']}" for group in groups]
        raise SweetspotError("\n".join(reasons or ["no valid row: every row is marked invalid"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created_by": f"sweetspot {__version__}",
        "laws": {law.name: law.as_dict() for law in LAWS.values() if law.terms},
        "latency_laws": {law.name: law.as_dict() for law in latency.LAWS.values()},
        "groups": groups,
        "not_fitted": not_fitted(table.frame),
        "across_models": across,
        "table_warnings": table.doubts,
    }


def _extremes(frame: pl.DataFrame, sign: int) -> list[list[float]]:
    """The measured cells that no other cell exceeds in batch, input and output at once (sign -1: falls below)."""
    cells = frame.select(CELL).unique(maintain_order=True).to_numpy()
    least = sign * cells
    exceeded = [bool(((least >= cell).all(axis=1) & (least > cell).any(axis=1)).any()) for cell in least]
    return [[number(value) for value in cell] for cell, beaten in zip(cells, exceeded, strict=True) if not beaten]


def not_fitted(frame: pl.DataFrame) -> dict[str, int]:
    """Number of invalid rows of a table by reasons ("": none given)."""
    if "reasons" not in frame.columns:
        return {"": count} if (count := frame.filter(~pl.col("valid")).height) else {}
    invalid = frame.filter(~pl.col("valid")).with_columns(pl.col("reasons").fill_null(""))
    return dict(invalid.group_by("reasons", maintain_order=True).len().iter_rows())


def fit_group(
    frame: pl.DataFrame, rows: pl.DataFrame, outliers: pl.DataFrame, architecture: Architecture | None = None
) -> dict[str, Any]:
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
            ". The table records no waves, but its energies show that requests queue: the KV cache holds about "
            f"{tokens[1]:,} tokens ({tokens[0]:,} to {tokens[2]:,}), estimated from all cells, including held-out ones"
        )
    valid, board = rows.filter(pl.col("valid")), gpus.find(identity["gpu"])
    return {
        **{name: identity[name] for name in (*GROUP, "source")},
        "cells": frame.height,
        "rows": valid.height,
        "batches": [number(batch) for batch in np.unique(points.batch)],
        "measured_range": {
            "input_tokens": _range(points.n),
            "output_tokens": _range(points.m),
            "batch": [number(points.batch.min()), number(points.batch.max())],
            "total_tokens": _range(points.n + points.m),
            "tokens_in_flight": _range(points.in_wave * (points.n + points.m)),
            "requests_in_flight": np.unique(points.in_wave).tolist(),
        },
        "measured_corners": {"largest": _extremes(frame, 1), "smallest": _extremes(frame, -1)},
        "kv_capacity": capacity,
        "experts": _experts(identity),
        "limit": _limit(architecture, identity, int((points.n + points.m).max())),
        "idle_w": frame["idle_w"].mean(),
        "power_cap_w": Parallelism.parse(identity["parallelism"]).gpus * board.tdp_w if board else None,
        "sensor_gain": valid["uncertainty_gain"].max(),
        "repetition": _repetition(frame),
        "outliers": outliers.select(*CELL, "repetition", "energy_j", "outlier").to_dicts(),
        "law": chosen,
        "chosen_because": because,
        "law_any_batch": any_batch,
        "latency": latency_fits(frame),
        "laws": laws,
        "sweet_spots": sweet_spots(LAWS[chosen], points, laws[chosen], capacity) if chosen else [],
    }


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
    return as_json(solution, points, design(law, points)) | calibration.as_dict() | {"duration": _duration(law, times)}


def _duration(law: Law, times: Points) -> dict[str, Any] | None:
    """The same law for the duration of a batch run; None if the table has too few durations."""
    timed = times.take(np.isfinite(times.target))
    solution = solve(law, timed) if len(timed) else Skipped("no durations")
    if isinstance(solution, Skipped):
        return None
    content = as_json(solution, timed, design(law, timed))
    return {
        "terms": {name: term["value"] for name, term in content["terms"].items()},
        **{name: content[name] for name in (*SCATTER, "t_quantile_95", "in_sample_mape_percent")},
    }


SCATTER = ("relative_residual_sd", "residual_size", "residual_power")


def _range(values: Array) -> list[int]:
    return [math.floor(values.min()), math.ceil(values.max())]


def _repetition(frame: pl.DataFrame) -> dict[str, float] | None:
    """How single measurements of a cell scatter about its mean; None if no cell was repeated.

    As the scatter of cells about a law: a relative standard deviation at a size of run, and its power of the size.
    """
    again = frame.filter(pl.col("energy_sd_j") > 0)
    freedom = (again["repetitions"] - 1).cast(pl.Float64).to_numpy()
    if not freedom.sum():
        return None
    sizes = again["energy_j"].log().to_numpy()
    size = float((freedom * sizes).sum() / freedom.sum())
    squares = (again["energy_sd_j"] / again["energy_j"]).to_numpy() ** 2
    power = power_of_size(squares, sizes - size, freedom)
    variance = float((freedom * squares * np.exp(2 * power * (sizes - size))).sum() / freedom.sum())
    return {
        "relative_residual_sd": float(np.sqrt(variance)),
        "residual_size": float(np.exp(size)),
        "residual_power": power,
        "t_quantile_95": t_quantile(float(freedom.sum())),
    }


def _limit(architecture: Architecture | None, group: Mapping[str, Any], measured: int) -> dict[str, Any] | None:
    """The longest request that can run (see `Memory.limit`); None if unknown, or if a longer one did run."""
    if architecture is None:
        return None
    limits, board, spread = [architecture.limit], gpus.find(group["gpu"]), Parallelism.parse(group["parallelism"])
    if board and group["precision"] != UNSPECIFIED:
        limits.append(spread.memory(architecture, board, group["precision"]).limit(spread.on(board)))
    possible = [limit for limit in limits if limit["tokens"] >= measured]
    return min(possible, key=lambda limit: limit["tokens"], default=None)


def _experts(cell: Mapping[str, Any]) -> dict[str, int] | None:
    """E and k of a mixture of experts; None for a dense model."""
    if cell["experts"] is None or cell["experts_per_token"] is None:
        return None
    return {"experts": cell["experts"], "per_token": cell["experts_per_token"]}


def _kv_capacity(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """How many requests of n + m tokens ran at once when the KV cache was full, and its capacity in tokens.

    `tokens`: [least, likely, exclusive bound], from the table's cells of this length or, if the table records neither
    waves nor requests in flight, estimated from all cells. Empty if the cache was never full.
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
