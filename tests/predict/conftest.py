"""Predictors of tables made by a formula, with durations and without."""

from pathlib import Path
from typing import Any

import pytest

from advising import POWER_W, fit, rows
from sweetspot.predict import predictor


@pytest.fixture(scope="module")
def untimed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("untimed"), rows())


@pytest.fixture(scope="module")
def fitted(untimed_file: Path) -> dict[str, Any]:
    return predictor.load(untimed_file)


@pytest.fixture(scope="module")
def timed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = [row | {"duration_s": row["energy_j"] / POWER_W, "source": "simulated"} for row in rows()]
    return fit(tmp_path_factory.mktemp("timed"), table)


@pytest.fixture(scope="module")
def fitted_timed(timed_file: Path) -> dict[str, Any]:
    return predictor.load(timed_file)
