"""Tables that determine little: answers stay near the truth, within what their intervals say, or are refused."""

import contextlib
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from checkouts import ROOT
from energies import BATCHES, GRID, TRUTH, measured
from sweetspot.commands.main import main
from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.predict import predictor
from sweetspot.predict.laws import LAWS, per_token
from sweetspot.predict.prediction import Prediction

SERVED = (8, 16, 32, 64, 96, 128, 192, 256, 384, 474)
"""Requests in flight of a curve of energy against load, as public leaderboards show it."""


def curve(seed: int, spread: float, step: float, request: float, noise: float = 0.02) -> pl.DataFrame:
    """One curve (step / B + request joules a token) whose replies differ in length by accident only."""
    draw = random.Random(seed)
    rows = []
    for batch in SERVED:
        reply = round(650 * (1 + draw.uniform(-spread, spread)))
        joules = (step / batch + request) * (1 + draw.gauss(0, noise)) * reply * batch
        rows.append(dict(model="a", batch=batch, input_tokens=128, output_tokens=reply, energy_j=joules))
    return pl.DataFrame(rows)


@pytest.mark.parametrize(("step", "request_"), [(2.95, 0.074), (1.0, 0.02), (9.0, 0.3)])
def test_lengths_that_vary_by_accident_do_not_wreck_other_lengths(
    fitted_table: Callable[[pl.DataFrame], Any], step: float, request_: float
) -> None:
    off, half = [], []
    for seed, spread in itertools.product(range(12), (0, 0.01, 0.03, 0.05)):
        found = fitted_table(curve(seed, spread, step, request_))
        for reply in (650 // 3, 650 * 3):
            answer = predictor.predict(found, "a", 128, reply, 8)
            off.append(answer.energy_per_output_token_j / (step / 8 + request_))
            half.append(answer.energy_per_request_high_j / answer.energy_per_request_j - 1)
    assert 1 / 1.5 < min(off) < max(off) < 1.5
    assert np.median(np.abs(np.array(off) - 1)) < 0.05
    assert np.median(half) < 0.26
    assert np.mean(np.abs(1 / np.array(off) - 1) <= half) > 0.95


@pytest.mark.parametrize(
    ("cells", "asked"),
    [
        ([(512, 64, 8), (2048, 64, 8)], (2048, 2048, 8)),  # one reply length: what does a longer one cost?
        ([(n, 4096 - n, 8) for n in (512, 1024, 2048, 3072)], (12000, 64, 8)),  # lengths of one sum
        ([(64, 64, 1), (64, 64, 2)], (8192, 64, 64)),
    ],
)
def test_what_no_cell_determines_is_refused_in_one_sentence(
    as_table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: list[Any], asked: tuple[int, int, int]
) -> None:
    predictor.write(fit_table(as_table(measured("steps-8", noise=0.05, seed=1, cells=cells))), tmp_path / "p.json")
    n, m, batch = asked
    query = ["predict", "--predictor", str(tmp_path / "p.json"), "--model", "m"]
    for (n, m, batch), status in ((cells[0], 0), (asked, 1)):
        lengths = ["--input-tokens", str(n), "--output-tokens", str(m), "--batch", str(batch)]
        assert main([*query, *lengths]) == status
    error = capsys.readouterr().err
    assert f"m: the measured cells do not determine the energy of {n} + {m} tokens at batch {batch}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("seed", range(3))
def test_twelve_cells_of_a_grid_predict_the_others_within_their_intervals(
    fitted_table: Callable[[pl.DataFrame], Any], seed: int
) -> None:
    pairs = [(0, 0), (0, 6), (6, 0), (6, 6), (3, 0), (3, 6), (0, 3), (6, 3), (1, 4), (2, 2), (4, 1), (5, 5)]
    cells = [(GRID[i], GRID[j], BATCHES[k % 4]) for k, (i, j) in enumerate(pairs)]
    found = fitted_table(measured("steps-8", noise=0.02, seed=seed, cells=cells))
    inside = []
    for n, m, batch in itertools.product((64, 500, 4096), (64, 500, 4096), BATCHES):
        answer = predictor.predict(found, "m", n, m, batch)
        truth = per_token(LAWS["steps-8"], TRUTH["steps-8"], n, m, batch) * m
        inside.append(answer.energy_per_request_low_j <= truth <= answer.energy_per_request_high_j)
        assert 0.7 < answer.energy_per_request_j / truth < 1.5
    assert np.mean(inside) > 0.9


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 9])
def test_energy_never_falls_if_a_prompt_a_reply_or_a_batch_grows(
    fitted_table: Callable[[pl.DataFrame], Any], cells: int
) -> None:
    draw = random.Random(cells)
    asked = [tuple(draw.choice(values) for values in (GRID, GRID, BATCHES)) for _ in range(cells + 1)]
    found = fitted_table(measured("steps-8", noise=0.1, seed=cells, cells=list(dict.fromkeys(asked))))
    low, high, answered = (64, 64, 2), (4096, 4096, 100), 0

    def ask(place: tuple[int, ...]) -> Prediction | None:
        with contextlib.suppress(SweetspotError):
            return predictor.predict(found, "m", *place)
        return None

    for place in (*asked[:1], *itertools.product(*zip(low, high, strict=True))):
        if (here := ask(place)) is None:
            continue
        answered += 1
        assert 0 < here.energy_batch_j < np.inf
        assert here.energy_per_request_low_j > 0
        for axis in range(3):
            more = ask(tuple(2 * x if i == axis else x for i, x in enumerate(place)))
            if more and more.law == here.law:
                assert more.energy_batch_j >= here.energy_batch_j * (1 - 1e-9), (place, axis)
    assert answered


