"""Kills Snakemake at random moments of a simulated campaign and starts it again: `make kills`.

Each time either Snakemake alone dies, as when a login node drops it, and its jobs go on as orphans, or all of its
processes at once, as when the machine goes down. What the screen says is then typed. In the end, the rows of every
campaign must be those of one that nobody disturbed: none lost, none doubled, none different. Each session measures its
anchor cell again, so of that cell only the number of its own rows must be the same. Twice, a second Snakemake starts
beside the first; it must stop and say why.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import polars as pl

from checkouts import Checkout, copy_repository

_MOST_STARTS = 12  # of one campaign before it counts as hanging
# What differs between two runs of the same simulated cell: names of processes, and when they ran.
_OF_THE_RUN = ("session", "raw", "time_s", "temperature_c", "uncertainty_drift", "idle_after_w", "uncertainty_total")
_CELL = ["model", "batch", "input_tokens", "output_tokens"]
_KEY = [*_CELL, "visit", "number"]


def command() -> list[str]:
    """The command of README."""
    return [sys.executable, "-m", "snakemake", "--profile", "local"]


def started(checkout: Checkout) -> subprocess.Popen[str]:
    """Snakemake as the leader of a group of processes."""
    out = subprocess.PIPE
    return subprocess.Popen(
        command(), cwd=checkout.path, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def rows(checkout: Checkout) -> pl.DataFrame:
    """The rows of a finished campaign without its anchors, numbered within their visits, and what never differs."""
    frame = pl.read_parquet(checkout.out / "measurements.parquet")
    anchored = pl.col("anchor").any().over(_CELL)
    frame = frame.with_columns(anchored=anchored).filter(~pl.col("anchor"))
    number = pl.col("repetition").rank("ordinal").over(*_CELL, "visit")
    return frame.with_columns(number=number).drop(name for name in _OF_THE_RUN if name in frame.columns).sort(_KEY)


def to_the_end(checkout: Checkout, found: Counter[str]) -> None:
    """Start until it ends well, typing what the screen says."""
    for _ in range(_MOST_STARTS):
        done = subprocess.run(command(), cwd=checkout.path, capture_output=True, text=True, timeout=300)
        said = done.stdout + done.stderr
        if done.returncode == 0:
            return
        if "--unlock" in said:
            found["unlocked as told"] += 1
            subprocess.run([*command(), "--unlock"], cwd=checkout.path, check=True, capture_output=True)
        else:
            found["started again because another job held the cells"] += "still" in said or "another" in said
            time.sleep(1)
    raise SystemExit(f"{checkout.path}: did not end after {_MOST_STARTS} starts:\n{said[-2000:]}")


def _alike(name: str, kind: pl.DataType) -> pl.Expr:
    """Whether two values are the same, but for the rounding of a clock that started at another moment."""
    ours, theirs = pl.col(f"{name}_ours"), pl.col(name)
    same = ours.eq_missing(theirs)
    return same | ((ours - theirs).abs() <= 1e-9 * theirs.abs()) if kind.is_float() else same


def compare(checkout: Checkout, expected: pl.DataFrame, found: Counter[str]) -> None:
    """Count the rows that are lost, doubled or different."""
    ours = rows(checkout)
    found["rows doubled"] += ours.height - ours.unique(_KEY).height
    lost = expected.join(ours, on=_KEY, how="anti", nulls_equal=True)
    found["rows lost"] += lost.height
    if lost.height:
        print(lost.select(*_KEY, "repetition", "energy_j"), flush=True)
    both = expected.join(ours, on=_KEY, how="inner", suffix="_ours", nulls_equal=True)
    both = both.filter(~pl.col("anchored"))
    alike = {name: _alike(name, expected.schema[name]) for name in expected.columns if name not in _KEY}
    same = both.filter(pl.all_horizontal(alike.values()))
    for name, equal in alike.items():
        if differing := both.filter(~equal).height:
            found[f"differing in {name}"] += differing
    found["rows different"] += both.height - same.height
    found["rows compared"] += both.height


def main() -> None:
    """Run so many campaigns, each with a kill, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="how many times (default: 40)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    options = parser.parse_args()
    rng, found = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as directory:
        whole = Checkout(copy_repository(Path(directory) / "whole"))
        whole.configure()
        start = time.monotonic()
        to_the_end(whole, found)
        takes_s, expected = time.monotonic() - start, rows(whole)
        print(f"undisturbed: {expected.height} rows in {takes_s:.0f} s", flush=True)
        for number in range(options.kills):
            checkout = Checkout(copy_repository(Path(directory) / str(number)))
            checkout.configure()
            run = started(checkout)
            time.sleep(rng.uniform(1, 0.95 * takes_s))
            if number % 20 == 19 and run.poll() is None:
                second = subprocess.run(command(), cwd=checkout.path, capture_output=True, text=True)
                found["second Snakemake refused"] += second.returncode != 0 and "lock" in second.stdout + second.stderr
            alone = rng.random() < 0.5
            if run.poll() is None:
                (os.kill if alone else os.killpg)(run.pid, signal.SIGKILL)
                found["kills of Snakemake alone" if alone else "kills of all its processes"] += 1
            run.wait()
            to_the_end(checkout, found)
            compare(checkout, expected, found)
            subprocess.run(["rm", "-rf", checkout.path], check=True)
            print(f"{number + 1} of {options.kills}: {dict(found)}", flush=True)
    bad = sum(found[name] for name in ("rows doubled", "rows lost", "rows different"))
    raise SystemExit(f"{bad} rows are wrong" if bad else 0)


if __name__ == "__main__":
    main()
