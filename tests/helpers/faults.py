"""Runs that a test breaks: started in the background, watched through their journals, judged by what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from checkouts import Checkout

# Cells that take a few tenths of a second each: many repetitions, so that a job lives long enough to be hit.
SLOW = {
    "campaign": "faulty",
    "input_tokens": [64, 128, 192, 256, 320],
    "output_tokens": [64, 128, 192, 256],
    "protocol": {"repetitions": 20, "min_repetitions": 20, "visits": 1, "anchor_every": 0},
}
CELLS, REPETITIONS = 20, 20
COLLECT = ("--until", "collect")  # the analysis that follows is not what breaks
_VISIT = ("input_tokens", "output_tokens", "visit")


def out(checkout: Checkout) -> Path:
    """Where the results of such a campaign lie."""
    return checkout.path / "results/faulty"


@contextmanager
def running(checkout: Checkout, *arguments: str, profile: str = "local") -> Iterator[subprocess.Popen[str]]:
    """A run in the background, in a process group of its own; whatever is left of it ends when the test is done."""
    command = [sys.executable, "-m", "snakemake", "--profile", profile, *arguments]
    with (checkout.path / "run.log").open("a") as log:
        run = subprocess.Popen(command, cwd=checkout.path, stdout=log, stderr=log, text=True, start_new_session=True)
    try:
        yield run
    finally:
        for process in _processes(checkout):
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        run.wait()


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until the condition holds; returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


def lines(checkout: Checkout) -> list[str]:
    """Every line of every journal."""
    journals = sorted(out(checkout).glob("journal/*/*/*.jsonl"))
    return [line for path in journals for line in path.read_text().splitlines()]


def visits(checkout: Checkout, model: str = "*", batch: object = "*") -> list[tuple[Any, ...]]:
    """Every visit that the journals hold whole: key, model, batch, input_tokens, output_tokens, number."""
    made = []
    for path in sorted(out(checkout).glob(f"journal/{model}/bs{batch}/*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if "rows" in record:
                made.append((record["key"], *path.parts[-3:-1], *(record[name] for name in _VISIT)))
    return made


def assert_whole(checkout: Checkout, blocks: int) -> None:
    """Every cell of so many blocks was measured once, and every row of it is in the table."""
    counted = Counter(visits(checkout))
    assert {visit: count for visit, count in counted.items() if count > 1} == {}, "measured twice"
    assert len(counted) == blocks * CELLS
    rows = pl.read_parquet(out(checkout) / "measurements.parquet")
    assert rows.height == rows.filter("valid").height == blocks * CELLS * REPETITIONS
    assert not checkout.planned().keys() & {"build_engine", "measure", "collect"}


def measuring(checkout: Checkout, model: str, batch: int, other_than: int = 0) -> int | None:
    """The process that measures this model and batch here."""
    for process in _processes(checkout):
        with suppress(OSError, ValueError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            job = json.loads(words[words.index(b"--job") + 1])
            of_session = words[1:4] == [b"-m", b"sweetspot.measure.session", b"measure"]
            if of_session and (job["model"], job["batch"]) == (model, batch) and int(process.name) != other_than:
                return int(process.name)
    return None


def _processes(checkout: Checkout) -> list[Path]:
    """The processes that work in this directory, as directories of /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "cwd") == str(checkout.path.resolve()):
                found.append(process)
    return found


def logged(checkout: Checkout) -> str:
    """What the measuring jobs' logs say; Snakemake removes a log before a job runs again."""
    text = ""
    for path in out(checkout).glob("logs/measure/*/*/*.log"):
        with suppress(FileNotFoundError):
            text += path.read_text()
    return text


def plan(checkout: Checkout) -> str:
    """What `sweetspot plan` says."""
    command = [sys.executable, "-m", "sweetspot", "plan"]
    return subprocess.run(command, cwd=checkout.path, capture_output=True, text=True, check=True).stdout
