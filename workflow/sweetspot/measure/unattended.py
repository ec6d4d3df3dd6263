"""A whole campaign on one machine with a GPU and nothing else: no scheduler, no Snakemake, no network.

`sweetspot unattended --plan PLAN --directory DIR --seconds S` runs the jobs of a plan one after another, each in its
own process, so that an engine that breaks its process breaks nothing else. DIR ends up as Snakemake would have left it,
so the analysis can continue elsewhere. Besides the engine, only the standard library is needed.
"""

import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweetspot import __version__
from sweetspot.errors import SweetspotError
from sweetspot.files import read_object
from sweetspot.measure import journal, pace, probe
from sweetspot.measure.journal import Cell, Place
from sweetspot.measure.rows import place
from sweetspot.measure.session import Block, Visit

SCHEMA_VERSION = 1
INCOMPLETE = 3  # exit status: time ran out before everything was measured

_GRACE_S = 60.0  # a job that exceeds its time by more than this is considered hung and is killed
_FAR = 0.2  # relative; the probe is accurate to a few percent
_TRIES = 3  # failures after which this run gives up a block
_ENDS_THE_RUN = ("gpu_lost", "machine_unfit")
_MOST_DEAD = 2  # blocks that die, for no reason given, before any cell is visited


def run(plan_file: Path, directory: Path, seconds: float) -> int:
    """Do what is left of the plan within `seconds`; returns the exit status: 0, INCOMPLETE, or 1.

    1 means that nothing was measured, or that the machine cannot measure, which ends the run: its GPU is lost, driver
    or packages are unfit, or two blocks died before any cell was visited. If one block fails otherwise, its reason is
    kept and the others go on. Rows of all blocks are written at the end, with an invalid one for each cell that has
    none. Raises SweetspotError if the plan cannot be used.
    """
    watch, work = pace.Stopwatch(seconds), _Plan(plan_file, directory)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    unmeasured: dict[int, dict[Cell, str]] = {index: {} for index in range(len(work.blocks))}
    failures = dict.fromkeys(unmeasured, 0)
    before, stopped = len(work.left(unmeasured)), ""
    died = set[int]()  # blocks that ended without a reason before this run visited any cell
    _compare(directory / "machine.json", work.blocks[0]["measure"]["protocol"])
    try:
        for number, step in enumerate(work.steps):
            while (pending := work.pending(step, unmeasured[step["block"]])) and watch.left_s() > 0 and not stopped:
                block = work.blocks[step["block"]]
                _say(
                    f"step {number + 1} of {len(work.steps)}: {block['model']} batch {block['batch']}, {len(pending)} "
                    f"visits to make, {watch.left_s():.0f} s left"
                )
                result = _in_a_process(plan_file, directory, number, watch.left_s(), unmeasured[step["block"]])
                watch.skip(result["ahead_s"])
                reasons = unmeasured[step["block"]]
                reasons.update({(n, m): reason for n, m, reason in result["unmeasured"]})
                if not result["failure"]:
                    break
                failures[step["block"]] += 1
                _say(f"warning: {block['model']} batch {block['batch']}: {result['failure']}")
                if result["died"] and not result["visiting"] and len(work.left({})) == before:
                    died.add(step["block"])
                if result["reason"] in _ENDS_THE_RUN:
                    stopped = "it would fail every other block too; mend it and run again"
                elif len(died) == _MOST_DEAD:
                    stopped = f"{_MOST_DEAD} blocks died before any cell, so the others are not tried; see the messages"
                if stopped:
                    _say(f"error: stopped: {stopped}")
                    break
                # Leave out a cell that breaks the engine; give up a block that fails before any cell or too often.
                one = result["visiting"] if failures[step["block"]] < _TRIES else None
                reasons.update(
                    {(n, m): result["reason"] for n, m in ([one] if one else [place(cell) for _, cell in pending])}
                )
    finally:
        for index in unmeasured:
            block_of = work.block(index)
            block_of.unmeasured |= unmeasured[index]
            block_of.write_rows()
    left = len(work.left(unmeasured))
    made = before - len(work.left({}))
    failed = sum(map(len, unmeasured.values()))
    _say(f"{made} visits made in {watch.passed_s():.0f} s, {left} left to make; {failed} cells failed")
    failed_only = made <= 0 and not left and failed
    status = 1 if stopped or failed_only else INCOMPLETE if left else 0
    about = {"started": started, "command": sys.orig_argv, "seconds": seconds, "visits": made, "left": left}
    versions = {"sweetspot_version": __version__, "python": platform.python_version(), "platform": platform.platform()}
    journal.append(directory / "runs.jsonl", {**about, **versions, "exit_status": status})
    return status


