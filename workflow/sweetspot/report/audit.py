"""The tables of the report about cells that were not run, invalid and flagged rows, and errors of measurement."""

import re
from collections import Counter

import polars as pl

from sweetspot.fit import controls
from sweetspot.report.tables import Table
from sweetspot.report.words import listed, number, percent
from sweetspot.sensors.window import REASONS
from sweetspot.table.schema import CELL, GROUP
from sweetspot.vocabulary import LEVEL

_MOST_ROWS = 60  # of invalid repetitions are listed; the rest are counted
REASONS = {
    **REASONS,
    "out_of_memory": "the cell did not fit in the GPU's memory",
    "engine_failed": "the engine could not be built, loaded or run",
    "not_measured_yet": "time ran out before the cell's turn came",
}
FLAGS = {
    "kv_limited": "the KV cache holds fewer requests than the batch: they run in waves",
    "power_capped": "the GPU reached its power limit: runs take longer instead of drawing more power",
    "throttled": "the GPU slowed down because of heat or hardware protection",
    "kv_capacity_unknown": "the server does not say how many requests it holds: the batch may have run in waves",
    "requests_unchecked": "the server does not count its tokens: requests of others would have gone unnoticed",
    "extended_positions": "longer than the model's maximum: its position table was extended",
    "short_window": "the window was shorter than the protocol requires",
    "random_weights": "random weights: times are right, power may be off by a few percent",
    "no_cuda_graphs": "decode passes ran without CUDA graphs (`engine.cuda_graphs`)",
    "static_batches": "all requests of a batch began and ended together (`engine.in_flight_batching`)",
    "staggered_start": "the engine received a batch's requests over more than 5 % of the run, so fewer ran together",
    "not_steady": "power or clock was still drifting when the warm-up ended",
    "drifted": "the anchor cell, measured before and after, changed by more than the protocol allows",
    "machine_changed": "driver, VBIOS, ECC or power limit differed from the campaign's first session",
    "processes_unchecked": "the board lists no processes, so another one on it would have gone unnoticed",
    "other_board": "measured on a different board than the campaign's first session; boards differ by up to 5 %",
}
_BUDGET = {
    "uncertainty_gain": "gain error common to the board's sensors: a bound, invisible in repetitions",
    "uncertainty_counter_step": "one step of the energy counter over the window",
    "uncertainty_tail": "the energy subtracted for the idle tail",
    "uncertainty_replicates": f"half-width of the {LEVEL} interval of the cell's mean",
    "uncertainty_drift": "how far the anchor cell moved around the row",
    "uncertainty_total": "root of the sum of squares",
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


def weights_control(rows: pl.DataFrame) -> Table | None:
    """Energy on one kind of weights over energy on another, in the same cells, with its interval."""
    lines = [
        [
            f"{row['model']} ({row['weights']})",
            f"{row['reference_model']} ({row['reference_weights']})",
            f"{number(row['ratio'])} [{number(row['low'])}, {number(row['high'])}]",
            str(row["cells"]),
        ]
        for row in controls.weight_ratios(rows)
    ]
    head = ["model (weights)", "against", f"energy ratio [{LEVEL} interval]", "cells"]
    return Table("Control: the same cells with different weights", head, lines, text=2) if lines else None


def error_budget(rows: pl.DataFrame) -> Table | None:
    """The parts of the error of a valid row, in percent of its energy."""
    valid = rows.filter("valid")
    lines = []
    for name in filter(rows.columns.__contains__, _BUDGET):
        values, words = 100 * valid[name].cast(pl.Float64).drop_nulls(), _BUDGET[name]
        if len(values):
            shown = map(percent, (values.quantile(0.5), values.quantile(0.95), values.to_numpy().max()))
            lines.append([name.removeprefix("uncertainty_").replace("_", " "), words, *shown, str(len(values))])
    head = ["part", "what it is", "median", "95th percentile", "largest", "rows"]
    return Table("Error budget of the valid rows, relative to their energy", head, lines, text=2) if lines else None


def invalid_by_reason(rows: pl.DataFrame) -> Table | None:
    """Repetitions that failed a check, counted by reason; one with two reasons counts under both."""
    counted = _codes(rows.filter(~pl.col("valid")), "reasons", "no reason given")
    lines = [[code, REASONS.get(code, ""), str(part.height), str(_cells(part))] for code, part in counted]
    head = ["reason", "meaning", "rows", "cells"]
    return Table("Invalid rows: kept in the table, not used above", head, lines, text=2) if lines else None


def invalid_rows(rows: pl.DataFrame) -> Table | None:
    """The invalid repetitions themselves, at most 60."""
    bad = rows.filter(~pl.col("valid"))
    raw = "raw" in bad.columns
    lines = [
        [
            row["model"] or "–",
            (row["reasons"] or "–").replace(";", ", "),
            *([row["raw"] or "–"] if raw else []),
            *("–" if row[key] is None else f"{row[key]:,}" for key in CELL),
            "–" if row["repetition"] is None else str(row["repetition"]),
            number(row["energy_j"]),
        ]
        for row in bad.head(_MOST_ROWS).iter_rows(named=True)
    ]
    head = ["model", "reasons", *(["raw samples"] if raw else []), "batch", "input tokens", "output tokens"]
    head += ["repetition", "energy, J per batch run"]
    rest = f"; {bad.height - _MOST_ROWS} more are in the table of measurements" if bad.height > _MOST_ROWS else ""
    return Table(f"The invalid rows{rest}", head, lines, text=2 + bool(raw)) if lines else None


def flags(rows: pl.DataFrame) -> Table | None:
    """Flags of rows, with the models and batches concerned."""
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
    return Table("Flagged rows: valid, but in conditions worth knowing", head, lines, text=4) if lines else None


def _codes(rows: pl.DataFrame, column: str, empty: str) -> list[tuple[str, pl.DataFrame]]:
    parts = rows.with_columns(_code=pl.col(column).str.split(";")).explode("_code")
    # The name of a board may follow.
    parts = parts.with_columns(pl.col("_code").str.replace(r"^(\w+):\d+:\S+$", "${1}"))
    parts = parts.with_columns(pl.col("_code").replace("", empty)).filter(pl.col("_code") != "")
    return [(str(code), part) for (code,), part in parts.group_by("_code", maintain_order=True)]


def _cells(rows: pl.DataFrame) -> int:
    return rows.select(*GROUP, *CELL).unique().height
