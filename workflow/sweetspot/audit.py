"""The tables of the report about rows that were not measured, failed a check, or stand apart."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import polars as pl
from scipy import stats

from sweetspot import meter, summary
from sweetspot.summary import Group, listed, number
from sweetspot.table import CELL, GROUP
from sweetspot.tables import Table

_MOST_ROWS = 60  # of invalid repetitions; more are counted
REASONS = {**meter.REASONS, "out_of_memory": "the GPU's memory did not suffice for the cell"}
FLAGS = {
    "kv_limited": "the KV cache holds fewer requests than the batch: they run in waves",
    "power_capped": "the GPU ran into its power limit: energy shows up as time",
    "throttled": "the GPU slowed down for heat or hardware protection",
    "extended_positions": "longer than the model's positions: its position table was extended",
    "short_window": "the window was shorter than the protocol asks for",
    "random_weights": "random weights: times hold, power may be off by a few percent",
    "not_steady": "power or clock still drifted when the warm-up ended",
}


def skipped(plan: pl.DataFrame | None) -> Table | None:
    """Cells of the grid that were not run, by model and reason."""
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in (plan if plan is not None else pl.DataFrame()).iter_rows(named=True):
        if row["status"] == "skipped":
            n, m = row["input_tokens"], row["output_tokens"]
            reason = re.sub(rf"\b{n} \+ {m} tokens", "input + output tokens", row["reason"] or "no reason given")
            found.setdefault((row["model"], reason), {}).setdefault(f"{n}→{m}", []).append(row["batch"])
    alike: dict[tuple[str, str, str], list[str]] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for (model, reason), places in found.items():
        for batches in sorted({tuple(sorted(batches)) for batches in places.values()}):
            lengths = [place for place, those in places.items() if tuple(sorted(those)) == batches]
            key = (reason, ", ".join(lengths), listed(batches))
            alike.setdefault(key, []).append(model)
            counts[key] += len(lengths) * len(batches)
    rows = [[", ".join(models), *key, str(counts[key])] for key, models in alike.items()]
    head = ["models", "reason", "input→output tokens", "batches", "cells"]
    return Table("Cells of the grid that were not run", head, rows, text=4) if rows else None


def weights_control(rows: pl.DataFrame, groups: Sequence[Group], names: Sequence[str]) -> Table | None:
    """Energy of the same cells with each kind of weights, as a ratio with its 95 % interval over the cells."""
    if "weights" not in rows.columns:
        return None
    lines = []
    for group, name in zip(groups, names, strict=True):
        own = summary.of(rows, group).filter("valid", pl.col("weights").is_not_null())
        kinds = sorted(own["weights"].unique(), key=lambda kind: (kind != "checkpoint", kind))
        means = own.group_by("weights", *CELL).agg(pl.col("energy_j").mean())
        for kind in kinds[1:]:
            base, other = (means.filter(pl.col("weights") == which) for which in (kinds[0], kind))
            logs = base.join(other, on=list(CELL), how="inner").select(
                (pl.col("energy_j_right") / pl.col("energy_j")).log()
            )
            ratios = logs.to_series().to_list()
            if ratios:
                lines.append([name, kind, kinds[0], _log_ratio(ratios), str(len(ratios))])
    head = ["model", "weights", "against", "ratio of energies", "cells"]
    caption = "Control: the same cells with other weights, with 95 % intervals over cells"
    return Table(caption, head, lines, text=3) if lines else None


def _log_ratio(logs: Sequence[float]) -> str:
    """Geometric mean of ratios given by their logarithms, with its 95 % interval."""
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return f"{number(math.exp(mean))} (one cell: no interval)"
    half = float(stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs))
    return f"{number(math.exp(mean))} [{number(math.exp(mean - half))}, {number(math.exp(mean + half))}]"


def invalid_by_reason(rows: pl.DataFrame) -> Table | None:
    """Repetitions that failed a check, counted by reason; one with two reasons counts under both."""
    counted = _codes(rows.filter(~pl.col("valid")), "reasons", "no reason given")
    lines = [[code, REASONS.get(code, ""), str(part.height), str(_cells(part))] for code, part in counted]
    head = ["reason", "meaning", "rows", "cells"]
    return Table("Invalid rows: kept, and used for nothing above", head, lines, text=2) if lines else None


def invalid_rows(rows: pl.DataFrame) -> Table | None:
    """The invalid repetitions themselves, no more than 60."""
    bad = rows.filter(~pl.col("valid"))
    repetition = pl.col("repetition") if "repetition" in bad.columns else pl.lit(None)
    lines = [
        [
            row["model"],
            (row["reasons"] or "–").replace(";", ", "),
            *(f"{row[key]:,}" for key in CELL),
            "–" if row["_repetition"] is None else str(row["_repetition"]),
            number(row["energy_j"]),
        ]
        for row in bad.with_columns(_repetition=repetition).head(_MOST_ROWS).iter_rows(named=True)
    ]
    head = ["model", "reasons", "batch", "input tokens", "output tokens", "repetition", "energy, J per batch run"]
    rest = f"; {bad.height - _MOST_ROWS} more are in the table of measurements" if bad.height > _MOST_ROWS else ""
    return Table(f"The invalid rows{rest}", head, lines, text=2) if lines else None


def flags(rows: pl.DataFrame) -> Table | None:
    """Regimes that rows were measured in, with the models and batches concerned."""
    lines = [
        [
            code,
            FLAGS.get(code, ""),
            listed(sorted(set(part["model"]))),
            listed(sorted(set(part["batch"]))),
            str(part.height),
            str(_cells(part)),
        ]
        for code, part in _codes(rows, "flags", "")
    ]
    head = ["flag", "meaning", "models", "batches", "rows", "cells"]
    return Table("Flagged rows: valid, in a regime worth knowing", head, lines, text=4) if lines else None


def _codes(rows: pl.DataFrame, column: str, empty: str) -> list[tuple[str, pl.DataFrame]]:
    parts = rows.with_columns(_code=pl.col(column).str.split(";")).explode("_code")
    parts = parts.with_columns(pl.col("_code").replace("", empty)).filter(pl.col("_code") != "")
    return [(str(code), part) for (code,), part in parts.group_by("_code", maintain_order=True)]


def _cells(rows: pl.DataFrame) -> int:
    return rows.select(*GROUP, *CELL).unique().height
