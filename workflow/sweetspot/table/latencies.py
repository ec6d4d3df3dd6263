"""The columns of latencies in a table: which of their values can be times of a request's tokens."""

import polars as pl

from sweetspot.table.numbers import numbers
from sweetspot.vocabulary import LATENCIES

_LONGER = 1.05  # than the run: no request takes longer, but clocks differ a little


def clean(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The frame with its latencies as numbers, null where they are none; and a note for each column that lost values.

    A time is above 0 and not longer than the run, if the table has durations.
    """
    notes = []
    for name in filter(frame.columns.__contains__, LATENCIES):
        given, seconds = frame[name], numbers(frame[name])
        longest = frame["duration_s"].fill_null(float("inf")) * _LONGER
        seconds = seconds.set(~((seconds > 0) & (seconds <= longest)).fill_null(False), None)
        lost = given.is_not_null() & seconds.is_null() & frame["valid"]
        if lost.any():
            where = frame.filter(lost).row(0, named=True)
            notes.append(
                f"{name}: values left out, as they are not times in s between 0 and the run's duration: {lost.sum()}, "
                f"first {where['_file']}, row {where['_row']}: {where[name]}"
            )
        frame = frame.with_columns(seconds)
    return frame, notes
