"""Choosing cells: fewer of them give as good a law, none twice, and the loop ends."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from energies import TRUTH, measured
from sweetspot.campaign.campaign import Campaign
from sweetspot.campaign.design import propose
from sweetspot.commands import main as cli
from sweetspot.errors import SweetspotError
from sweetspot.fit.solve import Array, Points, Solution, design, solve
from sweetspot.predict.laws import LAWS
from sweetspot.table.cells import cell_means

ROOT = Path(__file__).resolve().parents[2]
FULL = {name: float(value) for name, value in TRUTH["paper-6"].items()}


def grid_of(frame: pl.DataFrame, as_table: Any) -> Points:
    return Points.of(cell_means(as_table(frame).frame))


def error(law: str, points: Points, chosen: list[int], truth: Array) -> float:
    """Mean relative error over the grid, in percent, of the law fitted to the chosen cells."""
    mask = np.isin(np.arange(len(points)), chosen)
    solution = solve(LAWS[law], points.take(mask))
    assert isinstance(solution, Solution)
    return float(100 * np.abs(design(LAWS[law], points) @ solution.values / truth - 1).mean())


def test_twelve_of_49_cells_are_nearly_as_good_as_all(as_table: Any) -> None:
    """The guess is wrong by up to a factor of three in every coefficient."""
    random = np.random.default_rng(5)
    truth = grid_of(measured(), as_table).target
    guess = np.array(list(FULL.values())) * np.exp(random.uniform(-1.1, 1.1, 6))
    few, chance, all_cells = [], [], []
    for seed in range(8):
        points = grid_of(measured(noise=0.02, seed=seed), as_table)
        guessed = dataclasses.replace(points, target=design(LAWS["paper-6"], points) @ guess)
        chosen = propose(LAWS["paper-6"], guess, guessed, np.ones(49), np.zeros(49, dtype=bool), 12, noise=0.02)
        assert len(set(chosen)) == 12
        few.append(error("paper-6", points, chosen, truth))
        chance.append(error("paper-6", points, list(random.permutation(49)[:12]), truth))
        all_cells.append(error("paper-6", points, list(range(49)), truth))
    assert np.mean(few) < 2 * np.mean(all_cells)
    assert np.mean(few) < 0.8 * np.mean(chance)


def test_a_cheaper_cell_goes_before_one_that_tells_as_much(as_table: Any) -> None:
    points = grid_of(measured(), as_table)
    law, values, nothing = LAWS["paper-6"], np.array(list(FULL.values())), np.zeros(49, dtype=bool)
    (first,) = propose(law, values, points, np.ones(49), nothing, 1)
    dear = np.ones(49)
    dear[first] = 1000.0
    (second,) = propose(law, values, points, dear, nothing, 1)
    assert second != first


def test_measured_cells_are_not_proposed_again(as_table: Any) -> None:
    points = grid_of(measured(), as_table)
    there = np.arange(49) % 2 == 0
    proposals = propose(LAWS["paper-6"], np.array(list(FULL.values())), points, np.ones(49), there, 40)
    assert sorted(proposals) == list(range(1, 49, 2))


@pytest.fixture
def campaign(tmp_path: Path) -> Any:
    raw = {
        "campaign": "few",
        "results": str(tmp_path / "results"),
        "models": str(ROOT / "config/models.tsv"),
        "select": ["opt-1.3b"],
        "input_tokens": [64, 256, 1024],
        "output_tokens": [64, 256, 512],
        "batches": [1, 8],
        "cells": str(tmp_path / "cells.csv"),
        "engine": {"name": "simulated"},
    }
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(raw))
    return raw


def run(tmp_path: Path, *arguments: str) -> int:
    return cli.main(["design", "--configfile", str(tmp_path / "few.yaml"), *arguments])


def test_the_command_from_nothing_to_accuracy(
    campaign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--add", "5") == 3
    assert "5 more cells" in capsys.readouterr().out
    first = pl.read_csv(tmp_path / "cells.csv")
    assert first.height == 5
    assert {cell.status for cell in Campaign(campaign).cells} == {"run"}
    assert [(c.batch, c.input_tokens, c.output_tokens) for c in Campaign(campaign).cells] == sorted(
        first.select("batch", "input_tokens", "output_tokens").rows()
    )
    place = tmp_path / "results/few/measurements.parquet"
    place.parent.mkdir(parents=True)
    rows = measured("steps-8", cells=first.select("input_tokens", "output_tokens", "batch").rows())
    rows.with_columns(model=pl.lit("opt-1.3b")).write_parquet(place)
    assert run(tmp_path, "--add", "9") == 3  # five cells validate no law
    second = pl.read_csv(tmp_path / "cells.csv")
    assert second.height == 14
    assert first.join(second, on=first.columns, how="anti").height == 0
    rows = measured("steps-8", cells=second.select("input_tokens", "output_tokens", "batch").rows())
    rows.with_columns(model=pl.lit("opt-1.3b")).write_parquet(place)
    capsys.readouterr()
    assert run(tmp_path, "--accuracy", "5") == 0
    assert "accuracy reached" in capsys.readouterr().out
    assert pl.read_csv(tmp_path / "cells.csv").height == 14


def test_a_whole_grid_ends_the_loop_whatever_its_accuracy(campaign: Any, tmp_path: Path) -> None:
    place = tmp_path / "results/few/measurements.parquet"
    place.parent.mkdir(parents=True)
    rows = measured("steps-8", inputs=(64, 256, 1024), outputs=(64, 256, 512), batches=(1, 8), noise=0.2)
    rows.with_columns(model=pl.lit("opt-1.3b")).write_parquet(place)
    assert run(tmp_path, "--accuracy", "0.01") == 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["cells.csv", "sweetspot design"]),
        ("model,batch\nopt-1.3b,1\n", ["input_tokens, output_tokens missing"]),
        ("model,batch,input_tokens,output_tokens\nopt-1.3b,1,64,x\n", ["row 1: output_tokens is x", "whole number"]),
        ("model,batch,input_tokens,output_tokens\nopt-1.3b,0,64,64\n", ["row 1: batch is 0", "at least 1"]),
        ("model,batch,input_tokens,output_tokens\nother,1,64,64\n", ["'other' is not among"]),
    ],
)
def test_a_list_of_cells_that_cannot_be(campaign: Any, tmp_path: Path, text: str | None, parts: list[str]) -> None:
    if text is not None:
        (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(SweetspotError) as caught:
        Campaign(campaign)
    assert all(part in str(caught.value) for part in parts)


def test_mistakes_of_the_command(campaign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--add", "0") == 1
    assert "above 0" in capsys.readouterr().err
    del campaign["cells"]
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(campaign))
    assert run(tmp_path) == 1
    assert "name the list of cells" in capsys.readouterr().err
    assert cli.main(["design", "--configfile", str(tmp_path / "no.yaml")]) == 1
    assert "cannot be read" in capsys.readouterr().err
