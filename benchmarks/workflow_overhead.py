"""What the workflow costs over bare Snakemake: `python benchmarks/workflow_overhead.py` (about ten minutes on 2 cores).

Prints seconds, memory and ratios, each against a bare Snakefile of the same job tree timed in the same run:
- dry runs of 13 models x 49 cells x 12 batches, one job a grid (goal: 3 s) and one a cell (goal: 1.2 x bare): nothing
  done yet, all but one model done, all done;
- the time of a simulated cell in a job of its own, over a rule that starts an empty Python script (goal: 1.5);
- with --slurm, as root on a machine with Debian's Slurm: jobs that a run submits to slurmctld in a minute, what of a
  job's allocation is not measuring, and what share of a study's GPU time that is (goal: 1 %), loading engines aside.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]
BATCHES = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]

BARE = """
MODELS, BATCHES, CELLS = {models!r}, {batches!r}, {cells!r}
rule all:
    input: "report-of-{count}.txt"
rule architecture:
    output: "architectures/{{model}}.json"
    shell: "touch {{output}}"
rule engine:
    input: "architectures/{{model}}.json"
    output: "engines/{{model}}/bs{{batch}}"
    shell: "touch {{output}}"
rule measure:
    input: "architectures/{{model}}.json", "engines/{{model}}/bs{{batch}}"
    output: "measurements/{{model}}/bs{{batch}}/{{block}}.jsonl"
    script: "empty.py"
rule report:
    input: expand("measurements/{{model}}/bs{{batch}}/{{block}}.jsonl", model=MODELS, batch=BATCHES, block=CELLS)
    output: "report-of-{count}.txt"
    shell: "touch {{output}}"
"""
EMPTY = "with open(snakemake.output[0], 'w'):\n    pass\n"


def snakemake(directory: Path, *arguments: str) -> tuple[float, float, str]:
    """Seconds, peak memory in MB and output of one run."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments], cwd=directory, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(run.pid, 0)
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if status:
        sys.exit(text)
    return seconds, usage.ru_maxrss / 1024, text


