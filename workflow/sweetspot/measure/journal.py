"""Append-only record of what was measured: one JSON object per line, on disk before the next cell starts.

Measurements are expensive, so a visit survives crashes, cancelled jobs, a new grid and a new partition into jobs.
Every line carries the key of what it measured; lines with another key are ignored and left alone.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError

Cell = tuple[int, int]  # (input_tokens, output_tokens)

IDENTITY = ("input_tokens", "output_tokens", "visit", "repetition", "time_s")
"""What tells measured rows of one session and one (model, batch) apart."""

_CELL = frozenset({"input_tokens", "output_tokens"})
_OF_A_VISIT = _CELL | {"visit"}
_OF_A_ROW = _CELL | {"repetition", "session", "valid", "reasons", "flags", "energy_j", "duration_s"}
_OF_A_ROW |= {"uncertainty_gain", "uncertainty_counter_step", "uncertainty_tail"}


@dataclass(frozen=True)
class Place:
    """The files of a block of cells and its engine in a campaign's directory."""

    directory: Path
    model: str
    batch: int
    block: str = ""

    @property
    def architecture(self) -> Path:
        """The resolved architecture."""
        return self.directory / "architectures" / f"{self.model}.json"

    @property
    def engine(self) -> Path:
        """The directory of the engine."""
        return self._of("engines")

    @property
    def journals(self) -> list[Path]:
        """The journals of all blocks of this model and batch."""
        return sorted(self._of("journal").glob("*.jsonl"))

    @property
    def journal(self) -> Path:
        """The journal of this block."""
        return self._of("journal", f"{self.block}.jsonl")

    @property
    def raw(self) -> Path:
        """The directory of raw samples."""
        return self._of("raw")

    @property
    def rows(self) -> Path:
        """The rows of this block."""
        return self._of("measurements", f"{self.block}.jsonl")

    def _of(self, kind: str, *file: str) -> Path:
        return self.directory.joinpath(kind, self.model, f"bs{self.batch}", *file)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line and sync it to disk, after ending a line that a crash cut short. Raises OSError if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read(1) not in (b"", b"\n"):
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def claimed(place: Place, cells: Iterable[Cell]) -> Iterator[None]:
    """Lock these cells against other processes, on any machine; wait for a process that holds one.

    Jobs of a killed run may still be running when the next run starts; without locks both would measure the same cells.
    If the file system has no locks, a warning is printed instead.
    """
    path = place.journal.with_name(".claims")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process locks one byte per cell. Children do not inherit the locks, and they are released however the process
    # ends. Locks are taken in order, so two processes never wait for each other.
    with path.open("ab") as file:
        for n, m in sorted(cells):
            span = 1, n << 24 | m
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *span)
            except (BlockingIOError, PermissionError):
                print(f"waiting for another job that is measuring {n} -> {m} tokens", file=sys.stderr, flush=True)
                fcntl.lockf(file, fcntl.LOCK_EX, *span)
            except OSError as error:
                print(f"warning: cannot lock {path} ({error.strerror}): run one workflow at a time", file=sys.stderr)
                break
        yield


def is_claimed(place: Place, cells: Iterable[Cell]) -> bool:
    """Whether a process holds one of these cells now; False if the file system has no locks."""
    try:
        with place.journal.with_name(".claims").open("rb") as file:
            for n, m in cells:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, n << 24 | m)
    except OSError as error:
        return isinstance(error, (BlockingIOError, PermissionError))
    return False


def records(paths: Iterable[Path], wanted_key: str | None = None) -> list[dict[str, Any]]:
    """All records, or those with `wanted_key`, by file in the order of writing; not lines that a crash cut short.

    A line that is there twice, as in a copy of a journal beside it, counts once. A line that lacks what its kind of
    record has is left out with a warning. Raises SweetspotError if two lines disagree on a measured row.
    """
    found: list[dict[str, Any]] = []
    lines, rows = set[bytes](), dict[tuple[Any, ...], Path]()
    for path in sorted(paths):
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            line = line.strip()  # of a carriage return, if it came by way of Windows
            if not line or line in lines:
                continue
            lines.add(line)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not _is_whole(record):
                print(f"warning: {path}, line {number}: damaged, not used", file=sys.stderr)
                continue
            if wanted_key not in (None, record["key"]):
                continue
            for row in record.get("rows", ()):
                # A session numbers the repetitions of a cell, whatever visit they belong to.
                identity = record["key"], row["session"], row["repetition"], row["input_tokens"], row["output_tokens"]
                if identity in rows:
                    raise SweetspotError(
                        f"{path}, line {number}: a row of {row['input_tokens']} -> {row['output_tokens']} tokens is "
                        f"also in {rows[identity]}, with other content; move the changed copy out of the directory"
                    )
                rows[identity] = path
            found.append(record)
    return found


def _is_whole(record: Any) -> bool:
    """Whether a line of a journal has what every record of its kind has."""
    if not isinstance(record, dict) or not {"key", "session"} <= record.keys():
        return False
    if "rows" in record:
        rows = record["rows"]
        known = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= _OF_A_ROW for row in rows)
        return known and record.keys() >= _OF_A_VISIT
    return "failed" not in record or _CELL.issubset(record)
