"""What breaks a run on one machine, and what the next run makes of it: nothing valid lost, nothing measured twice."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import faults
from checkouts import Checkout
from faults import CELLS, COLLECT, SLOW, assert_whole, running, wait_for


@pytest.fixture
def slow(checkout: Checkout) -> Checkout:
    """A campaign of one block that takes seconds to measure."""
    checkout.configure(**SLOW, batches=[8], select=["opt-1.3b"])
    return checkout


def test_a_killed_run_is_continued(slow: Checkout) -> None:
    """SIGKILL to all of it in the middle of a cell, and half a line as a crash in the middle of a write leaves it."""
    with running(slow, *COLLECT) as run:
        wait_for("cells", lambda: len(faults.visits(slow)) >= 5)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    before, made = faults.lines(slow), len(faults.visits(slow))
    assert 5 <= made < CELLS
    (journal,) = faults.out(slow).glob("journal/*/*/*.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"key": "half a li')
    shown = faults.plan(slow)
    assert f"done:  {made} cells, " in shown
    assert f"left:  {CELLS - made} cells in 1 job, about " in shown
    assert "opt-1.3b batch 8 grid-" in shown.split("started but not done")[1]
    assert "running" not in shown
    assert "--unlock" in slow.snakemake().stderr, "a killed run leaves its lock, and the way out is in the message"
    slow.run("--unlock")
    assert slow.planned()["measure"] == 1
    slow.run(*COLLECT)
    assert faults.lines(slow)[: len(before) + 1] == [*before, '{"key": "half a li'], "what was written stays as it was"
    assert_whole(slow, 1)


def test_jobs_that_outlive_their_run_and_those_of_the_next_do_not_measure_the_same(slow: Checkout) -> None:
    """SIGKILL to Snakemake alone: its job goes on, and the next run's job for the same cells waits for it."""
    with running(slow, *COLLECT) as run:
        wait_for("cells", lambda: len(faults.visits(slow)) >= 2)
        job = faults.measuring(slow, "opt-1.3b", 8)
        assert job
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        os.kill(job, signal.SIGSTOP)  # it is alive for as long as this test needs it
        assert "opt-1.3b batch 8 grid-" in faults.plan(slow).split("running; the last line")[1]
        assert "started but not done" not in faults.plan(slow)
        slow.run("--unlock")
        with running(slow, *COLLECT) as second:
            wait_for("the second job to wait", lambda: "waiting for another job" in faults.logged(slow))
            os.kill(job, signal.SIGCONT)
            assert second.wait(timeout=120) == 0
    assert_whole(slow, 1)


def test_a_job_that_ended_after_its_run_was_killed_is_done(slow: Checkout) -> None:
    """Its rows are there and Snakemake does not trust them: they are written again from the journal, without engine."""
    with running(slow, *COLLECT) as run:
        wait_for("cells", lambda: len(faults.visits(slow)) >= 2)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        wait_for("its rows", lambda: list(faults.out(slow).glob("measurements/*/*/*.jsonl")))
    shutil.rmtree(faults.out(slow) / "engines")
    slow.run("--unlock")
    slow.run(*COLLECT)
    assert_whole(slow, 1)


def test_ctrl_c_ends_the_run_and_keeps_finished_cells(slow: Checkout) -> None:
    with running(slow, *COLLECT) as run:
        wait_for("cells", lambda: len(faults.visits(slow)) >= 5)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(timeout=60) != 0
    assert "Traceback" not in (slow.path / "run.log").read_text()
    before = faults.lines(slow)
    assert slow.planned()["measure"] == 1, "no lock is left"
    slow.run(*COLLECT)
    assert faults.lines(slow)[: len(before)] == before
    assert_whole(slow, 1)


_RUN = f"{sys.executable} -m snakemake --profile local --until collect"
_FULL = {
    # A disk of 100 kB under the journal, for this run alone; what was written there is kept.
    os.strerror(errno.ENOSPC): ["unshare", "-Urm", "bash", "-c", f"""
        mount -t tmpfs -o size=100k none results/faulty/journal || exit 77
        {_RUN}; code=$?; cp -a results/faulty/journal kept; exit $code
    """],
    os.strerror(errno.EFBIG): ["bash", "-c", f"ulimit -f 98; {_RUN}"],
}  # fmt: skip


