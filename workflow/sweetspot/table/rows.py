"""What the rows of a table are to each other: copies, repetitions, other set-ups, other sources, other units."""

from math import log

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table.numbers import numbers
from sweetspot.table.schema import CELL, GROUP, group_name
from sweetspot.table.words import folded, meanings
from sweetspot.vocabulary import LATENCIES, UNSPECIFIED

# Frames here have columns _file and _row, which say where each row comes from. Each check returns the frame and notes.
_PLACE = pl.format("{}, row {}", "_file", "_row")
# With a cell and a repetition, these identify a measured row: no two measurements begin at one moment of one session.
_MOMENT = ("session", "visit", "start", "started", "time_s", "run_id", "timestamp")
_COPY = 0.5  # share of a file's rows that another file has too from which it is a copy: chance repeats fewer
_LONGER = 1.05  # than the run: no request takes longer, but clocks differ a little
# Rows with different numbers of boards, or values under these headers (folded), are not repetitions of one measurement.
_BOARDS = ("gpus", "tensor_parallel", "pipeline_parallel")
_SETUPS = ("dp", "ep", "task", "dataset", "quantization")
_MANY = 0.1  # share of cells with mixed units above which a table is refused
_TWO_UNITS = 50.0  # repetitions of a cell never differ by this factor; kilojoules and watt-hours do
_FEW = 0.5  # share of a group's rows without a source up to which they are set aside


