"""Atomic file writes, and digests of the inputs that results depend on. Standard library only."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError, first_line

_MOST_BYTES = 64 << 20


def key(inputs: Mapping[str, Any]) -> str:
    """Digest of everything a measurement depends on; equal inputs in any order give the same 16 hex digits."""
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


class NotJson(SweetspotError, ValueError):
    """A file is not the JSON object that it should be."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises NotJson if there is none in its first 64 MB, OSError if it cannot be read."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    try:
        found = json.loads(data[:_MOST_BYTES].decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise NotJson(f"{path}: not valid JSON ({first_line(error)[:200]}); truncated? Copy the file again") from None
    if not isinstance(found, dict):
        raise NotJson(f"{path}: holds a {type(found).__name__}, not a JSON object; copy the file again")
    return found


def shipped() -> Path:
    """Where workflow, configurations and profiles lie: in the installed package, or around it in a clone."""
    inside = Path(__file__).parent / "shipped"
    return inside if inside.exists() else Path(__file__).parents[2]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader never sees half of it. The text of a CSV file runs in no spreadsheet."""
    if path.suffix == ".csv" and isinstance(content, str):
        content = _inert(content)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _inert(table: str) -> str:
    """A CSV text in which what a spreadsheet takes for a formula has an apostrophe before it; numbers stay numbers."""
    rows = list(csv.reader(io.StringIO(table, newline="")))
    if not any(_runs(cell) for row in rows for cell in row):
        return table
    text = io.StringIO()
    csv.writer(text).writerows([f"'{cell}" if _runs(cell) else cell for cell in row] for row in rows)
    return text.getvalue().replace("\r\n", "\n")


def _runs(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        float(cell)
        return False
    return cell[:1] in tuple("=+@\t\r") or (cell[:1] == "-" and len(cell) > 1)


def write_with_digest(path: Path, content: str) -> None:
    """Write FILE.sha256 in the format of `sha256sum --check`, then the file itself, each atomically."""
    data = content.encode()
    write_atomically(_digest_file(path), f"{sha256(data).hexdigest()}  {path.name}\n")
    write_atomically(path, data)


def is_as_written(path: Path) -> bool:
    """Whether a file matches its FILE.sha256; True without one (an earlier version, or a file copied alone).

    Raises OSError if it cannot be read.
    """
    data = path.read_bytes()
    try:
        return _digest_file(path).read_text().split()[:1] == [sha256(data).hexdigest()]
    except FileNotFoundError:
        return True


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
