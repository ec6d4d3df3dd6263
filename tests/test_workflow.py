"""What Snakemake would do, asked of the real Snakemake: nothing twice, nothing too much, nothing too little."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from conftest import Checkout

ANALYSIS = {"fit": 1, "validate": 1, "figures": 1, "report": 1}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} no longer has {old!r}"
    path.write_text(text.replace(old, new, 1))


def visits(checkout: Checkout) -> list[str]:
    """Lines of the journals that hold a visit of a cell, without those as the anchor."""
    lines = [line for path in checkout.out.glob("journal/**/*.jsonl") for line in path.read_text().splitlines()]
    return sorted(line for line in lines if json.loads(line).get("visit") is not None)


def test_a_run_leaves_every_result_and_nothing_to_do(checkout: Checkout) -> None:
    rows = pl.read_parquet(checkout.out / "measurements.parquet")
    assert rows.select("model", "batch", "input_tokens", "output_tokens").unique().height == 2 * 3 * 2 * 3
    assert set(rows["source"]) == {"simulated"}
    assert set(rows["schema_version"]) == {2}
    assert not any("true" in column for column in rows.columns), "the simulator's true joules are not a measurement"
    predictor = json.loads((checkout.out / "predictor.json").read_text())
    assert {group["model"] for group in predictor["groups"]} == {"opt-1.3b", "llama-3.2-1b"}
    assert "SIMULATED" in (checkout.out / "report.html").read_text()
    assert checkout.planned() == {}


def test_a_new_model_runs_its_own_jobs_and_the_aggregation(checkout: Checkout) -> None:
    checkout.configure(select=["opt-1.3b", "llama-3.2-1b", "qwen2-1.5b"])
    assert checkout.planned() == {
        "resolve_architecture": 1,
        "build_engine": 3,
        "measure": 3,
        "plan": 1,
        "collect": 1,
        **ANALYSIS,
    }


def test_a_new_batch_measures_that_batch(checkout: Checkout) -> None:
    checkout.configure(batches=[1, 8, 32, 64])
    assert checkout.planned() == {"build_engine": 2, "measure": 2, "plan": 1, "collect": 1, **ANALYSIS}


def test_a_new_length_keeps_every_finished_cell(checkout: Checkout) -> None:
    before = visits(checkout)
    old = pl.read_parquet(checkout.out / "measurements.parquet")
    checkout.configure(output_tokens=[64, 128, 256, 512])
    assert checkout.planned()["measure"] == 6
    checkout.run()
    after = visits(checkout)
    assert set(before) < set(after)
    assert len(after) - len(before) == 2 * 3 * 2 * 2, "models, batches, new cells, visits"
    new = pl.read_parquet(checkout.out / "measurements.parquet")
    key = ["model", "batch", "input_tokens", "output_tokens", "repetition"]
    kept = new.filter(pl.col("output_tokens") != 256).select(old.columns)
    assert kept.sort(key).equals(old.sort(key))


def test_another_partition_into_jobs_measures_nothing(checkout: Checkout) -> None:
    before = visits(checkout)
    checkout.configure(cells_per_job=1)
    assert checkout.planned()["measure"] == 2 * 3 * 6
    checkout.run()
    assert visits(checkout) == before


def test_a_new_protocol_measures_again(checkout: Checkout) -> None:
    checkout.configure(protocol={"repetitions": 3, "window_s": 12.0})
    assert checkout.planned()["measure"] == 6


def test_another_precision_measures_that_model_again(checkout: Checkout) -> None:
    before = len(visits(checkout))
    edit(checkout.path / "config/models.tsv", "llama-3.2-1b.json\tbfloat16", "llama-3.2-1b.json\tfp8")
    assert checkout.planned()["measure"] == 3
    checkout.run()
    assert len(visits(checkout)) == before + 3 * 6 * 2


@pytest.mark.parametrize(
    ("file", "addition", "jobs"),
    [
        ("measurement.py", "# a comment", {}),
        ("measurement.py", "DEAD = 1", {"report": 1}),  # the report explains the protocol
        ("meter.py", "DEAD = 1", {"report": 1}),
        ("fit.py", "DEAD = 1", ANALYSIS),
        ("fit.py", "# a comment", {}),
        ("figures.py", "DEAD = 1", {"figures": 1, "report": 1}),
        ("report.html", "<!-- edited -->", {"report": 1}),
    ],
)
def test_an_edit_runs_what_it_can_change_and_no_more(
    checkout: Checkout, file: str, addition: str, jobs: dict[str, int]
) -> None:
    with (checkout.path / "workflow/sweetspot" / file).open("a") as source:
        source.write(f"\n{addition}\n")
    assert checkout.planned() == jobs


@pytest.mark.parametrize("name", ["snakemake.html", "snakemake.zip"])
def test_the_report_of_snakemake_holds_the_page(checkout: Checkout, name: str) -> None:
    checkout.run("--report", name)
    assert (checkout.path / name).stat().st_size > 500_000


def test_deleting_the_report_rebuilds_the_report_only(checkout: Checkout) -> None:
    (checkout.out / "report.html").unlink()
    assert checkout.planned() == {"report": 1}


def test_deleting_engines_measures_nothing(checkout: Checkout) -> None:
    shutil.rmtree(checkout.out / "engines")
    assert checkout.planned() == {}


def test_a_killed_measurement_loses_at_most_its_cell(checkout: Checkout) -> None:
    """SIGKILL in the middle of a block; the second run measures what is missing and nothing else."""
    lengths = [16 * k for k in range(1, 21)]
    checkout.configure(input_tokens=lengths, output_tokens=lengths, batches=[8], select=["opt-1.3b"], campaign="big")
    command = [sys.executable, "-m", "snakemake", "--profile", "local", "--cores", "1"]
    run = subprocess.Popen(
        command, cwd=checkout.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    journal = checkout.path / "results/big/journal/opt-1.3b/bs8/grid.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and len(journal.read_bytes().splitlines()) >= 5):
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    with journal.open("ab") as file:
        file.write(b'{"key": "half a li')  # what a crash in the middle of a write leaves
    kept = [line for line in journal.read_text().splitlines() if line.endswith("}")]
    assert 5 <= len(kept) < 400
    checkout.run("--unlock")
    checkout.run("--rerun-incomplete")
    lines = journal.read_text().splitlines()
    assert lines[: len(kept)] == kept
    made = [record for record in map(json.loads, (line for line in lines if line.endswith("}"))) if record.get("visit")]
    assert len(made) == len({(record["input_tokens"], record["output_tokens"]) for record in made}) == 400


def test_ctrl_c_ends_the_run_and_keeps_finished_cells(checkout: Checkout) -> None:
    lengths = [16 * k for k in range(1, 21)]
    checkout.configure(input_tokens=lengths, output_tokens=lengths, batches=[8], select=["opt-1.3b"], campaign="big")
    command = [sys.executable, "-m", "snakemake", "--profile", "local", "--cores", "1"]
    run = subprocess.Popen(
        command, cwd=checkout.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    journal = checkout.path / "results/big/journal/opt-1.3b/bs8/grid.jsonl"
    deadline = time.monotonic() + 60
    while not (journal.exists() and len(journal.read_bytes().splitlines()) >= 5):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    output = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "Traceback" not in output
    assert len(journal.read_text().splitlines()) >= 5
    assert checkout.planned()["measure"] == 1
