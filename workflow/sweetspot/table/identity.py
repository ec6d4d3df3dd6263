"""Rows that are there twice: copies of a file, or a file and its conversion, are counted once."""

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table.schema import CELL, GROUP

# With a cell and a repetition, these identify a measured row: no two measurements begin at one moment of one session.
_MOMENT = ("session", "visit", "start", "started", "time_s", "run_id", "timestamp")
_COPY = 0.5  # share of a file's rows that another file has too from which it is a copy: chance repeats fewer


def without_copies(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Drop rows that another file, or the same measurement, has already; also returns a note that counts them.

    Raises SweetspotError, naming both, if one measurement has two energies.
    """
    moment = [name for name in _MOMENT if name in frame.columns and not frame[name].dtype.is_nested()]
    aside = ("_file", "_row", "_off", "_gpus", "valid", "reasons", "valid_as_given")
    place = pl.format("{}, row {}", "_file", "_row")
    whole = [name for name in frame.columns if name not in aside and not frame[name].dtype.is_nested()]
    seen = frame.select("_file", _seen=pl.col("_file").first().over(whole) != pl.col("_file"))
    copies = seen.select(pl.col("_seen") & (pl.col("_seen").mean().over("_file") >= _COPY)).to_series()
    if "session" in moment and len(moment) > 1 and "repetition" in frame.columns:
        marked = frame.filter(
            pl.col("valid") & pl.all_horizontal(pl.col(name).is_not_null() for name in (*moment, "repetition"))
        )
        identity = [*GROUP, *CELL, *moment, "repetition"]
        clash = marked.group_by(identity, maintain_order=True).agg(
            place.first().alias("_one"), place.last().alias("_other"), _kinds=pl.col("energy_j").n_unique()
        )
        for row in clash.filter(pl.col("_kinds") > 1).head(1).iter_rows(named=True):
            raise SweetspotError(
                f"{row['_one']} and {row['_other']} are one measurement (session {row['session']}, repetition "
                f"{row['repetition']}) with two energies; remove the wrong one"
            )
        known = pl.all_horizontal(pl.col(name).is_not_null() for name in moment)
        copies = copies | frame.select(known & ~pl.struct(whole).is_first_distinct()).to_series()
    if not copies.any():
        return frame, []
    first = frame.filter(copies).row(0, named=True)
    note = f"{copies.sum()} rows are there twice and counted once, first {first['_file']}, row {first['_row']}"
    return frame.filter(~copies), [note]
