"""Atomic file writes, and digests of the inputs that results depend on. Standard library only."""

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any


def key(inputs: Mapping[str, Any]) -> str:
    """Digest of everything a measurement depends on; equal inputs in any order give the same 16 hex digits."""
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader never sees half of it."""
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