@pytest.mark.parametrize("why", _FULL)
def test_a_full_disk_loses_the_row_that_it_refused_and_no_other(slow: Checkout, why: str) -> None:
    """A row of the journal is cut in the middle: by a disk that is full, and by a limit to the size of a file."""
    place = faults.out(slow) / "journal"
    place.mkdir(parents=True)
    done = subprocess.run(_FULL[why], cwd=slow.path, capture_output=True, text=True)
    if "unshare failed" in done.stderr or done.returncode == 77:
        pytest.skip(f"NOT TESTED on a disk that is full: no disk can be mounted here without root: {done.stderr}")
    if (kept := slow.path / "kept").exists():
        place.rmdir()
        kept.rename(place)
    assert done.returncode != 0
    assert f"error: cannot write to results/faulty: {why}" in done.stdout + done.stderr
    assert "free some space and run again: finished cells are kept" in done.stdout + done.stderr
    (journal,) = faults.out(slow).glob("journal/*/*/*.jsonl")
    *_, half = journal.read_bytes().splitlines(keepends=True)
    assert not half.endswith(b"\n"), "the last row is half a row"
    made = len(faults.visits(slow))
    assert 0 < made < CELLS
    slow.run(*COLLECT)
    assert half in journal.read_bytes().splitlines(), "it stays a line of its own"
    assert_whole(slow, 1)


def test_results_cut_short_are_made_again_from_the_journal(checkout: Checkout) -> None:
    """Four blocks: cut to nothing, in the middle, in the last line and between two lines; the others are whole."""
    before = sorted(path.read_bytes() for path in checkout.out.glob("journal/*/*/*.jsonl"))
    blocks = {path: path.read_bytes() for path in sorted(checkout.out.glob("measurements/*/*/*.jsonl"))}
    assert len(blocks) == 2 * 3
    cut = list(blocks)[:4]
    last = [blocks[path].rindex(b"\n", 0, -1) + 1 for path in cut]
    for path, size in zip(cut, (0, 5000, last[2] + 40, last[3]), strict=True):
        path.write_bytes(blocks[path][:size])
    failed = checkout.snakemake(*COLLECT)
    assert failed.returncode != 0
    said = failed.stdout + failed.stderr
    assert "Traceback" not in said
    for path in cut:
        assert str(path.relative_to(checkout.path)) in said.split("cut short or damaged: ")[1].split("; renamed")[0]
    assert sorted(checkout.out.glob("measurements/*/*/*.damaged")) == [path.with_suffix(".damaged") for path in cut]
    checkout.run(*COLLECT)
    assert {path: path.read_bytes() for path in blocks} == blocks
    assert sorted(path.read_bytes() for path in checkout.out.glob("journal/*/*/*.jsonl")) == before


@pytest.mark.parametrize("name", ["measurements.parquet", "predictor.json"])
def test_a_table_cut_short_says_how_to_have_it_made_again(checkout: Checkout, name: str) -> None:
    """Snakemake takes it for a newer one and runs what reads it."""
    made = checkout.out / name
    made.write_bytes(made.read_bytes()[: made.stat().st_size // 2])
    failed = checkout.snakemake()
    assert failed.returncode != 0
    said = failed.stdout + failed.stderr
    assert f"error: results/tiny/{name}: " in said
    assert "delete it and run again" in said
    assert "Traceback" not in said
    made.unlink()
    planned = checkout.planned()
    assert {"measurements.parquet": "collect", "predictor.json": "fit"}[name] in planned
    assert "measure" not in planned


def test_a_journal_cut_short_costs_the_cell_it_was_cut_in(checkout: Checkout) -> None:
    journal = next(checkout.out.glob("journal/opt-1.3b/bs8/*.jsonl"))
    next(checkout.out.glob("measurements/opt-1.3b/bs8/*.jsonl")).unlink()
    (checkout.out / "measurements.parquet").unlink()
    lines = journal.read_text().splitlines()
    last = max(index for index, line in enumerate(lines) if json.loads(line).get("visit") is not None)
    journal.write_text("\n".join([*lines[:last], lines[last][:300]]))
    assert "To measure: 1 cell in 1 job," in checkout.run("--dry-run")
    checkout.run(*COLLECT)
    after = journal.read_text().splitlines()
    assert after[: last + 1] == [*lines[:last], lines[last][:300]]
    assert sum(json.loads(line).get("visit") is not None for line in after[last + 1 :]) == 1
