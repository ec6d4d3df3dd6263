"""Joins the blocks that the measuring jobs wrote into one checked table of measurements."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.files import is_as_written
from sweetspot.measure import journal
from sweetspot.table.files import shortened, write_parquet
from sweetspot.table.machines import flag_changes
from sweetspot.table.read import read

_MEASURED = ("energy_j", "energy_instant_j", "energy_average_j", "duration_s", "batch_runs")  # the same in any block


def check_blocks(paths: Sequence[Path], cells: Sequence[int]) -> None:
    """Set aside every block (JSON Lines) that changed since it was written, or that lacks some of its `cells`.

    The next run writes it again. Raises SweetspotError if there is such a block.
    """
    damaged = [path for path, count in zip(paths, cells, strict=True) if len(_cells_of_lines(path)) != count]
    for path in damaged:
        path.replace(path.with_suffix(".damaged"))
    if damaged:
        raise SweetspotError(
            f"cut short or damaged: {shortened([str(path) for path in damaged], ', ')}; renamed to .damaged. "
            "Run again: they are written again from their journals, and nothing is measured twice"
        )


def _cells_of_lines(path: Path) -> set[tuple[int, int]]:
    """The cells of a block (input_tokens, output_tokens); none if it is damaged."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()] if is_as_written(path) else []
        return {(row["input_tokens"], row["output_tokens"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def collect(paths: Sequence[Path], output: Path) -> None:
    """Join the measured blocks (JSON Lines) into one checked Parquet table; print notes and changes of the machine.

    Raises SweetspotError as `read` and `once` do.
    """
    rows = read(paths)
    frame, copies = once(rows.frame)
    frame, warnings = flag_changes(frame)
    said = [f"{copies} rows are copies of others and were left out"] if copies else []
    for warning in [*said, *rows.notes, *warnings]:
        print(f"warning: {warning}")
    write_parquet(frame, output)


def once(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The frame without further copies of measured rows, and how many there were.

    A measured row is known by its model, batch, cell, visit, repetition, session and start; a table without these
    columns stays as it is. Raises SweetspotError if two rows of one identity have different energies or times.
    """
    identity = ["model", "batch", "session", *journal.IDENTITY]
    if not set(identity) <= set(frame.columns):
        return frame, 0
    measured = pl.all_horizontal(pl.col("session", "time_s", "energy_j").is_not_null())
    first = pl.struct(*identity, measured.alias("_measured")).is_first_distinct()
    values = [name for name in _MEASURED if name in frame.columns]
    odd = frame.filter(measured & ~first & pl.struct(*identity, *values).is_first_distinct())
    if odd.height:
        known = ", ".join(f"{name} {odd[0, name]}" for name in identity)
        raise SweetspotError(f"two rows disagree on one measurement ({known}); remove the one that was changed")
    kept = frame.filter(~measured | first)
    return kept, frame.height - kept.height
