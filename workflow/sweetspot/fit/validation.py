"""Validates how well each law predicts: in-sample, and on cells, lengths, batches and models it has not seen."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sweetspot import gpus
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically
from sweetspot.fit.across_models import SCHEME, fit_across_models
from sweetspot.fit.choice import Schemes, choose, fits, hold_out_all
from sweetspot.fit.heldout import SCHEMES, Calibration, HeldOut, calibrate, fitted
from sweetspot.fit.outliers import screen
from sweetspot.fit.solve import Array, Mask, Points
from sweetspot.fit.sweet_spots import plateau
from sweetspot.parallelism import Parallelism
from sweetspot.predict import predictor as predictors
from sweetspot.predict.across_models import LAW
from sweetspot.predict.laws import CHOSEN, LAWS, Law
from sweetspot.table.files import write_parquet
from sweetspot.table.read import Table
from sweetspot.table.schema import CELL, GROUP, group_name, rows_of
from sweetspot.vocabulary import LEVEL, SIMULATED

_DOUBTFUL_PERCENT = 15.0  # 5-fold error above which the rows are as likely to be wrong as the law

_IDENTITY = [*GROUP, "source"]
_ERRORS = {
    **dict.fromkeys((*_IDENTITY, "law", "scheme", "held_out"), pl.String),
    **dict.fromkeys(("cells", "folds"), pl.Int64),
    **dict.fromkeys(("mape_percent", "worst_fold_mape_percent", "worst_ape_percent", "coverage_percent"), pl.Float64),
    "note": pl.String,
}

_Fold = tuple[str, Mask, Array, Array]
"""What is held out, which cells, their predicted E_tok in J, and the relative half width of its 95 % interval."""


def validate(
    table: Table, architectures: Mapping[str, Architecture] | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Errors of every group × law × scheme, and the predictions behind them.

    `architectures` as in `fit_table`; without them, the law across models is not validated.

    The first frame has one row per group, law and scheme. The MAPE is over cell means, in percent, or null with a note
    if the scheme does not apply. `cells` counts predictions, so leave-one-length-out counts each cell twice: with its
    input length and with its output length. `coverage_percent` of the cells lie in their 95 % interval, calibrated by
    the other folds. The second frame has one row per prediction; `held_out` says what was held out. tdp-time is not
    fitted, so no scheme holds anything out: it has the same predictions under each, for comparison. Rows set aside (see
    `outliers.screen`) are not among the cells; a note counts them.
    """
    errors: list[dict[str, Any]] = []
    predictions: list[pl.DataFrame] = []
    screened = screen(table.frame)
    _, unseen = fit_across_models(screened.cells, architectures or {})
    for frame in screened.cells.partition_by(GROUP, maintain_order=True):
        points, group = Points.of(frame), frame.row(0, named=True)
        aside = rows_of(screened.outliers, group).height
        everything = {name: hold_out_all(law, points) for name, law in LAWS.items() if law.terms}
        for law in LAWS.values():
            for scheme, what in SCHEMES.items():
                if law.name == LAW:
                    own = rows_of(unseen, group) if unseen.height else unseen
                    predicted, note = _across_models(scheme, own, points)
                else:
                    predicted, note = _predict(law, scheme, frame, points, everything)
                notes = [note] * bool(note) + [f"{aside} row{'s' * (aside != 1)} set aside as wrong"] * bool(aside)
                row = {name: group[name] for name in _IDENTITY} | {"law": law.name, "scheme": scheme, "held_out": what}
                cells = _table(frame, points, predicted)
                errors.append(row | _summary(cells) | {"note": "; ".join(notes)})
                predictions.append(cells.with_columns(law=pl.lit(law.name), scheme=pl.lit(scheme)))
    values = ["energy_j", "predicted_j", "low_j", "high_j", "ape_percent"]
    columns = [*_IDENTITY, "law", "scheme", "held_out", *CELL, *values]
    return pl.DataFrame(errors, schema=_ERRORS), pl.concat(predictions).select(columns)


def write(errors: pl.DataFrame, predictions: pl.DataFrame, errors_path: Path, predictions_path: Path) -> None:
    """Write the frames of `validate` as CSV and as Parquet, each atomically."""
    write_atomically(errors_path, errors.write_csv())
    write_parquet(predictions, predictions_path)


