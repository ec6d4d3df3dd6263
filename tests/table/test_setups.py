"""What explains the scatter within cells is no repetition: it splits the group, or is told."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from energies import measured
from sweetspot.commands.main import main
from sweetspot.table import read as table


def several(effects: list[float], noise: float, **columns: list[Any]) -> pl.DataFrame:
    """A grid measured once for each effect, a factor of its energies."""
    draw = np.random.default_rng(2)
    parts = []
    for index, effect in enumerate(effects):
        part = measured(inputs=(64, 512, 2048), outputs=(64, 512, 2048), engine="vllm")
        off = effect * (1 + noise * draw.normal(size=part.height))
        named = {name: pl.lit(values[index]) for name, values in columns.items()}
        parts.append(part.with_columns(pl.col("energy_j") * pl.Series(off), **named))
    return pl.concat(parts)


@pytest.mark.parametrize("values", [[900, 1400, 1980], ["a", "b", "c"], [1.5, 2.5, 3.5]])
def test_a_column_that_explains_the_scatter_splits_the_group(
    tmp_path: Path, values: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    several([1.0, 1.1, 1.2], 0.01, sm_clock=values, repetition=[0, 1, 2]).write_csv(tmp_path / "rows.csv")
    found = table.read([tmp_path / "rows.csv"])
    assert found.frame["engine"].unique().sort().to_list() == sorted(f"vllm sm_clock={value}" for value in values)
    assert any("sm_clock" in note and "% of the scatter within cells" in note for note in found.notes)
    assert main(["fit", str(tmp_path / "rows.csv"), "--out", str(tmp_path)]) == 0
    command = ["predict", "--predictor", str(tmp_path / "predictor.json"), "--model", "m", "--batch", "8"]
    assert main([*command, "--input-tokens", "64", "--output-tokens", "64"]) == 1
    assert f"vllm sm_clock={values[0]}" in capsys.readouterr().err


def test_a_column_that_explains_nothing_splits_nothing(tmp_path: Path) -> None:
    rows = several([1.0, 1.0, 1.0], 0.02, sm_clock=[900, 1400, 1980], site=["x", "y", "z"])
    rows.write_csv(tmp_path / "rows.csv")
    found = table.read([tmp_path / "rows.csv"])
    assert found.frame["engine"].unique().to_list() == ["vllm"]
    assert not any("kept apart" in note for note in found.notes)


def test_results_and_times_are_no_setups(tmp_path: Path) -> None:
    rows = several([1.0, 1.1, 1.2], 0.01, repetition=[0, 1, 2])
    rows = rows.with_columns(tokens_seen=pl.col("energy_j").rank(), at=pl.int_range(pl.len()) + 1_700_000_000)
    rows.write_csv(tmp_path / "rows.csv")
    assert table.read([tmp_path / "rows.csv"]).frame["engine"].unique().to_list() == ["vllm"]


def test_two_modes_in_one_cell_are_a_doubt(tmp_path: Path) -> None:
    rows = several([1.0, 1.01, 1.2, 1.21, 1.0, 1.2], 0.001, repetition=[0, 1, 2, 3, 4, 5])
    rows.write_csv(tmp_path / "rows.csv")
    (doubt,) = table.read([tmp_path / "rows.csv"]).doubts
    assert "3 rows lie around" in doubt
    assert "two set-ups that no column tells apart?" in doubt
    several([1.0, 1.02, 0.98, 1.01, 0.99, 1.03], 0.03, repetition=[0, 1, 2, 3, 4, 5]).write_csv(tmp_path / "one.csv")
    assert table.read([tmp_path / "one.csv"]).doubts == []


def test_each_group_is_judged_alone_and_our_own_tables_are_left_as_they_are(tmp_path: Path) -> None:
    """A clock that mattered for one model only, hidden among others that scatter more."""
    one = several([1.0, 1.1, 1.2], 0.005, sm_clock=[900, 1400, 1980])
    others = [
        several([1.0] * 3, 0.15, sm_clock=[900, 1400, 1980]).with_columns(model=pl.lit(name))
        for name in ("x", "y", "z")
    ]
    pl.concat([one, *others]).write_csv(tmp_path / "rows.csv")
    engines = table.read([tmp_path / "rows.csv"]).frame.group_by("model").agg(pl.col("engine").n_unique())
    assert dict(engines.rows()) == {"m": 3, "x": 1, "y": 1, "z": 1}
    one.with_columns(energy_j_per_gpu=pl.concat_list("energy_j"), gpus=1).write_parquet(tmp_path / "ours.parquet")
    assert table.read([tmp_path / "ours.parquet"]).frame["engine"].n_unique() == 1
