"""The ratio of energies on random weights and on others."""

import random

import polars as pl
import pytest

from sweetspot.fit.controls import weight_ratios


def rows(model: str, weights: str, factor: float, cells: int = 6, repetitions: int = 4, **more: object) -> pl.DataFrame:
    draw = random.Random(f"{model}/{weights}")
    return pl.DataFrame(
        [
            {
                "model": model,
                "weights": weights,
                "architecture": "abc",
                "gpu": "H100",
                "engine": "vllm",
                "precision": "bfloat16",
                "parallelism": "tp1",
                "batch": 8,
                "input_tokens": 64 * (cell + 1),
                "output_tokens": 64,
                "energy_j": 100.0 * (cell + 1) * factor * (1 + draw.gauss(0, 0.003)),
                "valid": True,
                **more,
            }
            for cell in range(cells)
            for _ in range(repetitions)
        ]
    )


def test_the_ratio_comes_back_with_an_interval_that_holds_it() -> None:
    table = pl.concat([rows("m-real", "checkpoint", 1.0), rows("m", "dummy", 0.94), rows("m-gauss", "gaussian", 1.02)])
    found = weight_ratios(table)
    pairs = {(row["weights"], row["reference_weights"]): row for row in found}
    for pair, truth in {
        ("dummy", "checkpoint"): 0.94,
        ("gaussian", "checkpoint"): 1.02,
        ("dummy", "gaussian"): 0.94 / 1.02,
    }.items():
        row = pairs.pop(pair)
        assert row["low"] < truth < row["high"]
        assert row["ratio"] == pytest.approx(truth, rel=0.005)
        assert row["high"] - row["low"] < 0.02
        assert row["cells"] == 6
    assert not pairs


def test_one_cell_takes_its_interval_from_the_repetitions() -> None:
    (row,) = weight_ratios(pl.concat([rows("a", "dummy", 0.9, cells=1), rows("b", "checkpoint", 1.0, cells=1)]))
    assert row["low"] < 0.9 < row["high"] < 0.93
    (row,) = weight_ratios(
        pl.concat([rows("a", "dummy", 0.9, cells=1, repetitions=1), rows("b", "checkpoint", 1.0, cells=1)])
    )
    assert (row["low"], row["high"]) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "other"},
        {"gpu": "H200"},
        {"precision": "float16"},
        {"parallelism": "tp2"},
        {"valid": False},
        {"batch": 16},
    ],
)
def test_what_is_not_alike_is_not_compared(change: dict[str, object]) -> None:
    table = pl.concat([rows("a", "dummy", 0.9), rows("b", "checkpoint", 1.0, **change)])
    assert weight_ratios(table) == []


def test_a_table_without_weights_has_no_pair() -> None:
    assert weight_ratios(rows("a", "dummy", 1.0).drop("architecture")) == []
    assert weight_ratios(pl.concat([rows("a", "dummy", 1.0), rows("b", "dummy", 1.0)])) == []