def summary(predictor: Mapping[str, Any], errors: pl.DataFrame) -> str:
    """For people: each group's law with its MAPE (percent) under each scheme, and the held-out MAPE of the baselines.

    Under 5-fold, the law is chosen again inside each fold; under leave-one-model-out, it is the law across models.

    Below it, for each group: why this law, its sweet spots with their 95 % sets, and each row set aside. `predictor`
    comes from `fit_table` and `errors` from `validate`, for the same table.
    """
    mape = {tuple(row[:-1]): row[-1] for row in errors.select(*GROUP, "law", "scheme", "mape_percent").iter_rows()}
    baselines = ("tdp-time", "linear", "wilkins", "paper-6")
    header = ["group", "cells", "law", *SCHEMES, *(f"{name} 5-fold" for name in baselines)]
    lines, notes = [header], []
    for group in predictor["groups"]:
        key = tuple(group[name] for name in GROUP)
        name = group_name(key)
        if group["source"] in SIMULATED and "SIMULATED" not in name:
            name += " (SIMULATED)"
        wanted = [({SCHEME: LAW, "5-fold": CHOSEN}.get(scheme, group["law"]), scheme) for scheme in SCHEMES]
        wanted += [(law, "5-fold") for law in baselines]
        found = [mape.get((*key, *pair)) for pair in wanted]
        shown = ["-" if value is None else f"{value:.2f} %" for value in found]
        lines.append([name, str(group["cells"]), group["law"] or "-", *shown])
        notes.append(f"{name}: {group['chosen_because']}")
        error = mape.get((*key, CHOSEN, "5-fold"))
        if error is not None and error > _DOUBTFUL_PERCENT:
            notes.append(
                f"warning: {name}: predictions of held-out cells are off by {error:.0f} % on average: no law here "
                "describes these rows. Are all energies joules of the whole batch (not kJ, Wh or per token), all "
                "lengths exact, and all rows from one set-up?"
            )
        inside = [spot for spot in group["sweet_spots"] if spot["status"] == "interior"]
        notes += [
            f"{name}: at batch {spot['batch']}, after {spot['input_tokens']:,} input tokens, replies of "
            f"{spot['output_tokens']:,.0f} tokens{plateau(spot)} need the least energy per token "
            f"({LEVEL}: {_ends(spot)})"
            for spot in (*inside[:1], *inside[1:][-1:])
        ]
        notes += [f"{name}: set aside, not fitted: {_cell_words(row)}" for row in group["outliers"]]
        if group["outliers"] and error is not None:
            off = list(filter(None, (_error_of(predictor, group, row) for row in group["outliers"])))
            with_them = (error * group["cells"] + sum(off)) / (group["cells"] + len(off))
            notes.append(f"{name}: 5-fold {error:.3g} %, with the {len(off)} set aside {with_them:.3g} %")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    labels = [label for source, label in SIMULATED.items() if any(g["source"] == source for g in predictor["groups"])]
    return "\n".join([*labels, "MAPE of each group's law, and of the baselines", *text, *notes])


def _ends(spot: Mapping[str, Any]) -> str:
    low, high = spot["output_tokens_low"], spot["output_tokens_high"]
    return f"{f'{low:,.0f}' if low else 'without bound below'} to {f'{high:,.0f}' if high else 'without bound above'}"


