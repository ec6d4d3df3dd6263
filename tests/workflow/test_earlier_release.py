"""What the release before left behind: a finished campaign, its journals, rows and predictor, and an offline plan.

data/campaign-0.1.0.tar.xz was made by that release itself: three simulated models, with Snakemake's records, without
figures, page and most raw samples.
"""

import json
import shutil
import tarfile
from pathlib import Path

import polars as pl
import pytest

from checkouts import Checkout, copy_repository
from sweetspot.commands.main import main
from sweetspot.measure import journal, unattended

ARCHIVE = Path(__file__).parents[1] / "data/campaign-0.1.0.tar.xz"


@pytest.fixture
def earlier(tmp_path: Path) -> Checkout:
    """A copy of this repository with what the earlier release left in it."""
    checkout = Checkout(copy_repository(tmp_path / "sweetspot"), "old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(checkout.path)
    return checkout


@pytest.mark.parametrize("records", [True, False], ids=["with Snakemake's records", "without"])
def test_a_finished_campaign_plans_no_measurement_and_no_build(earlier: Checkout, records: bool) -> None:
    if not records:
        shutil.rmtree(earlier.path / ".snakemake")
    before = {path: path.read_bytes() for path in earlier.out.glob("measurements/**/*.jsonl")}
    planned = earlier.planned()
    assert not planned.keys() & {"build_engine", "measure"}
    assert {"figures", "report"} <= planned.keys()
    if records:
        old = pl.read_parquet(earlier.out / "measurements.parquet")
        earlier.run()
        assert pl.read_parquet(earlier.out / "measurements.parquet").select(old.columns).equals(old)
        assert {path: path.read_bytes() for path in earlier.out.glob("measurements/**/*.jsonl")} == before
        assert "SIMULATED" in (earlier.out / "report.html").read_text()


def test_a_longer_grid_measures_the_new_cells_only(earlier: Checkout) -> None:
    config = earlier.path / "config/config.yaml"
    config.write_text(config.read_text().replace("[64, 512]", "[64, 512, 1024]"))
    assert "To measure: 18 cells in 6 jobs" in earlier.run("--dry-run"), "3 models, 2 batches, 3 new cells"


def test_its_predictor_is_made_again_from_its_rows(
    earlier: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = earlier.out / "predictor.json"
    assert json.loads(predictor.read_text())["schema_version"] == 2
    request = ["--input-tokens", "300", "--output-tokens", "300", "--batch", "8", "--json"]
    architecture = earlier.path / "resources/architectures/llama-3.2-3b.json"
    assert main(["predict", "--predictor", str(predictor), "--model", "llama-3.2-1b", *request]) == 1
    assert "make it again from the same rows with `sweetspot fit`" in capsys.readouterr().err
    rows, architectures = str(earlier.out / "measurements.parquet"), str(earlier.path / "resources/architectures")
    assert main(["fit", rows, "--out", str(tmp_path), "--architectures", architectures]) == 0
    predictor = tmp_path / "predictor.json"
    capsys.readouterr()
    for which in (["--model", "llama-3.2-1b"], ["--architecture", str(architecture)]):
        assert main(["predict", "--predictor", str(predictor), *which, *request]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["energy_per_request_low_j"] < answer["energy_per_request_j"] < answer["energy_per_request_high_j"]
    what_if = ["--input-tokens", "512", "--output-tokens", "300", "--batch", "8", "--truncate", "64"]
    assert main(["advise", "--predictor", str(predictor), "--model", "llama-3.2-1b", *what_if]) == 0
    assert "truncate prompts to 64" in capsys.readouterr().out


def test_its_raw_samples_are_judged_as_before(earlier: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("opt-1.3b", "qwen2-1.5b"):  # whose raw samples are not in the archive
        shutil.rmtree(earlier.out / "measurements" / model)
    assert main(["raw", str(earlier.out)]) == 0
    assert "28 rows judged again" in capsys.readouterr().out


def test_its_offline_plan_starts_and_measures_what_is_missing(earlier: Checkout, tmp_path: Path) -> None:
    plan = earlier.out / "offline.json"
    assert unattended.run(plan, earlier.out, 1e6) == 0, "nothing is left in the campaign itself"
    assert unattended.run(plan, tmp_path / "new", 60.0) == unattended.INCOMPLETE
    visits = [record for record in journal.records((tmp_path / "new").glob("journal/*/*/*.jsonl")) if "rows" in record]
    assert visits
