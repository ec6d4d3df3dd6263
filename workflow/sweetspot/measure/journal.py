"""Append-only record of what was measured: one JSON object a line, on disk before the next cell starts.

A measurement is expensive, so a visit of a cell outlives everything: a crash, a cancelled job, a new grid, another
partition into jobs. Every line carries the key of what it measured; a line with another key is left alone and ignored.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

Cell = tuple[int, int]  # (input_tokens, output_tokens)


@dataclass(frozen=True)
class Place:
    """Where a block of cells, and the engine that measures it, lie in a campaign's directory."""

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

    @cached_property
    def rows(self) -> Path:
        """The rows of this block."""
        return self._of("measurements", f"{self.block}.jsonl")

    def _of(self, kind: str, *file: str) -> Path:
        return self.directory.joinpath(kind, self.model, f"bs{self.batch}", *file)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Write one line and force it to the disk. A half line left by an earlier crash is closed off first.

    Raises OSError when the disk refuses; what was written before stays readable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(file):
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def claimed(place: Place, cells: Iterable[Cell]) -> Iterator[None]:
    """Hold these cells against any other process, also on other machines; wait for one that holds some.

    After a run was killed its jobs may live on beside those of the next run: without this both would measure the same.
    Where the file system has no locks, a warning takes their place.
    """
    path = place.journal.with_name(".claims")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock of the process on one byte a cell: children do not inherit it, and its end frees it, however it ends. Taken
    # in order, so that two processes never wait for each other.
    with path.open("ab") as file:
        for n, m in sorted(cells):
            span = 1, n << 24 | m
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *span)
            except (BlockingIOError, PermissionError):
                print(f"waiting for another job that measures {n} -> {m} tokens", file=sys.stderr, flush=True)
                fcntl.lockf(file, fcntl.LOCK_EX, *span)
            except OSError as error:
                print(f"warning: no locks on {path} ({error.strerror}): run one workflow at a time", file=sys.stderr)
                break
        yield


def is_claimed(place: Place, cells: Iterable[Cell]) -> bool:
    """Whether a process holds one of these cells now; False where the file system has no locks."""
    try:
        with place.journal.with_name(".claims").open("rb") as file:
            for n, m in cells:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, n << 24 | m)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def records(paths: Iterable[Path], wanted_key: str | None = None) -> list[dict[str, Any]]:
    """Every record, or those that carry `wanted_key`, file by file in the order of writing.

    A line that is not whole JSON (a crash in the middle of a write) is no record: it is passed over.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(paths):
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and wanted_key in (None, record.get("key")):
                found.append(record)
    return found


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