def _error_of(predictor: Mapping[str, Any], group: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """APE in percent of the prediction for a row that was set aside; None if it is refused."""
    where = {name: group[name] for name in GROUP if name != "model"}
    asked = (row["input_tokens"], row["output_tokens"], row["batch"])
    try:
        expected = predictors.predict(predictor, group["model"], *asked, **where).energy_batch_j
    except SweetspotError:
        return None
    return float(100 * abs(expected / row["energy_j"] - 1))


def _cell_words(row: Mapping[str, Any]) -> str:
    return f"batch {row['batch']}, {row['input_tokens']} -> {row['output_tokens']} tokens: {row['outlier']}"


def _predict(
    law: Law, scheme: str, frame: pl.DataFrame, points: Points, everything: Mapping[str, Schemes]
) -> tuple[list[_Fold], str]:
    """Predictions of a law under a scheme, and a note on what is missing or special; `everything`: held out, by law."""
    if scheme == SCHEME and law.name != "tdp-time":
        return [], "coefficients of one model cannot predict another"
    if law.name == CHOSEN:
        return _choice_again(scheme, points, everything)
    if not law.terms:
        return _tdp_time(frame, points)
    held_out = everything[law.name]
    if scheme == "in-sample":
        fold, reasons = fitted(law, points)
        return [_with_interval(fold, calibrate(points, held_out))] if fold.known.any() else [], "; ".join(reasons)
    if scheme == "leave-one-batch-out" and not law.has_batch_terms:
        return [], "no batch term: cannot predict a batch it has not seen"
    folds = held_out[scheme]
    known = [_with_interval(fold, calibrate(points, held_out, without=fold)) for fold in folds if fold.known.any()]
    asked, answered = sum(fold.mask.sum() for fold in folds), sum(fold[1].sum() for fold in known)
    if answered == asked:
        return known, ""
    return known, f"{asked - answered} of {asked} held-out cells not predicted: the other cells do not determine them"


def _choice_again(scheme: str, points: Points, held_out: Mapping[str, Schemes]) -> tuple[list[_Fold], str]:
    """Each fold as predicted by the law that the cells outside it choose, and how often which law was chosen."""
    if scheme != "5-fold":
        return [], "the choice is made again for 5-fold only"
    found, chosen = [], Counter[str]()
    for index, fold in enumerate(next(iter(held_out.values()))[scheme]):
        others = points.take(~fold.mask)
        name = choose(
            {name: fits(law, others) for name, law in LAWS.items() if law.predicts},
            {name: hold_out_all(law, others) for name, law in LAWS.items() if law.predicts},
            others,
        )[0]
        if name and (there := held_out[name][scheme][index]).known.any():
            chosen[name] += 1
            found.append(_with_interval(there, calibrate(points, held_out[name], without=there)))
    return found, ", ".join(f"{name} in {count} of {chosen.total()} folds" for name, count in chosen.most_common())


def _across_models(scheme: str, unseen: pl.DataFrame, points: Points) -> tuple[list[_Fold], str]:
    """The law across models, each model predicted from the others. `unseen`: its rows (see `fit_across_models`),
    in the order of its cells."""
    if scheme != SCHEME:
        return [], f"fitted to all models together: validated by {SCHEME} only"
    if not unseen.height:
        return [], "needs three models of known architecture (config.json) on one GPU and engine"
    energy = unseen["predicted_j"].to_numpy() / (points.batch * points.m)
    half = (unseen["high_j"] / unseen["predicted_j"] - 1).to_numpy()
    return [(unseen["held_out"][0], np.ones(len(points), dtype=bool), energy, half)], ""


def _with_interval(fold: HeldOut, calibration: Calibration) -> _Fold:
    return fold.name, fold.known, fold.predicted, calibration.half_widths(fold)


def _tdp_time(frame: pl.DataFrame, points: Points) -> tuple[list[_Fold], str]:
    gpu = gpus.find(frame["gpu"][0])
    if gpu is None:
        return [], f"the TDP of gpu {frame['gpu'][0]!r} is not known"
    timed = frame["duration_s"].is_not_null().to_numpy()
    if not timed.any():
        return [], "no duration_s in the table"
    boards = Parallelism.parse(frame["parallelism"][0]).gpus
    energy = boards * gpu.tdp_w * frame["duration_s"].fill_null(0.0).to_numpy() / (points.batch * points.m)
    note = "not fitted: TDP times the measured duration, the same under every scheme"
    return [("nothing", timed, energy, np.full(len(points), np.nan))], note


def _table(frame: pl.DataFrame, points: Points, folds: list[_Fold]) -> pl.DataFrame:
    """One row per predicted cell of each fold, fold after fold."""
    index = np.concatenate([np.flatnonzero(mask) for _, mask, _, _ in folds] or [np.array([], dtype=int)])
    joules, half = (np.concatenate([fold[part][fold[1]] for fold in folds] or [np.array([])]) for part in (2, 3))
    joules = joules * (points.batch * points.m)[index]
    columns = {
        "predicted_j": joules,
        "low_j": np.maximum(joules * (1 - half), 0),
        "high_j": joules * (1 + half),
        "ape_percent": 100 * np.abs(joules / (points.target * points.batch * points.m)[index] - 1),
    }
    series = [pl.Series(name, values, pl.Float64, nan_to_null=True) for name, values in columns.items()]
    names = [name for name, mask, _, _ in folds for _ in range(int(mask.sum()))]
    return frame[index].with_columns(*series, pl.Series("held_out", names, pl.String))


def _summary(cells: pl.DataFrame) -> dict[str, Any]:
    if not cells.height:
        return {"cells": 0, "folds": 0}  # the errors are null
    errors = cells["ape_percent"]
    by_fold = cells.group_by("held_out").agg(pl.col("ape_percent").mean())["ape_percent"]
    inside = cells.select(pl.col("energy_j").is_between("low_j", "high_j")).to_series()
    return {
        "cells": len(errors),
        "folds": len(by_fold),
        "mape_percent": errors.mean(),
        "worst_fold_mape_percent": by_fold.max(),
        "worst_ape_percent": errors.max(),
        "coverage_percent": None if inside.null_count() else 100 * float(inside.to_numpy().mean()),
    }
