"""From the blocks that the measuring jobs wrote to one checked table of measurements."""

import json
from collections.abc import Sequence
from pathlib import Path

from sweetspot.errors import SweetspotError
from sweetspot.files import is_as_written
from sweetspot.table.files import write_parquet
from sweetspot.table.machines import flag_changes
from sweetspot.table.read import read

_SHOWN = 5  # damaged blocks named before the rest are counted


def check_blocks(paths: Sequence[Path], cells: Sequence[int]) -> None:
    """Set aside every block (JSON Lines) that is not as it was written, with all of its so many cells.

    The next run makes it again.

    Raises SweetspotError where there is one.
    """
    damaged = [path for path, count in zip(paths, cells, strict=True) if len(_cells_of_lines(path)) != count]
    for path in damaged:
        path.replace(path.with_suffix(".damaged"))
    if damaged:
        raise SweetspotError(
            f"cut short or damaged: {', '.join(map(str, damaged[:_SHOWN]))}{' and more' * (len(damaged) > _SHOWN)}; "
            "set aside as .damaged. Run again: they are made again from their journals, and nothing is measured twice"
        )


def _cells_of_lines(path: Path) -> set[tuple[int, int]]:
    """The cells of a block (input_tokens, output_tokens); none where it is not the rows that were written."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()] if is_as_written(path) else []
        return {(row["input_tokens"], row["output_tokens"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def collect(paths: Sequence[Path], output: Path) -> None:
    """Join the measured blocks (JSON Lines) into one checked Parquet table; prints its notes and changes of machine.

    Raises SweetspotError as `read` does.
    """
    rows = read(paths)
    frame, warnings = flag_changes(rows.frame)
    for warning in [*rows.notes, *warnings]:
        print(f"warning: {warning}")
    write_parquet(frame, output)
