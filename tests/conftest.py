"""A small campaign in a copy of this repository, run once for real and handed to each test as a copy; two reports."""

import fcntl
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from checkouts import ROOT, Checkout, copy_repository
from pages import NASTY, Made, page, results
from sweetspot.fit.fit import fit_table
from sweetspot.table.read import Table, read
from sweetspot.vocabulary import ON_MEASURED_KERNELS

# Files that wait for others or start many programs come first, so that no worker ends long after the rest.
FIRST = ("workflow/test_slurm.py", "measure/test_faults.py", "workflow/test_workflow.py", "report/", "workflow/")
# What starts Snakemake, Slurm or a browser, or fits many tables: everything that `make test-quick` leaves out.
SLOW_FIXTURES = {"finished", "checkout", "cluster", "chromium", "earlier", "slow", "simulated", "measured"}
SLOW_FILES = ("test_new_law.py", "test_any_table.py", "test_outliers.py", "test_validation.py", "test_unattended.py")
SLOW_FILES += ("test_wheel.py", "test_catalog.py", "test_nvml_commands.py", "test_cli.py")
SLOW_TESTS = (
    "test_noisy_energies_give_them_back_within_their_errors",
    "test_intervals_of_tables_hold_the_truth",
    "test_a_model_of_few_cells_is_told_of_the_law_across_models",
    "test_models_of_too_few_cells_make_a_law_together",
    "test_fit_and_predict_an_unmeasured_model_from_the_command_line",
    "test_known_joules_come_back_in_real_time",
    "test_a_published_table_without_a_campaign",
    "test_the_interval_holds_a_new_measurement_19_times_in_20",
    "test_the_sensors_gain_cancels_in_percent",
    "test_the_confidence_set_of_the_sweet_spot_holds_the_truth",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and order files by what they take."""

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(ROOT / "tests").as_posix()
        return next((number for number, start in enumerate(FIRST) if place.startswith(start)), len(FIRST))

    items.sort(key=rank)
    for item in items:
        if (
            SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
            or item.path.name in SLOW_FILES
            or getattr(item, "originalname", item.name) in SLOW_TESTS
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The small campaign, run once for all workers."""
    own = tmp_path_factory.getbasetemp()
    place = (own if worker_id == "master" else own.parent) / "finished"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            checkout = Checkout(copy_repository(place / "sweetspot"))
            checkout.configure()
            checkout.run()
            (place / "done").touch()
    return place / "sweetspot"


@pytest.fixture
def checkout(finished: Path, tmp_path: Path) -> Checkout:
    """A copy of the finished campaign that a test may change."""
    path = tmp_path / "sweetspot"
    shutil.copytree(finished, path, symlinks=True)
    return Checkout(path)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The report of four models, simulated from measured kernels."""
    directory = tmp_path_factory.mktemp("simulated")
    found = results(directory, source=ON_MEASURED_KERNELS)
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
