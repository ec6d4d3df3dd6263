"""What the Snakemake workflow catalog looks for, and this workflow as a module of another one."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from checkouts import CONFIG, ROOT

OTHER = """
configfile: "config.yaml"


module sweetspot:
    snakefile:
        "{root}/workflow/Snakefile"
    config:
        config["energy"]


use rule * from sweetspot as sweetspot_*


rule carbon:
    default_target: True
    input:
        "results/tiny/predictor.json",
    output:
        "carbon.txt",
    shell:
        "wc -c < {{input}} > {{output}}"
"""


def test_the_catalog_finds_what_it_wants() -> None:
    """As its generator reads a repository: a Snakefile in workflow/, rules in .smk, README, config/README, settings."""
    assert (ROOT / "workflow/Snakefile").is_file()
    assert all(path.suffix == ".smk" for path in (ROOT / "workflow/rules").iterdir())
    assert len((ROOT / "config/README.md").read_text()) > 500
    words = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in words
    assert "workflow" in words
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    profile = usage["mandatory-flags"]["flags"].removeprefix("--profile ")
    assert (ROOT / profile / "config.yaml").exists()


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another workflow, in a directory of its own, that wants a predictor."""
    energy = {**CONFIG, "models": str(ROOT / "config/models.tsv"), "select": ["opt-1.3b"], "batches": [8]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"energy": energy, "its_own": 1}))
    (tmp_path / "Snakefile").write_text(OTHER.format(root=ROOT))
    return tmp_path


def test_another_workflow_uses_this_one_as_a_module(other: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-triggers", "mtime", "params"]
    done = subprocess.run(command, cwd=other, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int((other / "carbon.txt").read_text()) > 1000
    assert "rule sweetspot_measure:" in done.stderr
    again = subprocess.run([*command, "--dry-run"], cwd=other, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr
    page = subprocess.run(
        [*command, "--dry-run", "results/tiny/report.html"], cwd=other, capture_output=True, text=True
    )
    assert "sweetspot_report" in page.stdout + page.stderr
