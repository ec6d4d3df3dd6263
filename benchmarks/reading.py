"""What understanding a log costs over reading it: `python benchmarks/reading.py` (half a minute).

Prints seconds for a million requests, with times and a status, and the ratio to polars, which reads the same columns of
the same file in the same run without judging them (goals: 10 s, 10 x).
"""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.table import requests

ROWS, RUNS = 1_000_000, 3


def write(path: Path) -> None:
    """A log as LiteLLM has it; one request in 500 failed."""
    rng = random.Random(1)
    with path.open("w") as file:
        file.write("request_id,startTime,model,prompt_tokens,completion_tokens,status\n")
        for i in range(ROWS):
            when = f"2026-03-{1 + i // 86400:02d}T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}.5Z"
            status = "failure" if i % 500 == 0 else "success"
            file.write(f"r{i},{when},m,{rng.randint(1, 8192)},{rng.randint(1, 2048)},{status}\n")


def best(action: Callable[[], Any]) -> float:
    """The least seconds of some runs."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Write a log, read it in both ways, and print the times."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.csv"
        write(path)
        bare = best(lambda: pl.read_csv(path, try_parse_dates=True))
        ours = best(lambda: requests.read(path))
    print(f"{ROWS:,} requests: {ours:.2f} s, polars alone {bare:.2f} s: {ours / bare:.1f} x")


if __name__ == "__main__":
    main()
