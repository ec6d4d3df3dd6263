"""A small campaign in a copy of this repository, run once for real and handed to each test as a copy; two reports."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pages import NASTY, Made, page, results
from sweetspot.fit.fit import fit_table
from sweetspot.table.read import Table, read

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "workflow", "envs", "profiles", "local", "slurm", "resources", "config")
CONFIG = {
    "campaign": "tiny",
    "models": "config/models.tsv",
    "select": ["opt-1.3b", "llama-3.2-1b"],
    "input_tokens": [64, 512],
    "output_tokens": [64, 128, 512],
    "batches": [1, 8, 32],
    "engine": {"name": "simulated"},
    "protocol": {"repetitions": 3},
}


@dataclass
class Checkout:
    """A copy of the repository with its own results."""

    path: Path

    @property
    def out(self) -> Path:
        """Where the campaign's results lie."""
        return self.path / "results" / "tiny"

    def configure(self, **changes: object) -> None:
        """Write config/config.yaml with `changes` to the small campaign."""
        (self.path / "config/config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}, sort_keys=False))

    def snakemake(self, *arguments: str, profile: str = "local") -> subprocess.CompletedProcess[str]:
        """Run the real snakemake with a profile, as a user would."""
        command = [sys.executable, "-m", "snakemake", "--profile", profile, *arguments]
        return subprocess.run(command, cwd=self.path, capture_output=True, text=True, timeout=300)

    def run(self, *arguments: str, profile: str = "local") -> str:
        """Run to the end; the test fails when the run does."""
        done = self.snakemake(*arguments, profile=profile)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def planned(self) -> dict[str, int]:
        """Jobs that a run would do now, by rule, without the target itself."""
        output = self.run("--dry-run")
        table = output.split("Job stats:")[-1] if "Job stats:" in output else ""
        jobs = dict(re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE))
        return {rule: int(count) for rule, count in jobs.items() if rule not in ("all", "default", "total")}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small campaign, run once."""
    path = tmp_path_factory.mktemp("checkout") / "sweetspot"
    path.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_symlink():
            os.symlink(os.readlink(source), path / part)
        elif source.is_dir():
            shutil.copytree(source, path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, path / part)
    checkout = Checkout(path)
    checkout.configure()
    checkout.run()
    return path


@pytest.fixture
def checkout(finished: Path, tmp_path: Path) -> Checkout:
    """A copy of the finished campaign that a test may change."""
    path = tmp_path / "sweetspot"
    shutil.copytree(finished, path, symlinks=True)
    return Checkout(path)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report of four simulated models."""
    directory = tmp_path_factory.mktemp("simulated")
    found = results(directory)
    return Made(found, page(found, directory), directory)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report of one measured model with markup for a name, and one batch."""
    directory = tmp_path_factory.mktemp("measured")
    found = results(directory, models=(NASTY,), lengths=(64, 256, 1024), batches=(8,), source="measured")
    return Made(found, page(found, directory), directory)


@pytest.fixture
def as_table(tmp_path: Path) -> Any:
    def through_a_file(frame: pl.DataFrame) -> Table:
        frame.write_parquet(tmp_path / "rows.parquet")
        return read([tmp_path / "rows.parquet"])

    return through_a_file


@pytest.fixture
def fitted(as_table: Any) -> Any:
    return lambda frame: fit_table(as_table(frame))["groups"][0]
