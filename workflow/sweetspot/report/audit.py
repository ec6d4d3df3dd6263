"""The tables of the report about cells that were not run, invalid and flagged rows, and errors of measurement."""

import re
from collections import Counter
from collections.abc import Mapping

import polars as pl

from sweetspot.fit import controls
from sweetspot.report.tables import Table
from sweetspot.report.words import listed, number, percent
from sweetspot.sensors.window import REASONS
from sweetspot.table.schema import CELL, GROUP
from sweetspot.vocabulary import LEVEL

REASONS = {
    **REASONS,
    "out_of_memory": "the cell did not fit in the GPU's memory",
    "engine_failed": "the engine could not be built, loaded or run",
    "not_measured_yet": "time ran out before the cell's turn came",
}
FLAGS = {
    "kv_limited": "the KV cache holds fewer requests than the batch: they run in waves",
    "power_capped": "the GPU was at its power limit for part of the run, which took longer instead of drawing more",
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


def invalid(rows: pl.DataFrame) -> Table | None:
    """Repetitions that failed a check, counted by reason."""
    failed = rows.filter(~pl.col("valid")).with_columns(pl.col("reasons").replace("", "no reason given"))
    return _counted("Invalid rows: kept in the table, not used above", failed, "reasons", REASONS)


def flags(rows: pl.DataFrame) -> Table | None:
    """Rows with a flag, counted by flag; for the power limit, with the share of the time that it held."""
    meanings = FLAGS
    if "power_capped_share" in rows.columns:
        shares = rows.filter(pl.col("flags").str.contains("power_capped"))["power_capped_share"].drop_nulls()
        if len(shares):
            low, middle, high = (percent(100 * float(shares.quantile(q) or 0)) for q in (0.05, 0.5, 0.95))
            said = f"; it was at the limit {middle} of the time (median of these rows; 90 % of them: {low} to {high})"
            meanings = {**FLAGS, "power_capped": FLAGS["power_capped"] + said}
    return _counted("Flagged rows: valid, but in conditions worth knowing", rows, "flags", meanings)


def _counted(caption: str, rows: pl.DataFrame, column: str, meanings: Mapping[str, str]) -> Table | None:
    """Rows by code, with the models and batches concerned; a row with two codes counts under both."""
    parts = rows.with_columns(_code=pl.col(column).str.split(";")).explode("_code")
    # The name of a board may follow.
    parts = parts.with_columns(pl.col("_code").str.replace(r"^(\w+):\d+:\S+$", "${1}")).filter(pl.col("_code") != "")
    lines = [
        [
            str(code),
            meanings.get(str(code), ""),
            *(listed(sorted(set(part[name].drop_nulls()))) for name in ("model", "batch")),
            str(part.height),
            str(part.select(*GROUP, *CELL).unique().height),
        ]
        for (code,), part in parts.group_by("_code", maintain_order=True)
    ]
    head = [column.removesuffix("s"), "meaning", "models", "batches", "rows", "cells"]
    return Table(caption, head, lines, text=4) if lines else None
