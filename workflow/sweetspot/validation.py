"""How well each law predicts: in-sample, and on cells, lengths and batches that its fit has not seen."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sweetspot import gpus
from sweetspot.fit import Array, Mask, Points, Skipped, design, folds, predict_held_out, solve, units
from sweetspot.journal import write_atomically
from sweetspot.laws import LAWS, Law
from sweetspot.table import CELL, GROUP, Table, cells, group_name, write_parquet

SCHEMES = {
    "in-sample": "nothing",
    "5-fold": "a part of the cells in turn",
    "leave-one-length-out": "each input length and each output length in turn",
    "leave-one-batch-out": "each batch in turn",
}
"""Names of the schemes and what each holds out."""

_IDENTITY = [*GROUP, "source"]
_ERRORS = {
    **dict.fromkeys((*_IDENTITY, "law", "scheme", "held_out"), pl.String),
    **dict.fromkeys(("cells", "folds"), pl.Int64),
    **dict.fromkeys(("mape_percent", "worst_fold_mape_percent", "worst_ape_percent"), pl.Float64),
    "note": pl.String,
}

_Fold = tuple[str, Mask, Array]  # what is held out, which cells, their predicted E_tok in joules (others ignored)


def validate(table: Table) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Errors of every group × law × scheme, and the predictions behind them.

    The first frame has one row per group, law and scheme (MAPE on cell means, in percent; null with a note where the
    scheme does not apply; `cells` counts the predictions, so leave-one-length-out counts a cell once as part of its
    input length and once as part of its output length). The second has one row per prediction; `held_out` says with
    what the cell was held out. tdp-time is not fitted, so no scheme holds anything out from it: it has the same
    predictions under each, for comparison.
    """
    errors: list[dict[str, Any]] = []
    predictions: list[pl.DataFrame] = []
    for frame in cells(table.frame).partition_by(GROUP, maintain_order=True):
        points = Points.of(frame)
        masks = {scheme: list(_masks(scheme, points)) for scheme in SCHEMES}
        for law in LAWS.values():
            for scheme, held_out in SCHEMES.items():
                predicted, note = _predict(law, scheme, frame, points, masks[scheme])
                row = dict(zip(_IDENTITY, frame.select(_IDENTITY).row(0), strict=True))
                row |= {"law": law.name, "scheme": scheme, "held_out": held_out}
                tables = [
                    _table(frame, points, fold).with_columns(law=pl.lit(law.name), scheme=pl.lit(scheme))
                    for fold in predicted
                ]
                errors.append(row | _summary(tables) | {"note": note})
                predictions += tables
    columns = [*_IDENTITY, "law", "scheme", "held_out", *CELL, "energy_j", "predicted_j", "ape_percent"]
    return pl.DataFrame(errors, schema=_ERRORS), pl.concat(predictions).select(columns)


def write(errors: pl.DataFrame, predictions: pl.DataFrame, errors_path: Path, predictions_path: Path) -> None:
    """Write the frames of `validate` as CSV and as Parquet, each whole or not at all."""
    write_atomically(errors_path, errors.write_csv())
    write_parquet(predictions, predictions_path)


