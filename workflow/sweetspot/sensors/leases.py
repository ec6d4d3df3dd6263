"""Boards that a job has to itself on a machine without a scheduler: a locked file for each, by UUID.

The lock belongs to the process, and to workers that it forks, so that it ends with them however they end.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sweetspot.errors import UnfitMachine

_HELD: dict[str, IO[bytes]] = {}  # by UUID, until this process ends


@contextmanager
def taken(uuid: str) -> Iterator[None]:
    """Take a board for this process; give it back if the block fails. Raises UnfitMachine if another job has it."""
    if uuid in _HELD:
        yield
        return
    directory = Path(tempfile.gettempdir(), f"sweetspot-gpus-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    file = (directory / uuid).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UnfitMachine(
            f"GPU {uuid} is in use by another measuring job of this user; wait for it, end it, or use another GPU"
        ) from None
    try:
        yield
    except BaseException:
        file.close()
        raise
    _HELD[uuid] = file
