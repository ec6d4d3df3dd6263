"""The same Snakefile on a real Slurm: what was asked for and granted is read from Slurm's own records."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml

import debian
import faults
import nvml_stub
import slurm
from checkouts import Checkout
from faults import SLOW, assert_whole, running, wait_for

REASON = slurm.unavailable()

# The tests' machine is small and has no time; a site keeps what the profile says.
HERE = {"slurm-init-seconds-before-status-checks": 1, "seconds-between-status-checks": 1, "latency-wait": 15}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if REASON:
        debian.skip(f"NO SLURM WAS TESTED: {REASON}")
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as root:
        yield root


@pytest.fixture(autouse=True)
def nothing_runs(cluster: Path) -> Iterator[None]:
    """Whatever becomes of a test, the next one finds an empty cluster."""
    yield
    slurm.clear()


def adapt(checkout: Checkout, **changes: object) -> None:
    """Edit the profile as a site does; memory is what this machine has."""
    profile = checkout.path / "profiles/slurm/config.yaml"
    settings = {**yaml.safe_load(profile.read_text()), **HERE, **changes}
    settings["default-resources"]["mem_mb"] = "500 * attempt"
    for resources in settings["set-resources"].values():
        resources["mem_mb"] = "500 * attempt"
    profile.write_text(yaml.safe_dump(settings))


def new_jobs(before: set[int]) -> dict[int, dict[str, str]]:
    return {number: job for number, job in slurm.jobs().items() if number not in before}


def states(before: set[int]) -> Counter[str]:
    return Counter(job["JobState"] for job in new_jobs(before).values())


def test_the_campaign_runs_with_the_slurm_profile(cluster: Path, checkout: Checkout) -> None:
    """On a cluster without accounting, of which nothing is said in the profile; one model takes both GPUs of a node."""
    before = set(slurm.jobs())
    adapt(checkout)
    old = checkout.path / "results/slurm-logs/rule_measure/old/1.log"
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (0, 0))
    table = checkout.path / "config/models.tsv"
    header, *lines = table.read_text().splitlines()
    spread = [f"{line}\t{2 if line.startswith('opt-1.3b') else ''}" for line in lines]
    table.write_text("\n".join([f"{header}\ttensor_parallel", *spread, ""]))
    checkout.configure(campaign="cluster", batches=[8], select=["opt-1.3b", "llama-3.2-1b"])
    said = checkout.run(profile="slurm")
    assert "using squeue for job states" in said
    assert old.exists(), "what Slurm said of a failed job is kept for good"
    rows = pl.read_parquet(checkout.path / "results/cluster/measurements.parquet")
    assert rows.select("model", "input_tokens", "output_tokens").unique().height == 2 * 6
    jobs = new_jobs(before).values()
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    on_gpu = [job for job in jobs if "TresPerJob" in job]
    rules = Counter((job["Comment"].split("_wildcards")[0], job["TresPerJob"], job["JOB_GRES"]) for job in on_gpu)
    assert rules == {
        (rule, f"gres:gpu:h100:{boards}", f"gpu:h100:{boards}"): 1  # requested and granted
        for rule in ("rule_build_engine", "rule_measure")
        for boards in (1, 2)
    }
    assert {job["Partition"] for job in on_gpu} == {"gpu"}
    assert {(job["NumCPUs"], job["NumNodes"]) for job in on_gpu} == {("8", "1")}
    assert set(rows.select("model", "parallelism", "gpus").unique().rows()) == {
        ("opt-1.3b", "tp2", 2),
        ("llama-3.2-1b", "tp1", 1),
    }
    others = [job for job in jobs if job not in on_gpu]
    assert len(others) == 1, "one job for everything after the measurements"
    assert others[0]["Partition"] == "cpu"
    assert "TresPerJob" not in others[0]
    table.write_text(table.read_text().replace("\t2\n", "\t8\n"))
    refused = checkout.snakemake("--until", "build_engine", profile="slurm")
    assert refused.returncode != 0
    assert "Requested node configuration is not available" in refused.stdout + refused.stderr, "Slurm's own words"


def test_faults_of_a_cluster(cluster: Path, checkout: Checkout) -> None:
    """Four blocks: one killed, one cancelled, one out of time, one that waits for a drained node; a new controller.

    The run ends with three failed jobs. The next one, just started again, measures what is missing and nothing else.
    """
    before = set(slurm.jobs())
    adapt(checkout, retries=0)
    checkout.configure(**SLOW, batches=[1, 8], select=["opt-1.3b", "llama-3.2-1b"])
    checkout.run("--until", "build_engine")

    def job_in(state: str, other_than: tuple[int, ...] = ()) -> int | None:
        found = [number for number, job in new_jobs(before).items() if job["JobState"] == state]
        return next((number for number in sorted(found) if number not in other_than), None)

    def begun(number: int) -> tuple[str, int]:
        """Wait until a job is in the middle of its cells; returns its model and batch."""
        model, batch, _ = new_jobs(before)[number]["Comment"].split("_wildcards_")[1].split("_")
        wait_for("cells", lambda: len(faults.visits(checkout, model, batch)) >= 2)
        return model, int(batch)

    with running(checkout, profile="slurm") as run:
        hung = wait_for("a running job", lambda: job_in("RUNNING"))
        os.kill(wait_for("its process", lambda: faults.measuring(checkout, *begun(hung))), signal.SIGSTOP)
        killed = wait_for("another", lambda: job_in("RUNNING", (hung,)))
        os.kill(wait_for("its process", lambda: faults.measuring(checkout, *begun(killed))), signal.SIGKILL)
        wait_for("its failure", lambda: new_jobs(before)[killed]["JobState"] == "FAILED")
        cancelled = wait_for("another", lambda: job_in("RUNNING", (hung,)))
        begun(cancelled)
        slurm.restart_controller(cluster)
        assert states(before) == {"RUNNING": 2, "PENDING": 1, "FAILED": 1}, (
            "a new controller knows what the old one did"
        )
        slurm.scontrol("update", f"nodename={slurm.node()}", "state=drain", "reason=test")
        subprocess.run(["scancel", str(cancelled)], check=True)
        wait_for("its end", lambda: new_jobs(before)[cancelled]["JobState"] == "CANCELLED")
        waiting = wait_for("the last job", lambda: job_in("PENDING"))
        why = re.compile("DRAINED|ReqNodeNotAvail")
        wait_for("the scheduler to pass it over", lambda: why.search(new_jobs(before)[waiting]["Reason"]))
        slurm.scontrol("update", f"nodename={slurm.node()}", "state=resume")
        slurm.scontrol("update", f"jobid={hung}", "EndTime=now")
        assert run.wait(timeout=240) == 1
    assert states(before) == {"TIMEOUT": 1, "FAILED": 1, "CANCELLED": 1, "COMPLETED": 1}
    log = (checkout.path / "run.log").read_text()
    assert "SLURM status is: 'TIMEOUT'" in log
    ended = faults.plan(checkout).split("started but not done")[1]
    assert "DUE TO TIME LIMIT" in ended
    assert "(Slurm: SIGKILL)" in ended
    lines = faults.lines(checkout)
    assert checkout.planned()["measure"] == 3

    before = set(slurm.jobs())
    checkout.run(profile="slurm")
    assert states(before) == {"COMPLETED": 4}, "three blocks and the analysis"
    assert set(lines) <= set(faults.lines(checkout))
    assert_whole(checkout, 4)


def test_a_run_that_was_killed_is_started_again_while_its_job_goes_on(cluster: Path, checkout: Checkout) -> None:
    """And a job that fails is tried again with more memory, but within the time that the partition allows."""
    before = set(slurm.jobs())
    adapt(checkout)
    checkout.configure(**SLOW, batches=[8], select=["opt-1.3b"])
    checkout.run("--until", "build_engine")
    with running(checkout, profile="slurm") as run:
        wait_for("cells", lambda: len(faults.visits(checkout)) >= 2)
        orphan = wait_for("its process", lambda: faults.measuring(checkout, "opt-1.3b", 8))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        os.kill(orphan, signal.SIGSTOP)
        checkout.run("--unlock")
        with running(checkout, profile="slurm") as second:
            wait_for("the second job to wait", lambda: "waiting for another job" in faults.logged(checkout))
            waiting = wait_for("its process", lambda: faults.measuring(checkout, "opt-1.3b", 8, other_than=orphan))
            os.kill(waiting, signal.SIGKILL)
            wait_for("the third", lambda: len(new_jobs(before)) == 3)
            os.kill(orphan, signal.SIGCONT)
            assert second.wait(timeout=120) == 0
    assert_whole(checkout, 1)
    measured = [job for _, job in sorted(new_jobs(before).items()) if "rule_measure" in job["Comment"]]
    assert [job["JobState"] for job in measured] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [job["TimeLimit"] for job in measured] == ["12:00:00"] * 3
    assert [job["MinMemoryNode"] for job in measured] == ["500M", "500M", "1000M"]


def test_a_job_goes_back_into_the_queue_and_ctrl_c_cancels_it(
    cluster: Path, checkout: Checkout, tmp_path: Path
) -> None:
    """With the lines of the profile that a site may need, an edit each: alone on its node, an account, a feature."""
    before = set(slurm.jobs())
    profile = checkout.path / "profiles/slurm/config.yaml"
    text = profile.read_text()
    for line in ("slurm_extra:", "slurm_account:", "constraint:"):
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    profile.write_text(text)
    adapt(checkout)
    # The engine's Python, which first says what GPU it would measure.
    stub = nvml_stub.build(tmp_path)
    stub.set(boards=(nvml_stub.H100, nvml_stub.OTHER))
    seen, python = tmp_path / "seen", tmp_path / "python"
    find = "from sweetspot.sensors import nvml; print(nvml.open_sensors()[0].uuid)"
    settings = " ".join(f"{name}={value}" for name, value in stub.environment.items())
    python.write_text(f"#!/bin/sh\n{settings} {sys.executable} -c '{find}' >> {seen}\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    checkout.configure(**SLOW, batches=[8], select=["opt-1.3b"], engine={"name": "simulated", "python": str(python)})
    checkout.run("--until", "build_engine")
    seen.unlink()
    with running(checkout, profile="slurm") as run:
        wait_for("cells", lambda: len(faults.visits(checkout)) >= 2)
        (job,) = new_jobs(before).values()
        assert (job["OverSubscribe"], job["NumCPUs"]) == ("NO", "32"), "the whole node"
        assert (job["Account"], job["Features"]) == ("my-project", "h100")
        assert job["JOB_GRES"] == "gpu:h100:2", "with all its GPUs"
        assert seen.read_text().split() == [nvml_stub.H100.split()[0]], "and measures on one"
        # As after a preemption or the death of its node: begun again under its number.
        slurm.scontrol("requeue", job["JobId"])
        wait_for("the queue", lambda: states(before) == {"PENDING": 1})
        made = len(faults.visits(checkout))
        slurm.scontrol("update", f"jobid={job['JobId']}", "StartTime=now")
        wait_for("more cells", lambda: states(before) == {"RUNNING": 1} and len(faults.visits(checkout)) > made)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(timeout=60) != 0
    wait_for("the end of its job", lambda: states(before) == {"CANCELLED": 1})
    assert checkout.planned()["measure"] == 1, "no lock is left"


def test_each_job_finds_the_gpu_that_it_was_given(cluster: Path, tmp_path: Path) -> None:
    """Two jobs at a time on a node of two GPUs: each sees both boards and measures its own, by UUID."""
    stub = nvml_stub.build(tmp_path)
    stub.set(boards=(nvml_stub.H100, nvml_stub.OTHER))
    code = (
        "import time; from sweetspot.sensors import nvml; print(nvml.open_sensors()[0].uuid, flush=True); time.sleep(2)"
    )
    command = ["srun", "--quiet", "--partition=gpu", "--gpus=h100:1", "--mem=200", sys.executable, "-c", code]
    environment = {**os.environ, **stub.environment}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [job.communicate(timeout=60)[0].split()[-1] for job in both]
    assert sorted(found) == [nvml_stub.H100.split()[0], nvml_stub.OTHER.split()[0]]


def test_a_cluster_that_forgets_its_jobs_is_refused(cluster: Path, checkout: Checkout) -> None:
    """Neither accounts nor a memory of finished jobs: Snakemake would wait for ever, so nothing is submitted."""
    before = set(slurm.jobs())
    checkout.configure(batches=[1, 8, 32, 64])
    with slurm.configured(cluster, "MinJobAge=3600", "MinJobAge=60"):
        done = checkout.snakemake(profile="slurm")
    output = done.stdout + done.stderr
    assert done.returncode == 1
    assert "sacct fails (AccountingStorageType is none)" in output
    assert "forgets jobs 60 s (MinJobAge) after they end" in output
    assert "Traceback" not in output
    assert new_jobs(before) == {}
