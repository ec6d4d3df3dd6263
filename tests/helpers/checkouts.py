"""Copies of this repository with results of their own, and the real Snakemake run in them."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
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
    campaign: str = "tiny"

    @property
    def out(self) -> Path:
        """Where the campaign's results lie."""
        return self.path / "results" / self.campaign

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


def copy_repository(path: Path) -> Path:
    """A copy of what a user needs of this repository, at `path`."""
    path.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_symlink():
            os.symlink(os.readlink(source), path / part)
        elif source.is_dir():
            shutil.copytree(source, path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, path / part)
    return path