def repeated(noise: float, power: float, times: int, seed: int) -> pl.DataFrame:
    """Cells measured several times; the noise of a run falls with its size to this power."""
    exact = measured("steps-8", batches=(1, 8))
    draw = np.random.default_rng(seed)
    size = exact["energy_j"].to_numpy() / float(exact["energy_j"].median())  # type: ignore[arg-type]
    sd = np.minimum(noise * size**-power, 0.3)
    return pl.concat(
        exact.with_columns(energy_j=pl.col("energy_j") * (1 + sd * draw.normal(0, 1, len(sd))), repetition=i)
        for i in range(times)
    )


@pytest.mark.parametrize(("noise", "power"), [(0.1, 0.0), (0.02, 0.4)])
def test_the_two_intervals_hold_the_mean_and_a_single_measurement(
    fitted_table: Callable[[pl.DataFrame], Any], noise: float, power: float
) -> None:
    means, singles, narrow = [], [], []
    for seed in range(3):
        found = fitted_table(repeated(noise, power, 5, seed))
        new = repeated(noise, power, 1, seed + 100)
        for row in new.iter_rows(named=True):
            answer = predictor.predict(found, "m", row["input_tokens"], row["output_tokens"], row["batch"])
            truth = per_token(
                LAWS["steps-8"], TRUTH["steps-8"], *(row[k] for k in ("input_tokens", "output_tokens", "batch"))
            )
            means.append(
                answer.energy_per_request_low_j <= truth * row["output_tokens"] <= answer.energy_per_request_high_j
            )
            one = row["energy_j"] / row["batch"]
            singles.append(answer.energy_per_request_single_low_j <= one <= answer.energy_per_request_single_high_j)
            narrow.append(answer.energy_per_request_high_j < answer.energy_per_request_single_high_j)
    assert np.mean(means) >= 0.9
    assert 0.9 <= np.mean(singles) <= 0.99
    assert all(narrow)
    text = answer.as_text()
    assert "one measurement" in text


def test_short_runs_may_be_noisier_than_long_ones(fitted_table: Callable[[pl.DataFrame], Any]) -> None:
    found = fitted_table(repeated(0.02, 0.5, 1, 1))

    def half(n: int, m: int) -> float:
        answer = predictor.predict(found, "m", n, m, 1)
        return answer.energy_per_request_high_j / answer.energy_per_request_j - 1

    assert half(64, 64) > 3 * half(4096, 4096)


@pytest.fixture
def fitted_table(as_table: Any) -> Callable[[pl.DataFrame], Any]:
    return lambda frame: fit_table(as_table(frame))


def test_a_request_that_cannot_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the model's positions, and by the memory of the board; a request that was measured can run."""
    rows = [
        measured(
            "steps-8", inputs=(64, 512), outputs=(64, 512), gpu="NVIDIA H100 80GB HBM3", precision="bfloat16"
        ).with_columns(model=pl.lit(model))
        for model in ("opt-6.7b", "llama-3.1-8b")
    ]
    pl.concat(rows).write_csv(tmp_path / "rows.csv")
    architectures = str(ROOT / "resources/architectures")
    assert main(["fit", str(tmp_path / "rows.csv"), "--out", str(tmp_path), "--architectures", architectures]) == 0
    found = predictor.load(tmp_path / "predictor.json")
    with pytest.raises(
        SweetspotError, match=r"1024 \+ 1025 tokens cannot run: more than 2048 exceed the 2048 positions"
    ):
        predictor.predict(found, "opt-6.7b", 1024, 1025, 8)
    assert predictor.predict(found, "opt-6.7b", 1024, 1024, 8).extrapolates
    limits = {group["model"]: group["limit"] for group in found["groups"]}
    assert limits["llama-3.1-8b"] == {"tokens": 131072, "because": "the 131072 positions of llama-3.1-8b"}
    assert json.dumps(found)
    assert "cannot run" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [{}, {"gpu": "NVIDIA H100 80GB HBM3"}, {"gpu": "a board", "precision": "fp8"}])
def test_the_positions_of_a_model_limit_it_on_any_board(tmp_path: Path, columns: dict[str, str]) -> None:
    frame = measured("steps-8", inputs=(64, 512), outputs=(64, 512), **columns)
    frame.with_columns(model=pl.lit("opt-6.7b")).write_csv(tmp_path / "rows.csv")
    architectures = str(ROOT / "resources/architectures")
    assert main(["fit", str(tmp_path / "rows.csv"), "--out", str(tmp_path), "--architectures", architectures]) == 0
    with pytest.raises(SweetspotError, match="more than 2048 exceed"):
        predictor.predict(predictor.load(tmp_path / "predictor.json"), "opt-6.7b", 2000, 1000, 8)
