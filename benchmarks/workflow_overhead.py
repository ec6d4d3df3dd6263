"""What the workflow costs over bare Snakemake: `python benchmarks/workflow_overhead.py` (about ten minutes on 2 cores).

Prints two ratios, each against a bare Snakefile of the same job tree timed in the same run:
- a no-op dry run of 13 models x 49 cells x 12 batches, one job a grid and one a cell (goal: 1.2 at equal job count);
- the time of a simulated cell in a job of its own, over a rule that starts an empty Python script (goal: 1.5).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]
BATCHES = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]

BARE = """
MODELS, BATCHES, CELLS = {models!r}, {batches!r}, {cells!r}
rule all:
    input: "report.txt"
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
    output: "report.txt"
    shell: "touch {{output}}"
"""
EMPTY = "with open(snakemake.output[0], 'w'):\n    pass\n"


def snakemake(directory: Path, *arguments: str) -> tuple[float, str]:
    """Seconds and output of one run."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - start, done.stdout + done.stderr


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
    """Write a Snakefile of the same job tree with nothing in it."""
    (directory / "Snakefile").write_text(BARE.format(models=models, batches=batches, cells=cells))
    (directory / "empty.py").write_text(EMPTY)
    shutil.copytree(ROOT / "profiles/default", directory / "profiles/default")


def touched(directory: Path, arguments: list[str]) -> None:
    """Make every output without running anything, so that a dry run finds nothing to do."""
    plan = snakemake(directory, *arguments, "--dry-run")[1]
    for line in re.findall(r"^    output: (.*)$", plan, flags=re.MULTILINE):
        for name in line.split(", "):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    snakemake(directory, *arguments, "--touch", "--cores", "1")


def median(directory: Path, runs: int, *arguments: str) -> float:
    """Median seconds of several runs."""
    return sorted(snakemake(directory, *arguments)[0] for _ in range(runs))[runs // 2]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    names = [line.split("\t")[0] for line in (ROOT / "config/models.tsv").read_text().splitlines()[1:]]
    print("no-op dry run, 13 models x 49 cells x 12 batches")
    for per_job, cells in (("all", ["grid"]), (1, [f"i{n}-o{m}" for n in LENGTHS for m in LENGTHS])):
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            arguments = ours(Path(a), None, BATCHES, LENGTHS, per_job)
            touched(Path(a), arguments)
            bare(Path(b), names, BATCHES, cells)
            touched(Path(b), [])
            mine, theirs = (median(Path(d), options.runs, *x, "--dry-run") for d, x in ((a, arguments), (b, [])))
            jobs = 13 * 12 * len(cells)
            print(f"  {jobs} measuring jobs: {mine:.1f} s, bare {theirs:.1f} s, ratio {mine / theirs:.2f}")
    print("one simulated cell a job, 100 cells")
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        lengths = [64 * k for k in range(1, 11)]
        arguments = ours(Path(a), ["llama-3.2-1b"], [8], lengths, 1)
        cells = [f"i{n}-o{m}" for n in lengths for m in lengths]
        bare(Path(b), ["llama-3.2-1b"], [8], cells)
        goal = [f"results/bench/measurements/llama-3.2-1b/bs8/{cell}.jsonl" for cell in cells]
        mine = snakemake(Path(a), *arguments, "--cores", "2", *goal)[0]
        theirs = snakemake(Path(b), "--cores", "2")[0]
        print(f"  {mine / 100:.3f} s a cell, bare {theirs / 100:.3f} s, ratio {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
