"""Rows that cannot be right are found and named; rows that are merely unlike the law stay."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from energies import BATCHES, GRID, TRUTH, measured
from sweetspot.fit.outliers import screen


def off(frame: pl.DataFrame, row: int, factor: float) -> pl.DataFrame:
    energy = frame["energy_j"].to_numpy().copy()
    energy[row] *= factor
    return frame.with_columns(energy_j=pl.Series(energy))


@pytest.mark.parametrize("factor", [10, 3, 2, 0.3, 0.1])
@pytest.mark.parametrize("batches", [(8,), BATCHES])
def test_a_single_row_that_is_off(as_table: Any, fitted: Any, factor: float, batches: tuple[int, ...]) -> None:
    frame = measured("steps-8", batches=batches, noise=0.02)
    clean = fitted(frame)
    for row in range(0, frame.height, 1 + frame.height // 6):
        wrong = off(frame, row, factor)
        outliers = screen(as_table(wrong).frame).outliers
        assert outliers["energy_j"].to_list() == [wrong["energy_j"][row]], row
        assert "other cells" in outliers["outlier"][0]
    group = fitted(wrong)
    assert group["cells"] == clean["cells"] - 1
    assert group["rows"] == clean["rows"]
    (named,) = group["outliers"]
    assert named["energy_j"] == wrong["energy_j"][row]
    values, before = ({n: t["value"] for n, t in g["laws"]["paper-6"][0]["terms"].items()} for g in (group, clean))
    assert values["t3"] == pytest.approx(before["t3"], rel=0.1)


@pytest.mark.parametrize("factor", [10, 0.1])
@pytest.mark.parametrize(
    "few",
    [
        {"inputs": (64, 256, 1024, 4096), "outputs": (64, 256, 1024, 4096)},
        {"inputs": (64, 256, 1024, 4096), "outputs": (64, 256, 1024, 4096), "batches": (1, 8, 64)},
        {"inputs": (128, 512, 2048), "outputs": (128, 512, 2048)},
        {"inputs": (256,), "outputs": (256,), "batches": (1, 2, 4, 8, 16, 32, 64, 128)},
    ],
)
def test_a_single_row_that_is_off_among_few(as_table: Any, few: dict[str, Any], factor: float) -> None:
    """Also at a corner, where the smooth surface is wrong about good cells too."""
    frame = measured("steps-8", noise=0.02, **few)
    for row in {*range(0, frame.height, 1 + frame.height // 10), frame.height - 1}:
        wrong = off(frame, row, factor)
        outliers = screen(as_table(wrong).frame).outliers
        assert outliers["energy_j"].to_list() == [wrong["energy_j"][row]], row


@pytest.mark.parametrize("factor", [1.3, 0.7, 20])
def test_a_repetition_that_the_others_contradict(as_table: Any, factor: float) -> None:
    frame = pl.concat(measured(noise=0.01, seed=seed, repetition=seed) for seed in range(4))
    screened = screen(as_table(off(frame, 60, factor)).frame)
    assert screened.outliers["repetition"].to_list() == [1]
    assert "median of 4 repetitions" in screened.outliers["outlier"][0]
    assert screened.cells["repetitions"].to_list().count(3) == 1


def test_of_two_repetitions_the_other_cells_tell_which_is_wrong(as_table: Any) -> None:
    frame = pl.concat(measured(noise=0.01, seed=seed, repetition=seed) for seed in range(2))
    for factor in (12, 0.08):
        outliers = screen(as_table(off(frame, 70, factor)).frame).outliers
        assert outliers["repetition"].to_list() == [1]


def test_nothing_is_found_in_sound_tables(as_table: Any) -> None:
    sound = {
        "noise of 10 %": measured("steps-8", batches=BATCHES, noise=0.1),
        "replicates with 7 %": pl.concat(measured(noise=0.07, seed=seed) for seed in range(3)),
        "another law": measured("steps-5", noise=0.05),
        "waves": measured("steps-8", batches=BATCHES, noise=0.02, capacity=60_000),
        "a steep corner": measured(values=TRUTH["paper-6"] | {"t5": 3000.0}, noise=0.01),
        "two lengths": measured(inputs=(64, 4096), outputs=(64, 4096), batches=BATCHES),
        "one line": measured(inputs=(512,), noise=0.02),
        "six cells": measured(inputs=(64, 512), outputs=(64, 128, 4096), noise=0.05),
    }
    for name, frame in sound.items():
        assert screen(as_table(frame).frame).outliers.height == 0, name


def test_a_table_that_no_law_describes_loses_nothing(as_table: Any) -> None:
    random = np.random.default_rng(3)
    frame = measured().with_columns(pl.col("energy_j") * pl.Series(random.choice([0.3, 1, 3], len(GRID) ** 2)))
    assert screen(as_table(frame).frame).outliers.height == 0


def test_invalid_rows_are_no_outliers(as_table: Any) -> None:
    frame = measured(valid=True)
    wrong = off(frame, 5, 10).with_columns(valid=pl.Series([i != 5 for i in range(frame.height)]))
    screened = screen(as_table(wrong).frame)
    assert screened.outliers.height == 0
    assert screened.cells.height == frame.height - 1
