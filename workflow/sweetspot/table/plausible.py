"""Plausibility checks of a table: mixed units, mixed sources, powers that no GPU draws."""

from functools import cache
from math import log

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.gpus import find
from sweetspot.table.columns import boards, tells_boards
from sweetspot.table.schema import CELL, GROUP, group_name
from sweetspot.vocabulary import UNSPECIFIED

# Power of any GPU, or of several; anything outside is a wrong unit.
_PLAUSIBLE_POWER_W = (5.0, 3000.0)
# Used without durations. A 1B model on an H100 needs about 2 mJ to prefill a token, and more to decode one.
_SMALLEST_J_PER_TOKEN = 2e-4
_OF_TDP = (0.05, 1.25)  # range of a working board's mean power over a run, as a share of its TDP
_FEW = 0.5  # share of a group's rows without a source up to which they are set aside
_REPEATS = 1.5  # repetitions of a cell that differ by more than this factor are not the same measurement
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


@cache
def _limits(gpu: str, boards: int, unknown: bool) -> tuple[float, float]:
    """Plausible power in W of so many GPUs of this name, or of an unknown number: lowest and highest."""
    board, (low, high) = find(gpu), _PLAUSIBLE_POWER_W
    if board is None:
        return low, high
    return _OF_TDP[0] * boards * board.tdp_w, high if unknown else _OF_TDP[1] * boards * board.tdp_w


def notes(frame: pl.DataFrame) -> list[str]:
    """What a user should check, one sentence each."""
    found = []
    if invalid := frame.height - int(frame["valid_as_given"].sum()):
        found.append(f"{invalid} of {frame.height} rows are marked invalid: kept, not fitted")
    valid = frame.filter(pl.col("valid"))
    power = pl.col("energy_j") / pl.col("duration_s")
    unknown = tells_boards(frame)
    limits = [_limits(gpu, count, unknown) for gpu, count in zip(valid["gpu"], boards(valid), strict=True)]
    odd = valid.with_columns(
        power.alias("_power"), _low=pl.Series([low for low, _ in limits]), _high=pl.Series([high for _, high in limits])
    ).filter((pl.col("_power") < pl.col("_low")) | (pl.col("_power") > pl.col("_high")))
    if odd.height:
        row = odd.row(0, named=True)
        board = find(row["gpu"])
        known = f"{board.name} ({board.tdp_w:g} W) does not draw" if board else "no GPU draws"
        found.append(
            f"{odd.height} rows imply a power that {known}, first {row['_file']}, row {row['_row']}: "
            f"{row['energy_j']:g} J in {row['duration_s']:g} s is {row['_power']:.3g} W; is energy_j in joules "
            "(not Wh, kJ or mJ), for the whole batch (not one request) on one board, and duration_s in seconds?"
        )
    tokens = pl.col("batch") * (pl.col("input_tokens") + pl.col("output_tokens"))
    usual = valid.filter(pl.col("duration_s").is_null()).select((pl.col("energy_j") / tokens).median()).item()
    if usual is not None and usual < _SMALLEST_J_PER_TOKEN:
        found.append(
            f"the median of rows without duration_s is {usual:.2g} J per token (prompt and reply), less than a GPU "
            "needs for a small model; is energy_j in joules (not Wh or kJ), for the whole batch?"
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
    return found
