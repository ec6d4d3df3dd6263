"""Append-only record of finished cells: one JSON object a line, on disk before the next cell starts.

A measurement is expensive, so a finished cell outlives everything: a crash, a cancelled job, a new grid, another
partition into jobs. Every line carries the key of what it measured; a line with another key is left alone and ignored.
"""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

Cell = tuple[int, int]  # (input_tokens, output_tokens)


def key(inputs: Mapping[str, Any]) -> str:
    """Digest of everything a measurement depends on; equal inputs in any order give the same 16 hex digits."""
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


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


def finished(paths: Iterable[Path], wanted_key: str) -> dict[Cell, list[dict[str, Any]]]:
    """Rows of every finished cell that carries `wanted_key`, by cell; the last record of a cell counts.

    A line that is not whole JSON (a crash in the middle of a write) is not a finished cell: it is passed over.
    """
    cells: dict[Cell, list[dict[str, Any]]] = {}
    for path in sorted(paths):
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("key") == wanted_key:
                cells[record["input_tokens"], record["output_tokens"]] = record["rows"]
    return cells


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