def ours(
    directory: Path, models: list[str] | None, batches: list[int], lengths: list[int], per_job: object
) -> list[str]:
    """Write a campaign; return the arguments that run it."""
    config = {
        "campaign": "bench",
        "models": str(ROOT / "config/models.tsv"),
        "select": models,
        "input_tokens": lengths,
        "output_tokens": lengths,
        "batches": batches,
        "positions": "extend",
        "cells_per_job": per_job,
        "engine": {"name": "simulated"},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--snakefile", str(ROOT / "workflow/Snakefile"), "--configfile", "config.yaml"]


def bare(directory: Path, models: list[str], batches: list[int], cells: list[str]) -> None:
    """Write a Snakefile of the same job tree with nothing in it.

    The report of other models is another file: with the old one there, Snakemake would not look for missing cells.
    """
    text = BARE.format(models=models, batches=batches, cells=cells, count=len(models))
    (directory / "Snakefile").write_text(text)
    (directory / "empty.py").write_text(EMPTY)
    shutil.copytree(ROOT / "profiles/default", directory / "profiles/default", dirs_exist_ok=True)


def touched(directory: Path, arguments: list[str]) -> None:
    """Make every output without running anything, so that a dry run finds nothing to do."""
    plan = snakemake(directory, *arguments, "--dry-run")[2]
    for line in re.findall(r"^    output: (.*)$", plan, flags=re.MULTILINE):
        for name in line.split(", "):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    snakemake(directory, *arguments, "--touch", "--cores", "1")


def dry_runs(
    directory: Path, write: Callable[[list[str]], list[str]], names: list[str], runs: int
) -> dict[str, tuple[float, float]]:
    """Median seconds and memory of dry runs, by what is done already. `write` writes a campaign of some models."""
    found = {}
    for state, before, models in (
        ("nothing", [], names),
        ("all but one model", names[:-1], names),
        ("all", names, names),
    ):
        if before:
            touched(directory, write(before))
        arguments = write(models)
        seconds, memory, _ = sorted(snakemake(directory, *arguments, "--dry-run") for _ in range(runs))[runs // 2]
        found[state] = (seconds, memory)
    return found


def submissions(count: int) -> float:
    """Jobs that a run submits to a real slurmctld in a minute; none of them starts, since the node is drained."""
    sys.path.insert(0, str(ROOT / "tests"))
    import slurm

    if reason := slurm.unavailable():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as place, slurm.cluster(Path(place) / "cluster"):
        slurm.scontrol("update", f"nodename={slurm.node()}", "state=drain", "reason=benchmark")
        lengths = [64 * k for k in range(1, 1 + round(count**0.5))]
        arguments = ours(Path(place), ["llama-3.2-1b"], [8], lengths, 1)
        snakemake(Path(place), *arguments, "--cores", "2", "--until", "build_engine")
        options = [
            "--executor",
            "slurm",
            "--jobs",
            str(count),
            "--default-resources",
            "slurm_partition=gpu",
            "mem_mb=100",
        ]
        command = [sys.executable, "-m", "snakemake", *arguments, *options]
        run = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times: dict[int, float] = {}
        while len(times) < len(lengths) ** 2:
            for number in slurm.jobs().keys() - times.keys():
                times[number] = time.perf_counter()
            if run.poll() is not None:
                sys.exit("the run ended before all was submitted")
            time.sleep(0.1)
        run.kill()
        run.wait()
        slurm.clear()
        return 60 * (len(times) - 1) / (max(times.values()) - min(times.values()))


def allocated(count: int) -> float:
    """Mean seconds of an allocation that measures one simulated cell, which takes next to none, by Slurm's records."""
    sys.path.insert(0, str(ROOT / "tests"))
    import slurm

    with tempfile.TemporaryDirectory() as place, slurm.cluster(Path(place) / "cluster"):
        lengths = [64 * k for k in range(1, 1 + round(count**0.5))]
        arguments = ours(Path(place), ["llama-3.2-1b"], [8], lengths, 1)
        snakemake(Path(place), *arguments, "--cores", "2", "--until", "build_engine")
        options = ["--executor", "slurm", "--slurm-init-seconds-before-status-checks", "1", "--jobs", "1"]
        options += ["--default-resources", "slurm_partition=gpu", "mem_mb=100"]
        snakemake(Path(place), *arguments, *options, "--until", "measure")
        times = [
            datetime.fromisoformat(job["EndTime"]) - datetime.fromisoformat(job["StartTime"])
            for job in slurm.jobs().values()
        ]
        return sum(times, timedelta()).total_seconds() / len(times)


def study_s(per_job: object) -> tuple[int, float]:
    """Measuring jobs of the grid of 13 models, and the GPU time in s that the simulator gives it."""
    from sweetspot.campaign import survey
    from sweetspot.campaign.campaign import Campaign

    with tempfile.TemporaryDirectory() as place:
        ours(Path(place), None, BATCHES, LENGTHS, per_job)
        config = yaml.safe_load((Path(place) / "config.yaml").read_text())
        campaign = Campaign({**config, "results": place})
        return len(campaign.jobs), survey.survey(campaign).estimate().time_s


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slurm", action="store_true", help="measure submissions and nothing else")
    options = parser.parse_args()
    if options.slurm:
        print(f"{submissions(100):.0f} submissions a minute to slurmctld", flush=True)
        job_s = allocated(9)
        print(f"{job_s:.1f} s of an allocation are not measuring; 13 models x 49 cells x 12 batches:")
        for per_job in ("all", 1):
            jobs, seconds = study_s(per_job)
            share = jobs * job_s / (seconds + jobs * job_s)
            print(f"  {jobs} measuring jobs: {share:.2%} of {seconds / 3600:.0f} GPU h")
        return
    names = [line.split("\t")[0] for line in (ROOT / "config/models.tsv").read_text().splitlines()[1:]]
    print("dry runs, 13 models x 49 cells x 12 batches")
    for per_job, cells in (("all", ["grid"]), (1, [f"i{n}-o{m}" for n in LENGTHS for m in LENGTHS])):
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:

            def ours_of(models: list[str], place: Path = Path(a), per_job: object = per_job) -> list[str]:
                return ours(place, models, BATCHES, LENGTHS, per_job)

            def bare_of(models: list[str], place: Path = Path(b), cells: list[str] = cells) -> list[str]:
                bare(place, models, BATCHES, cells)
                return []

            mine, theirs = (dry_runs(Path(d), write, names, options.runs) for d, write in ((a, ours_of), (b, bare_of)))
            print(f"  {13 * 12 * len(cells)} measuring jobs")
            for state, (seconds, memory) in mine.items():
                bare_s, bare_mb = theirs[state]
                ratio = f"bare {bare_s:.1f} s, {bare_mb:.0f} MB, ratio {seconds / bare_s:.2f}"
                print(f"    {state} done: {seconds:.1f} s, {memory:.0f} MB; {ratio}", flush=True)
    print("one simulated cell a job, 100 cells")
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        lengths = [64 * k for k in range(1, 11)]
        arguments = ours(Path(a), ["llama-3.2-1b"], [8], lengths, 1)
        cells = [f"i{n}-o{m}" for n in lengths for m in lengths]
        bare(Path(b), ["llama-3.2-1b"], [8], cells)
        mine_s = snakemake(Path(a), *arguments, "--cores", "2", "--until", "measure")[0]
        theirs_s = snakemake(Path(b), "--cores", "2")[0]
        print(f"  {mine_s / 100:.3f} s a cell, bare {theirs_s / 100:.3f} s, ratio {mine_s / theirs_s:.2f}")


if __name__ == "__main__":
    main()
