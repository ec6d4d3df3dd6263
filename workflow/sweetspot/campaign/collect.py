"""Joins the blocks that the measuring jobs wrote into one checked table of measurements."""

import json
from collections.abc import Sequence
from pathlib import Path

from sweetspot.errors import SweetspotError
from sweetspot.files import is_as_written
from sweetspot.table.files import shortened, write_parquet
from sweetspot.table.machines import flag_changes
from sweetspot.table.read import read


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

    Raises SweetspotError as `read` does.
    """
    rows = read(paths)
    frame, warnings = flag_changes(rows.frame)
    for warning in [*rows.notes, *warnings]:
        print(f"warning: {warning}")
    write_parquet(frame, output)
