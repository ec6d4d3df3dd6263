"""What numbers of a table cannot be true together: two units, two sources, powers that no GPU draws."""

from functools import cache
from math import log

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.gpus import find
from sweetspot.table.columns import tells_boards
from sweetspot.table.schema import CELL, GROUP, UNSPECIFIED, group_name

# One request of one token to a rack: what lies outside is a slip of the unit, not a GPU.
_PLAUSIBLE_POWER_W = (5.0, 3000.0)
# Without durations: a model of a billion parameters prefills a token for about 2 mJ on an H100, and decodes for more.
_SMALLEST_J_PER_TOKEN = 2e-4
_OF_TDP = (0.05, 1.25)  # a board is never this idle while it works, nor so far above its limit for a whole run
_FEW = 0.5  # of a group's rows: where more state no source, the source of the others is not theirs
_REPEATS = 1.5  # repetitions of a cell that differ by more than this factor are not the same measurement
_MANY = 0.1  # of the cells
_TWO_UNITS = 50.0  # repetitions of a cell never differ by this; kilojoules and watt-hours do


# Frames here have columns _file and _row besides those of the schema: where each row comes from.


def check_units(frame: pl.DataFrame) -> None:
    """Raises SweetspotError when repetitions of many cells differ as two units do, naming two rows.

    A cell where most repetitions agree outvotes the others, and a few cells do not refuse a table: see `outliers`.
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
            f"{row['high']} and {row['low']} are the same cell ({cell}) and differ {row['ratio']:.0f}-fold: two units? "
            "energy_j is joules of the whole batch"
        )


def of_one_source(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The frame with the few rows of no stated source set aside where the others of their group state one; notes.

    Raises SweetspotError when a group has rows of several sources, or most state none.
    """
    told = pl.col("source") != UNSPECIFIED
    groups = frame.filter("valid").group_by(GROUP, maintain_order=True)
    sources = groups.agg(pl.col("source").unique().sort(), _untold=(~told).mean())
    mixed = sources.filter(pl.col("source").list.len() > 1)
    few = (pl.col("source").list.len() == 2) & pl.col("_untold").is_between(0, _FEW, closed="right")
    for row in mixed.filter(~few).head(1).iter_rows(named=True):
        raise SweetspotError(
            f"{group_name(row[name] for name in GROUP)}: rows from {' and '.join(row['source'])} sources together; fit "
            "them apart, or give them different names in column engine"
        )
    if not mixed.height:
        return frame, []
    marked = frame.join(
        mixed.select(*GROUP, _mixed=True), on=GROUP, how="left", nulls_equal=True, maintain_order="left"
    )
    aside = pl.col("_mixed").fill_null(False) & ~told & pl.col("valid")
    count = int(marked.select(aside.sum()).item())
    said = f"{count} rows without a known source are set aside, not fitted: the others of their group state theirs"
    return marked.with_columns(valid=pl.col("valid") & ~aside).drop("_mixed"), [said]


@cache
def _limits(gpu: str, several: bool) -> tuple[float, float]:
    """The least and the most power in W of a GPU of this name, or of several."""
    board, (low, high) = find(gpu), _PLAUSIBLE_POWER_W
    if board is None:
        return low, high
    return _OF_TDP[0] * board.tdp_w, high if several else _OF_TDP[1] * board.tdp_w


def notes(frame: pl.DataFrame) -> list[str]:
    """What a user should look at again, in a sentence each."""
    said = []
    if invalid := frame.height - int(frame["valid_as_told"].sum()):
        said.append(f"{invalid} of {frame.height} rows are marked invalid: kept, not fitted")
    valid = frame.filter(pl.col("valid"))
    power = pl.col("energy_j") / pl.col("duration_s")
    limits = [_limits(gpu, tells_boards(frame)) for gpu in valid["gpu"]]
    odd = valid.with_columns(
        power.alias("_power"), _low=pl.Series([low for low, _ in limits]), _high=pl.Series([high for _, high in limits])
    ).filter((pl.col("_power") < pl.col("_low")) | (pl.col("_power") > pl.col("_high")))
    if odd.height:
        row = odd.row(0, named=True)
        board = find(row["gpu"])
        known = f"{board.name} ({board.tdp_w:g} W) does not draw" if board else "no GPU draws"
        said.append(
            f"{odd.height} rows imply a power that {known}, first {row['_file']}, row {row['_row']}: "
            f"{row['energy_j']:g} J in {row['duration_s']:g} s is {row['_power']:.3g} W; is energy_j in joules "
            "(not Wh, kJ or mJ), of the whole batch (not of a request) and of one board, and duration_s in seconds?"
        )
    tokens = pl.col("batch") * (pl.col("input_tokens") + pl.col("output_tokens"))
    usual = valid.filter(pl.col("duration_s").is_null()).select((pl.col("energy_j") / tokens).median()).item()
    if usual is not None and usual < _SMALLEST_J_PER_TOKEN:
        said.append(
            f"rows without duration_s cost {usual:.2g} J a token (prompt and reply) in the median, less than a GPU "
            "needs for a small model; is energy_j in joules (not Wh or kJ), and of the whole batch?"
        )
    apart = valid.group_by(*GROUP, *CELL, maintain_order=True).agg(
        pl.len().alias("_rows"), (pl.col("energy_j").max() / pl.col("energy_j").min()).alias("_ratio")
    )
    apart = apart.filter(pl.col("_ratio") > _REPEATS)
    if apart.height:
        row = apart.row(0, named=True)
        said.append(
            f"{apart.height} cells have repetitions that differ by more than {_REPEATS:g} times, first batch "
            f"{row['batch']}, {row['input_tokens']} input and {row['output_tokens']} output tokens: "
            f"{row['_ratio']:.3g} times in {row['_rows']} repetitions"
        )
    return said
