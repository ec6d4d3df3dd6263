"""One table from the blocks: every measured row once, and none of two that disagree."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from blocks import job, measure, prepare
from sweetspot.campaign.collect import collect
from sweetspot.errors import SweetspotError

CELLS = [(64, 64), (64, 128)]


def collected(tmp_path: Path, *blocks: list[dict[str, Any]]) -> pl.DataFrame:
    paths = [tmp_path / f"{number}.jsonl" for number in range(len(blocks))]
    for path, rows in zip(paths, blocks, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collect(paths, tmp_path / "rows.parquet")
    return pl.read_parquet(tmp_path / "rows.parquet")


def test_copies_of_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = measure(prepare(tmp_path), job(CELLS))
    once = collected(tmp_path, rows)
    assert once.height == len(rows)
    assert "twice" not in capsys.readouterr().out
    later = [{**row, "uncertainty_drift": 0.5, "flags": "drifted"} for row in rows[:2]]  # of a larger block
    for blocks in ([rows, rows], [rows + rows], [rows, later, rows[2:]]):
        assert collected(tmp_path, *blocks).equals(once)
        assert f"warning: {len(rows)} rows are there twice and counted once, first " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["energy_j", "duration_s", "energy_instant_j"])
def test_rows_that_disagree_on_a_measurement_are_refused(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = measure(prepare(tmp_path), job(CELLS))
    with pytest.raises(SweetspotError, match=r"are one measurement .* that disagree on it"):
        collected(tmp_path, rows, [{**rows[3], name: 1.001 * rows[3][name]}])


@pytest.mark.parametrize("name", ["visit", "repetition", "session", "time_s", "batch", "output_tokens"])
def test_rows_of_other_measurements_are_kept(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = measure(prepare(tmp_path), job(CELLS))
    others = [{**row, name: row[name] + ("x" if name == "session" else 100)} for row in rows]
    assert collected(tmp_path, rows, others).height == 2 * len(rows)


def test_equal_rows_of_a_table_that_does_not_tell_them_apart_are_kept(tmp_path: Path) -> None:
    row = {"model": "m", "batch": 1, "input_tokens": 64, "output_tokens": 64, "energy_j": 5.0}
    assert collected(tmp_path, [row, row]).height == 2
