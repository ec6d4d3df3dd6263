"""The same Snakefile on a real Slurm: what was asked for and granted is read from Slurm's own records."""

import subprocess
from pathlib import Path

import polars as pl
import pytest
import slurm
import yaml
from conftest import Checkout

REASON = slurm.unavailable()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"NO SLURM WAS TESTED: {REASON}")

# A cluster without accounting; a site with slurmdbd needs none of this.
SITE = {
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 1,
    "seconds-between-status-checks": 1,
}


@pytest.fixture
def cluster(tmp_path: Path):
    with slurm.cluster(tmp_path / "cluster") as root:
        yield root


def test_the_campaign_runs_with_the_slurm_profile(cluster: Path, checkout: Checkout) -> None:
    profile = checkout.path / "profiles/slurm/config.yaml"
    settings = {**yaml.safe_load(profile.read_text()), **SITE, "latency-wait": 15, "retries": 0}
    settings["default-resources"]["mem_mb"] = 500
    for resources in settings["set-resources"].values():
        resources["mem_mb"] = 500
    profile.write_text(yaml.safe_dump(settings))
    checkout.configure(campaign="cluster", batches=[8], select=["opt-1.3b", "llama-3.2-1b"])
    checkout.run(profile="slurm")
    rows = pl.read_parquet(checkout.path / "results/cluster/measurements.parquet")
    assert rows.select("model", "input_tokens", "output_tokens").unique().height == 2 * 6

    records = subprocess.run(["scontrol", "show", "job", "--all"], capture_output=True, text=True, check=True).stdout
    jobs = [record for record in records.split("\n\n") if "JobId" in record]
    assert all("JobState=COMPLETED" in job for job in jobs)
    on_gpu = [job for job in jobs if "gpu:h100:1" in job]
    assert len(on_gpu) == 2 + 2, "two engines, two blocks, one H100 each"
    assert all("Partition=gpu" in job for job in on_gpu)
    others = [job for job in jobs if job not in on_gpu]
    assert len(others) == 1, "one job for everything after the measurements"
    assert all("gres:gpu" not in job and "Partition=cpu" in job for job in others)
