"""A small campaign in a copy of this repository, run once for real and handed to each test as a copy; two reports."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from checkouts import Checkout, copy_repository
from pages import NASTY, Made, page, results
from sweetspot.fit.fit import fit_table
from sweetspot.table.read import Table, read


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small campaign, run once."""
    checkout = Checkout(copy_repository(tmp_path_factory.mktemp("checkout") / "sweetspot"))
    checkout.configure()
    checkout.run()
    return checkout.path


@pytest.fixture
def checkout(finished: Path, tmp_path: Path) -> Checkout:
    """A copy of the finished campaign that a test may change."""
    path = tmp_path / "sweetspot"
    shutil.copytree(finished, path, symlinks=True)
    return Checkout(path)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report of four simulated models."""
    directory = tmp_path_factory.mktemp("simulated")
    found = results(directory)
    return Made(found, page(found, directory), directory)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report of one measured model with markup for a name, and one batch."""
    directory = tmp_path_factory.mktemp("measured")
    found = results(directory, models=(NASTY,), lengths=(64, 256, 1024), batches=(8,), source="measured")
    return Made(found, page(found, directory), directory)


@pytest.fixture
def as_table(tmp_path: Path) -> Any:
    def through_a_file(frame: pl.DataFrame) -> Table:
        frame.write_parquet(tmp_path / "rows.parquet")
        return read([tmp_path / "rows.parquet"])

    return through_a_file


@pytest.fixture
def fitted(as_table: Any) -> Any:
    return lambda frame: fit_table(as_table(frame))["groups"][0]
