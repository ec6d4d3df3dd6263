"""Programs that tests run for real, installed from Debian's packages where that is possible."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def have(is_there: Callable[[], bool], packages: Sequence[str]) -> str:
    """Why the programs of these packages are not here, or nothing. Installs them first if it may.

    One process at a time: two that install at once would each be refused by the other's lock.
    """
    if is_there():
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"install {' and '.join(packages)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "sweetspot-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_there():
            for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
                done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=environment)
    return "" if is_there() else f"could not install {', '.join(packages)}: {done.stderr.strip()[-300:]}"


def skip(what: str) -> None:
    """Skip loudly; where a change is judged (CI=true), what cannot be tested is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
