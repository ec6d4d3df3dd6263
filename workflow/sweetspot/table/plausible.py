"""Plausibility checks of a table: mixed units, mixed sources, powers that no GPU draws."""

from math import log

import numpy as np
import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.gpus import find
from sweetspot.table.physics import boards, limits
from sweetspot.table.quantities import Values
from sweetspot.table.schema import CELL, GROUP, group_name
from sweetspot.vocabulary import UNSPECIFIED

_FEW = 0.5  # share of a group's rows without a source up to which they are set aside
_REPEATS = 1.5  # repetitions of a cell that differ by more than this factor are not the same measurement
_MOST = 0.5  # share of impossible rows from which a table is
_MANY = 0.1  # share of cells with mixed units above which a table is refused
_TWO_UNITS = 50.0  # repetitions of a cell never differ by this factor; kilojoules and watt-hours do


# Frames here also have columns _file and _row, which say where each row comes from.


def check_units(frame: pl.DataFrame) -> None:
    """Raise SweetspotError, naming two rows, if repetitions of many cells differ as much as two units do.

    A cell in which most repetitions agree does not count, nor do a few cells: `fit.outliers` handles those.
    """
    place = pl.format("{}, row {} ({} J)", "_file", "_row", pl.col("energy_j").round(3))
    energy = pl.col("energy_j")
    near = (energy / energy.quantile(0.5, "lower")).log().abs() < log(_TWO_UNITS) / 2
    ordered = frame.filter(pl.col("valid")).sort("energy_j")
    spread = ordered.group_by(*GROUP, *CELL, maintain_order=True).agg(
        place.first().alias("low"),
        place.last().alias("high"),
        ratio=energy.last() / energy.first(),
        near=near.mean(),
    )
    divided = spread.filter((pl.col("ratio") > _TWO_UNITS) & (pl.col("near") <= 0.5))
    if divided.height > _MANY * spread.height:
        row = divided.row(0, named=True)
        cell = f"batch {row['batch']}, {row['input_tokens']} input and {row['output_tokens']} output tokens"
        raise SweetspotError(
            f"{row['high']} and {row['low']} are the same cell ({cell}) but differ {row['ratio']:.0f}-fold: two units? "
            "energy_j must be joules of the whole batch"
        )


def of_one_source(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Set aside the few rows of a group that state no source, if its other rows state one; also returns notes.

    Raises SweetspotError if a group has rows from several sources, or if most of its rows state none.
    """
    stated = pl.col("source") != UNSPECIFIED
    groups = frame.filter("valid").group_by(GROUP, maintain_order=True)
    sources = groups.agg(pl.col("source").unique().sort(), _unstated=(~stated).mean())
    mixed = sources.filter(pl.col("source").list.len() > 1)
    few = (pl.col("source").list.len() == 2) & pl.col("_unstated").is_between(0, _FEW, closed="right")
    for row in mixed.filter(~few).head(1).iter_rows(named=True):
        raise SweetspotError(
            f"{group_name(row[name] for name in GROUP)}: mixes rows from {' and '.join(row['source'])} sources; fit "
            "them separately, or give them different names in column engine"
        )
    if not mixed.height:
        return frame, []
    marked = frame.join(
        mixed.select(*GROUP, _mixed=True), on=GROUP, how="left", nulls_equal=True, maintain_order="left"
    )
    aside = pl.col("_mixed").fill_null(False) & ~stated & pl.col("valid")
    count = int(marked.select(aside.sum()).item())
    note = f"{count} rows without a known source are set aside and not fitted; other rows of their group state theirs"
    return marked.with_columns(valid=pl.col("valid") & ~aside).drop("_mixed"), [note]


def notes(frame: pl.DataFrame) -> list[str]:
    """What was left out, one sentence each."""
    if invalid := frame.height - int(frame["valid_as_given"].sum()):
        return [f"{invalid} of {frame.height} rows are marked invalid: kept, not fitted"]
    return []


def _boards(frame: pl.DataFrame) -> pl.Series:
    return frame["_gpus"].fill_null(boards(frame["parallelism"]))


def doubts(frame: pl.DataFrame) -> tuple[list[str], bool]:
    """What a user should check, one sentence each; and whether most valid rows are impossible."""
    found = []
    valid = frame.filter(pl.col("valid"))
    known: Values = {name: valid[name].cast(pl.Float64).to_numpy() for name in (*CELL, "energy_j")}
    known |= {"duration_s": valid["duration_s"].to_numpy(), "gpus": _boards(valid).to_numpy()}
    within = limits(known, valid["gpu"], valid["model"])
    with np.errstate(all="ignore"):
        power = known["energy_j"] / known["duration_s"]
        odd = valid.with_columns(_power=power).filter(pl.Series((power < within.low_w) | (power > within.high_w)))
    if odd.height:
        row = odd.row(0, named=True)
        board = find(row["gpu"])
        named = f"{board.name} ({board.tdp_w:g} W) does not draw" if board else "no GPU draws"
        found.append(
            f"{odd.height} rows imply a power that {named}, first {row['_file']}, row {row['_row']}: "
            f"{row['energy_j']:g} J in {row['duration_s']:g} s is {row['_power']:.3g} W; is energy_j in joules "
            "(not Wh, kJ or mJ), for the whole batch (not one request) on one board, and duration_s in seconds?"
        )
    low, high = (np.broadcast_to(bound, valid.height) for bound in (within.low_j, within.high_j))
    off = valid.filter(pl.Series((known["energy_j"] < low) | (known["energy_j"] > high), dtype=pl.Boolean))
    if off.height:
        row = off.row(0, named=True)
        each = row["energy_j"] / (row["batch"] * row["output_tokens"])
        found.append(
            f"{off.height} rows have an energy that such a model on such a board cannot need, first {row['_file']}, "
            f"row {row['_row']}: {row['energy_j']:.4g} J is {each:.2g} J per output token; is energy_j in joules (not "
            "Wh, kJ or mJ), for the whole batch?"
        )
    apart = valid.group_by(*GROUP, *CELL, maintain_order=True).agg(
        pl.len().alias("_rows"), (pl.col("energy_j").max() / pl.col("energy_j").min()).alias("_ratio")
    )
    apart = apart.filter(pl.col("_ratio") > _REPEATS)
    if apart.height:
        row = apart.row(0, named=True)
        found.append(
            f"{apart.height} cells have repetitions that differ by more than a factor of {_REPEATS:g}, first batch "
            f"{row['batch']}, {row['input_tokens']} input and {row['output_tokens']} output tokens: "
            f"{row['_ratio']:.3g} times in {row['_rows']} repetitions"
        )
    return found, bool(valid.height and within.exceeded(known).mean() >= _MOST)