def without_copies(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Drop rows that another file, or the same measurement, has already.

    Raises SweetspotError, naming both, if one measurement has two energies.
    """
    plain = [name for name, kind in frame.schema.items() if not kind.is_nested()]
    moment = [name for name in _MOMENT if name in plain]
    aside = ("_file", "_row", "_off", "_gpus", "valid", "reasons", "valid_as_given")
    whole = [name for name in plain if name not in aside]
    seen = pl.col("_file").first().over(whole) != pl.col("_file")
    share = pl.col("_seen").mean().over("_file")
    again = frame.with_columns(_seen=seen).select(pl.col("_seen") & (share >= _COPY)).to_series()
    if "session" in moment and len(moment) > 1 and "repetition" in frame.columns:
        known = pl.all_horizontal(pl.col(moment).is_not_null())
        identity = [*GROUP, *CELL, *moment, "repetition"]
        measured = frame.filter("valid", known, pl.col("repetition").is_not_null())
        clash = measured.group_by(identity, maintain_order=True).agg(
            _one=_PLACE.first(), _other=_PLACE.last(), _kinds=pl.col("energy_j").n_unique()
        )
        for row in clash.filter(pl.col("_kinds") > 1).head(1).iter_rows(named=True):
            raise SweetspotError(
                f"{row['_one']} and {row['_other']} are one measurement (session {row['session']}, repetition "
                f"{row['repetition']}) with two energies; remove the wrong one"
            )
        again = again | frame.select(known & ~pl.struct(whole).is_first_distinct()).to_series()
    if not again.any():
        return frame, []
    first = frame.filter(again).select(_PLACE).item(0, 0)
    return frame.filter(~again), [f"{again.sum()} rows are there twice and counted once, first {first}"]


def with_latencies(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Latencies as numbers, null where they are none: a time is above 0 and not longer than the run, if known."""
    notes = []
    for name in filter(frame.columns.__contains__, LATENCIES):
        seconds = numbers(frame[name])
        longest = frame["duration_s"].fill_null(float("inf")) * _LONGER
        seconds = seconds.set(~((seconds > 0) & (seconds <= longest)).fill_null(False), None)
        lost = frame.filter(frame[name].is_not_null() & seconds.is_null() & frame["valid"])
        if lost.height:
            notes.append(
                f"{name}: values left out, as they are not times in s between 0 and the run's duration: {lost.height}, "
                f"first {lost.select(pl.format('{}: {}', _PLACE, name)).item(0, 0)}"
            )
        frame = frame.with_columns(seconds)
    return frame, notes


def apart(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Keep rows of different set-ups apart by giving each its own engine name.

    Two GPU counts or two tasks in one cell are not repetitions of one measurement.
    """
    notes = []
    for name in [name for name, kind in frame.schema.items() if _is_setup(name) and not kind.is_nested()]:
        if name == "gpus" and "energy_j_per_gpu" in frame.columns:
            continue  # in our own tables it repeats what `parallelism` says
        cells = frame.filter("valid").group_by(*GROUP, *CELL).agg(_values=pl.col(name).n_unique())
        mixed = cells.filter(pl.col("_values") > 1).select(GROUP).unique()
        if mixed.height:
            value = pl.concat_str(pl.lit(f"{name}="), pl.col(name).cast(pl.String).fill_null("unknown"))
            named = pl.when(pl.col("engine") == UNSPECIFIED).then(value).otherwise(pl.col("engine") + " " + value)
            is_mixed = _is_among(frame, mixed)
            frame = frame.with_columns(engine=pl.when(is_mixed).then(named).otherwise("engine"))
            notes.append(f'cells have several values of {name}: each is kept apart, as engine "… {name}=…"')
    return frame, notes


def _is_setup(name: str) -> bool:
    return folded(name) in _SETUPS or any(one.quantity in _BOARDS for one in meanings(name))


def _is_among(frame: pl.DataFrame, groups: pl.DataFrame) -> pl.Series:
    """Which rows are of one of the groups."""
    marked = groups.select(*GROUP, _among=True)
    return frame.join(marked, on=GROUP, how="left", nulls_equal=True, maintain_order="left")["_among"].fill_null(False)


def check_units(frame: pl.DataFrame) -> None:
    """Raise SweetspotError, naming two rows, if repetitions of many cells differ as much as two units do.

    A cell in which most repetitions agree does not count, nor do a few cells: `fit.outliers` handles those.
    """
    energy = pl.col("energy_j")
    place = pl.format("{} ({} J)", _PLACE, energy.round(3))
    near = (energy / energy.quantile(0.5, "lower")).log().abs() < log(_TWO_UNITS) / 2
    cells = frame.filter("valid").sort("energy_j").group_by(*GROUP, *CELL, maintain_order=True)
    spread = cells.agg(low=place.first(), high=place.last(), ratio=energy.last() / energy.first(), near=near.mean())
    divided = spread.filter((pl.col("ratio") > _TWO_UNITS) & (pl.col("near") <= 0.5))
    if divided.height > _MANY * spread.height:
        row = divided.row(0, named=True)
        cell = f"batch {row['batch']}, {row['input_tokens']} input and {row['output_tokens']} output tokens"
        raise SweetspotError(
            f"{row['high']} and {row['low']} are the same cell ({cell}) but differ {row['ratio']:.0f}-fold: two units? "
            "energy_j must be joules of the whole batch"
        )


def of_one_source(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Set aside the few rows of a group that state no source, if its other rows state one.

    Raises SweetspotError if a group has rows from several sources, or if most of its rows state none.
    """
    unstated = pl.col("source") == UNSPECIFIED
    groups = frame.filter("valid").group_by(GROUP, maintain_order=True)
    sources = groups.agg(pl.col("source").unique().sort(), _unstated=unstated.mean())
    mixed = sources.filter(pl.col("source").list.len() > 1)
    few = (pl.col("source").list.len() == 2) & pl.col("_unstated").is_between(0, _FEW, closed="right")
    for row in mixed.filter(~few).head(1).iter_rows(named=True):
        raise SweetspotError(
            f"{group_name(row[name] for name in GROUP)}: mixes rows from {' and '.join(row['source'])} sources; fit "
            "them separately, or give them different names in column engine"
        )
    aside = _is_among(frame, mixed) & (frame["source"] == UNSPECIFIED) & frame["valid"]
    said = "rows without a known source are set aside and not fitted; other rows of their group state theirs"
    return frame.with_columns(valid=frame["valid"] & ~aside), [f"{aside.sum()} {said}"] if aside.any() else []