def summary(predictor: Mapping[str, Any], errors: pl.DataFrame) -> str:
    """For people: each group's law with its MAPE (percent) under each scheme, and the held-out MAPE of the baselines.

    `predictor` is what `fit_table` and `errors` what `validate` made of the same table.
    """
    mape = {tuple(row[:-1]): row[-1] for row in errors.select(*GROUP, "law", "scheme", "mape_percent").iter_rows()}
    baselines = ("tdp-time", "linear", "wilkins")
    header = ["group", "cells", "law", *SCHEMES, *(f"{name} 5-fold" for name in baselines)]
    lines, notes = [header], []
    for group in predictor["groups"]:
        key = tuple(group[name] for name in GROUP)
        name = group_name(key)
        if group["source"] == "simulated" and "SIMULATED" not in name:
            name += " (SIMULATED)"
        wanted = [(group["law"], scheme) for scheme in SCHEMES] + [(law, "5-fold") for law in baselines]
        found = [mape.get((*key, *pair)) for pair in wanted]
        shown = ["-" if value is None else f"{value:.2f} %" for value in found]
        lines.append([name, str(group["cells"]), group["law"] or "-", *shown])
        if group["law"] is None:
            notes.append(f"{name}: {group['chosen_because']}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(["MAPE of each group's law, and of the baselines", *text, *notes])


def _masks(scheme: str, points: Points) -> Iterator[tuple[str, Mask]]:
    """What each fold of a scheme is called and which cells it holds out."""
    if scheme == "5-fold":
        fold = folds(points)
        for k in np.unique(fold):
            yield f"fold {k + 1}", fold == k
    elif scheme == "leave-one-length-out":
        for name, values in (("input_tokens", points.n), ("output_tokens", points.m)):
            for value in np.unique(values):
                yield f"{name} {value:.0f}", values == value
    elif scheme == "leave-one-batch-out":
        for value in np.unique(points.batch):
            yield f"batch {value:.0f}", points.batch == value


def _predict(
    law: Law, scheme: str, frame: pl.DataFrame, points: Points, masks: list[tuple[str, Mask]]
) -> tuple[list[_Fold], str]:
    """Predictions of a law under a scheme, and a note on what is missing or particular."""
    if not law.terms:
        return _tdp_time(frame, points)
    if scheme == "in-sample":
        return _in_sample(law, points)
    if scheme == "leave-one-batch-out" and not law.has_batch_terms:
        return [], "no batch term: cannot predict a batch it has not seen"
    done = [(name, mask, predict_held_out(law, points, mask)) for name, mask in masks]
    known = [(name, mask & np.isfinite(energy), energy) for name, mask, energy in done]
    known = [fold for fold in known if fold[1].any()]
    asked, answered = sum(mask.sum() for _, mask in masks), sum(mask.sum() for _, mask, _ in known)
    if answered == asked:
        return known, ""
    return known, f"{asked - answered} of {asked} held-out cells left out: the other cells cannot determine them"


def _tdp_time(frame: pl.DataFrame, points: Points) -> tuple[list[_Fold], str]:
    gpu = gpus.find(frame["gpu"][0])
    if gpu is None:
        return [], f"the TDP of gpu {frame['gpu'][0]!r} is not known"
    timed = frame["duration_s"].is_not_null().to_numpy()
    if not timed.any():
        return [], "no duration_s in the table"
    energy = gpu.tdp_w * frame["duration_s"].fill_null(0.0).to_numpy() / (points.batch * points.m)
    return [("nothing", timed, energy)], "not fitted: TDP times the measured duration, the same under every scheme"


def _in_sample(law: Law, points: Points) -> tuple[list[_Fold], str]:
    energy, reasons = np.full(len(points), np.nan), []
    for batch, unit in units(law, points):
        solution = solve(law, points.take(unit))
        if isinstance(solution, Skipped):
            reasons.append(solution.reason if batch is None else f"batch {batch}: {solution.reason}")
        else:
            energy[unit] = design(law, points.take(unit)) @ solution.values
    known = np.isfinite(energy)
    return ([("nothing", known, energy)] if known.any() else []), "; ".join(reasons)


def _table(frame: pl.DataFrame, points: Points, fold: _Fold) -> pl.DataFrame:
    name, mask, energy = fold
    predicted = pl.Series("predicted_j", energy * points.batch * points.m)
    error = pl.Series("ape_percent", 100 * np.abs(energy / points.energy - 1))
    return frame.with_columns(predicted, error, held_out=pl.lit(name)).filter(pl.Series(mask))


def _summary(tables: list[pl.DataFrame]) -> dict[str, Any]:
    if not tables:
        return {
            "cells": 0,
            "folds": 0,
            "mape_percent": None,
            "worst_fold_mape_percent": None,
            "worst_ape_percent": None,
        }
    errors = [table["ape_percent"].to_numpy() for table in tables]
    everything = np.concatenate(errors)
    return {
        "cells": len(everything),
        "folds": len(tables),
        "mape_percent": float(everything.mean()),
        "worst_fold_mape_percent": float(max(error.mean() for error in errors)),
        "worst_ape_percent": float(everything.max()),
    }
