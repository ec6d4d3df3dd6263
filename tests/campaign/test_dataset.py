"""A measured campaign becomes a dataset, and the dataset a report."""

import json
import shutil
import tarfile
from pathlib import Path

import polars as pl
import pytest

from checkouts import Checkout
from sweetspot.commands.main import main
from sweetspot.measure import raw
from sweetspot.table.schema import CELL

KEY = ["model", *CELL, "repetition"]


def test_a_dataset_holds_what_was_measured_and_is_analysed_without_measuring(checkout: Checkout) -> None:
    (checkout.out / "machine.json").write_text("{}")
    (block,) = (checkout.out / "measurements/opt-1.3b/bs1").glob("*.jsonl")
    rows = [json.loads(line) for line in block.read_text().splitlines()]
    late = {**rows[0], "valid": False, "reasons": "not_measured_yet", "energy_j": None, "raw": None}
    block.write_text("".join(json.dumps(row) + "\n" for row in [*rows, late]))
    place = checkout.path / "resources/measurements/tiny"
    assert main(["dataset", str(checkout.out), str(place)]) == 0
    kept = pl.read_parquet(place / "rows.parquet")
    before = pl.read_parquet(checkout.out / "measurements.parquet")
    assert kept.select(before.columns).sort(KEY).equals(before.sort(KEY))
    with tarfile.open(place / "raw.tar") as archive:
        archive.extractall(checkout.path / "unpacked")
    row = kept.row(0, named=True)
    verdict = raw.judged_again(checkout.path / "unpacked" / row["raw"])[row["repetition"]]
    assert verdict.energy_j / row["batch_runs"] == pytest.approx(row["energy_j"], rel=1e-5)
    sessions = [json.loads(line) for line in (place / "sessions.jsonl").read_text().splitlines()]
    assert {session["session"] for session in sessions} == set(kept["session"])
    assert all(session["idle_after_w"] > session["idle_w"] > 0 and session["machine"]["gpu"] for session in sessions)
    readme = (place / "README.md").read_text()
    assert "SIMULATED (kernel times measured by NVIDIA, power modelled)" in readme
    assert "machine.json" in readme
    assert "runs.jsonl" not in readme

    shutil.rmtree(checkout.out)
    checkout.configure(rows="resources/measurements/tiny/rows.parquet")
    assert checkout.planned() == {
        "plan": 1,
        "resolve_architecture": 2,
        "collect": 1,
        "fit": 1,
        "validate": 1,
        "figures": 1,
        "report": 1,
    }
    checkout.run("results/tiny/measurements.parquet")
    again = pl.read_parquet(checkout.out / "measurements.parquet")
    assert again.select(before.columns).sort(KEY).equals(before.sort(KEY))


def test_what_is_no_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", str(tmp_path), str(tmp_path / "new")]) == 1
    assert "no measurements/" in capsys.readouterr().err
    block = tmp_path / "measurements/m/bs1/grid.jsonl"
    block.parent.mkdir(parents=True)
    cell = {"model": "m", "batch": 1, "input_tokens": 8, "output_tokens": 8, "energy_j": 1.0, "source": "measured"}
    block.write_text(json.dumps({**cell, "reasons": "", "flags": "", "session": "A", "raw": "raw/m/x.gz"}) + "\n")
    assert main(["dataset", str(tmp_path), str(tmp_path)]) == 1
    assert ": exists; choose a new name" in capsys.readouterr().err
    assert main(["dataset", str(tmp_path), str(tmp_path / "new")]) == 1
    assert "raw/m/x.gz" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