def main(asked: str) -> int:
    """Run the step that `run` asks of this process, as JSON, without the cells that failed; the result goes to stdout.

    That is {failure, reason, died, visiting, unmeasured, ahead_s}. `died`: it failed without a SweetspotError;
    `ahead_s`: how far virtual time ran ahead.
    """
    plan_file, directory, number, seconds, failures = json.loads(asked)
    answer = os.dup(1)
    os.dup2(2, 1)  # engines print to standard output
    start_s, watch = time.monotonic(), pace.Stopwatch(seconds)
    failed = {(n, m): reason for n, m, reason in failures}
    failure, reason, died = "", "engine_failed", False
    try:
        work = _Plan(Path(plan_file), Path(directory))
        step = work.steps[number]
        block = work.block(step["block"], watch)
    except SweetspotError as error:
        _say(f"error: {error}")
        return 1
    block.unmeasured.update(failed)
    try:
        block.run(work.pending(step, failed))
    except SweetspotError as error:
        failure, reason = str(error), getattr(error, "reason", reason)
    except Exception as error:
        traceback.print_exc()
        failure, died = f"{type(error).__name__}: {error}", True
    unmeasured = [[*where, why] for where, why in block.unmeasured.items()]
    result = {"failure": failure, "reason": reason, "died": died, "visiting": block.visiting, "unmeasured": unmeasured}
    result["ahead_s"] = max(0.0, watch.passed_s() - (time.monotonic() - start_s))
    os.write(answer, json.dumps(result).encode())
    return 0


class _Plan:
    """A plan, and how much of it is already measured."""

    def __init__(self, path: Path, directory: Path) -> None:
        try:
            content = read_object(path)
            self._architectures, self.blocks, self.steps = (content[k] for k in ("architectures", "blocks", "steps"))
        except (OSError, ValueError, KeyError, TypeError):
            raise SweetspotError(
                f"{path}: not a plan; write one with `snakemake offline_plan` and copy it whole"
            ) from None
        if content.get("schema_version") != SCHEMA_VERSION:
            raise SweetspotError(f"{path}: written by another version of sweetspot; write it again with this one")
        self._directory = directory

    def block(self, index: int, watch: pace.Stopwatch | None = None) -> Block:
        """A block with the current content of its journals."""
        entry = self.blocks[index]
        where = Place(self._directory, entry["model"], entry["batch"], entry["block"])
        return Block(entry["measure"], self._architectures[entry["model"]], where, watch, entry["build"])

    def pending(self, step: Mapping[str, Any], failed: Mapping[Cell, str]) -> list[Visit]:
        """The visits of a step that are left, except those of cells that failed."""
        visits = self.block(step["block"]).pending([(n, m) for n, m in step["cells"]], step["visits"])
        return [(visit, cell) for visit, cell in visits if place(cell) not in failed]

    def left(self, unmeasured: Mapping[int, Mapping[Cell, str]]) -> list[Visit]:
        """All visits that are left, except those of cells that failed."""
        visits = [(index, visit) for index in range(len(self.blocks)) for visit in self.block(index).pending()]
        return [visit for index, visit in visits if place(visit[1]) not in unmeasured.get(index, {})]


def _in_a_process(
    plan_file: Path, directory: Path, number: int, seconds: float, failed: Mapping[Cell, str]
) -> dict[str, Any]:
    failures = [[*cell, reason] for cell, reason in failed.items()]
    asked = json.dumps([str(plan_file), str(directory), number, seconds, failures])
    command = [sys.executable, "-m", "sweetspot.measure.unattended", asked]
    result: dict[str, Any] = {"reason": "engine_failed", "died": True, "visiting": None, "unmeasured": []}
    result["ahead_s"] = 0.0
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(0.0, seconds) + _GRACE_S)
    except subprocess.TimeoutExpired:
        return result | {"failure": "exceeded its time and was killed"}
    try:
        return {**result, **json.loads(done.stdout)}
    except ValueError:
        return result | {"failure": f"ended with status {done.returncode}; see the messages above"}


def _compare(machine: Path, protocol: Mapping[str, Any]) -> None:
    """Warn if the probe's record of this board suggests numbers that differ much from those of the plan."""
    try:
        found = probe.numbers(machine) if machine.is_file() else {}
    except SweetspotError as error:
        _say(f"warning: {error}")
        return
    far = {name: value for name, value in found.items() if abs(value - protocol[name]) > _FAR * protocol[name]}
    if other := [f"{name} {protocol[name]:g}, probed {value:g}" for name, value in far.items()]:
        _say(f"warning: the plan uses {'; '.join(other)}: plan again with `machine: {machine}` before you measure much")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
