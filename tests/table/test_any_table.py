"""Tables of a few cells of any shape and scale, with absurd rows among them: fitted or refused, never a NaN."""

import json
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.fit.validation import validate
from sweetspot.predict import predictor

LENGTHS = (1, 8, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
QUERIES = ((64, 64, 1), (4096, 64, 8), (1, 1, 1), (100_000, 100_000, 1000))


def table(seed: int) -> pl.DataFrame:
    """1 to 14 cells, spread at random, along a line or all in one place, of one or two models."""
    rng = random.Random(seed)
    shape = rng.choice(["spread", "one reply", "one prompt", "one batch", "diagonal", "one cell"])
    scale, noise = rng.choice([1e-9, 1.0, 1.0, 1.0, 1e9]), rng.choice([0.0, 0.001, 0.03, 0.3])
    rows = []
    for _ in range(rng.randint(1, 14)):
        n, m, batch = rng.choice(LENGTHS), rng.choice(LENGTHS), rng.choice(BATCHES)
        n = {"one prompt": 512, "one cell": 64}.get(shape, n)
        m = {"one reply": 128, "diagonal": n, "one cell": 64}.get(shape, m)
        batch = {"one batch": 8, "one cell": 1}.get(shape, batch)
        for _ in range(rng.randint(1, 3)):
            energy = (
                scale * (batch * m * (0.02 + 5 / batch + 2e-5 * n + 0.01 * n / m) + 1) * rng.lognormvariate(0, noise)
            )
            if rng.random() < 0.03:
                energy *= rng.choice([10, 0.1, 3600, 1 / 3600, 1e6])
            row = {"model": rng.choice("aaab"), "batch": batch, "input_tokens": n, "output_tokens": m}
            duration = rng.choice([energy / scale / 500, energy / scale / 500, None, 0.0])
            rows.append(row | {"energy_j": energy, "duration_s": duration})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.drop("duration_s") if rng.random() < 0.3 else frame


def not_finite(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from not_finite(part, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from not_finite(part, f"{place}/{index}")


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_it_is_fitted_without_a_nan_or_refused_with_a_reason(as_table: Any, first: int) -> None:
    fitted = 0
    for seed in range(first, first + 10):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read = as_table(table(seed))
                found = fit_table(read)
                errors, _ = validate(read)
            except SweetspotError:
                continue  # any other error fails the test
        fitted += 1
        assert list(not_finite(json.loads(json.dumps(found)))) == [], seed
        assert list(not_finite(errors["mape_percent"].drop_nulls().to_list())) == [], seed
        for group in found["groups"]:
            for n, m, batch in QUERIES:
                try:
                    answer = vars(predictor.predict(found, group["model"], n, m, batch))
                except SweetspotError:
                    continue
                assert list(not_finite(answer)) == [], (seed, n, m, batch)
                assert answer["energy_per_request_low_j"] is None or answer["energy_per_request_low_j"] >= 0
                assert answer["energy_per_request_j"] > 0, (seed, n, m, batch)
    assert fitted, "not all of them are refused"
