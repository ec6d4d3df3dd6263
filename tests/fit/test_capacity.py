"""The KV cache's capacity, from energies of a table that does not record waves."""

import itertools
import math
from typing import Any

import polars as pl
import pytest

from energies import BATCHES, TRUTH, measured
from sweetspot.predict.laws import LAWS, per_token
from sweetspot.predict.predictor import predict

CAPACITY = 60_000  # tokens: of the largest batches, long requests queue


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_cache_that_fills_up_is_seen_in_the_energies(fitted: Any, noise: float) -> None:
    recorded = measured("steps-8", batches=BATCHES, noise=noise, capacity=CAPACITY)
    assert 0.1 < (recorded["waves"] > 1).to_numpy().mean() < 0.5
    group = fitted(recorded.drop("waves", "in_flight"))
    assert group["law"] == "steps-8"
    assert "estimated from all cells" in group["chosen_because"]
    for name, term in group["laws"]["steps-8"][0]["terms"].items():
        assert abs(term["value"] - TRUTH["steps-8"][name]) <= 4 * (term["standard_error"] or 0) + 1e-9, name
    assert group["kv_capacity"]
    for full in group["kv_capacity"]:  # the same waves, and so the same energies, at every batch of the table
        truth = CAPACITY // full["total_tokens"]
        assert all(math.ceil(batch / full["requests"]) == math.ceil(batch / truth) for batch in BATCHES), full


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_predictions_use_the_estimated_capacity_and_say_where_it_leaves_waves_open(fitted: Any, noise: float) -> None:
    group = fitted(measured("steps-8", batches=BATCHES, noise=noise, capacity=CAPACITY).drop("waves", "in_flight"))
    least, likely, below = group["kv_capacity"][0]["tokens"]
    assert least <= CAPACITY < below < 1.1 * least
    assert all(full["tokens"] == [least, likely, below] for full in group["kv_capacity"])
    known = unknown = 0
    for n, m, batch in itertools.product((96, 768, 1500, 3072), (96, 768, 1500, 3072), (16, 40, 64, 100, 128)):
        answer = predict({"groups": [group]}, "m", n, m, batch)
        waves = math.ceil(batch / (CAPACITY // (n + m)))
        truth = per_token(LAWS["steps-8"], TRUTH["steps-8"], n, m, batch / waves)
        assert answer.energy_per_output_token_low_j - 1e-9 <= truth <= answer.energy_per_output_token_high_j + 1e-9
        if any("number of waves" in reason for reason in answer.extrapolates):
            unknown += 1
        else:
            assert answer.waves == waves, (n, m, batch)
            known += waves > 1
    assert known > 10
    assert unknown > 0


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_no_limit_is_invented(fitted: Any, noise: float) -> None:
    group = fitted(measured("steps-8", batches=BATCHES, noise=noise))
    assert group["kv_capacity"] == []
    assert "KV cache" not in group["chosen_because"]


def test_recorded_requests_in_flight_are_not_second_guessed(fitted: Any) -> None:
    frame = measured("steps-8", batches=BATCHES, capacity=CAPACITY)
    group = fitted(frame.with_columns(waves=pl.lit(1), in_flight=pl.col("batch")))
    assert group["kv_capacity"] == []


def test_a_handful_of_cells_cannot_tell(fitted: Any) -> None:
    few = measured("steps-8", inputs=[1024], outputs=[1024], batches=[1, 4, 16, 32, 64, 128], capacity=CAPACITY)
    assert (few["waves"] > 1).any()
    assert fitted(few.drop("waves", "in_flight"))["kv_capacity"] == []
