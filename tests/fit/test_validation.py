"""Validation: held-out errors are held out, intervals hold what they say, and baselines stand beside."""

import itertools
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from energies import BATCHES, GRID, measured
from sweetspot import gpus
from sweetspot.fit.fit import fit_table
from sweetspot.fit.validation import SCHEMES, summary, validate, write
from sweetspot.models import load
from sweetspot.predict import predictor
from sweetspot.predict.laws import LAWS
from sweetspot.table.schema import CELL, GROUP

ARCHITECTURES = Path(__file__).resolve().parents[2] / "resources/architectures"


def error(errors: pl.DataFrame, law: str, scheme: str) -> dict[str, Any]:
    return errors.filter((pl.col("law") == law) & (pl.col("scheme") == scheme)).row(0, named=True)


def test_validation_has_one_row_for_each_law_and_scheme(as_table: Any) -> None:
    errors, predictions = validate(as_table(measured("steps-8", batches=BATCHES, noise=0.02)))
    assert errors.select("law", "scheme").rows() == list(itertools.product(LAWS, SCHEMES))
    assert error(errors, "steps-8", "5-fold")["folds"] == 5
    assert error(errors, "steps-8", "leave-one-length-out")["folds"] == 14
    assert error(errors, "steps-8", "leave-one-batch-out")["folds"] == 4
    assert error(errors, "steps-8", "leave-one-batch-out")["mape_percent"] < 4
    assert "no batch term" in error(errors, "paper-6", "leave-one-batch-out")["note"]
    for row in errors.iter_rows(named=True):
        own = predictions.filter((pl.col("law") == row["law"]) & (pl.col("scheme") == row["scheme"]))
        assert own.height == row["cells"]
        if own.height:
            ape = 100 * (own["predicted_j"] / own["energy_j"] - 1).abs()
            assert ape.mean() == pytest.approx(row["mape_percent"])
            assert ape.max() == pytest.approx(row["worst_ape_percent"])
            folds = own.with_columns(ape=ape).group_by("held_out").agg(pl.col("ape").mean())["ape"]
            assert folds.max() == pytest.approx(row["worst_fold_mape_percent"])
            assert len(folds) == row["folds"]


@pytest.mark.parametrize("scheme", ["5-fold", "leave-one-length-out", "leave-one-batch-out"])
def test_a_held_out_cell_does_not_help_to_predict_itself(as_table: Any, scheme: str) -> None:
    """Change one fold's energies: its own predictions must stay, others may move."""
    frame = measured("steps-8", batches=BATCHES, noise=0.02)
    _, before = validate(as_table(frame))
    own = (pl.col("law") == "steps-8") & (pl.col("scheme") == scheme)
    pick = own & (pl.col("held_out") == before.filter(own)["held_out"][0])
    changed = before.filter(pick).select(CELL).with_columns(factor=1.4)
    frame = frame.join(changed, on=CELL, how="left").with_columns(pl.col("energy_j") * pl.col("factor").fill_null(1.0))
    _, after = validate(as_table(frame))
    same, moved = ([f.filter(part)["predicted_j"].to_list() for f in (before, after)] for part in (pick, ~pick))
    assert same[0] == pytest.approx(same[1], rel=1e-9)
    assert moved[0] != pytest.approx(moved[1])


def test_every_length_is_held_out_once_on_each_axis(as_table: Any) -> None:
    _, predictions = validate(as_table(measured(noise=0.02)))
    own = predictions.filter((pl.col("law") == "paper-6") & (pl.col("scheme") == "leave-one-length-out"))
    for axis in ("input_tokens", "output_tokens"):
        part = own.filter(pl.col("held_out").str.starts_with(axis))
        assert part.select("input_tokens", "output_tokens").n_unique() == part.height == 49
        assert (part["held_out"] == axis + " " + part[axis].cast(pl.String)).all()


def test_each_cell_is_in_one_fold_and_folds_are_balanced(as_table: Any) -> None:
    _, predictions = validate(as_table(measured("steps-8", batches=BATCHES, noise=0.02)))
    own = predictions.filter((pl.col("law") == "steps-8") & (pl.col("scheme") == "5-fold"))
    assert own.select(CELL).n_unique() == own.height == 196
    sizes = own.group_by("held_out", "batch").len()["len"]
    assert set(sizes) <= {9, 10}


def test_leave_one_out_where_cells_are_few(as_table: Any) -> None:
    errors, _ = validate(as_table(measured("wilkins", inputs=(64, 512, 2048), outputs=(128, 1024), noise=0.01)))
    assert error(errors, "wilkins", "5-fold")["folds"] == 6
    errors, _ = validate(as_table(measured(inputs=(64, 512), outputs=(128, 1024))))
    assert error(errors, "linear", "5-fold")["mape_percent"] is None
    assert "4 of 4" in error(errors, "linear", "5-fold")["note"]
    errors, _ = validate(as_table(measured(inputs=(64, 512), outputs=(128,))))
    assert "needs more than 3 cells" in error(errors, "linear", "in-sample")["note"]


def test_a_fold_that_the_others_cannot_determine_is_left_out_and_said(as_table: Any) -> None:
    """A baseline has no prior: from one output length it knows nothing of another. A law of this project says so."""
    errors, predictions = validate(as_table(measured("linear", inputs=GRID, outputs=(64, 256), noise=0.01)))
    row = error(errors, "linear", "leave-one-length-out")
    assert row["note"].startswith("14 of 28 held-out cells not predicted")
    assert row["mape_percent"] < 5
    known = predictions.filter(pl.col("law") == "linear", pl.col("scheme") == "leave-one-length-out")
    assert not known.filter(pl.col("held_out").str.starts_with("output_tokens")).height
    assert error(errors, "steps-5", "leave-one-length-out")["cells"] == 28


def test_cross_terms_matter(as_table: Any) -> None:
    errors, _ = validate(as_table(measured("wilkins", noise=0.01)))
    assert error(errors, "linear", "5-fold")["mape_percent"] > 4
    assert error(errors, "paper-6", "5-fold")["mape_percent"] < 1.5


def test_tdp_time_is_the_tdp_times_the_duration_where_both_are_known(as_table: Any) -> None:
    frame = measured(noise=0.01, gpu="NVIDIA H100 80GB HBM3").with_columns(duration_s=pl.col("energy_j") / 350)
    errors, predictions = validate(as_table(frame))
    gpu = gpus.find("NVIDIA H100 80GB HBM3")
    assert gpu is not None
    for scheme in SCHEMES:
        row = error(errors, "tdp-time", scheme)
        assert row["mape_percent"] == pytest.approx(100 * (gpu.tdp_w / 350 - 1))
        assert "not fitted" in row["note"]
    assert "tdp-time" in predictions["law"]
    errors, _ = validate(as_table(frame.drop("duration_s")))
    assert "duration_s" in error(errors, "tdp-time", "in-sample")["note"]
    errors, _ = validate(as_table(frame.drop("gpu")))
    assert "TDP" in error(errors, "tdp-time", "5-fold")["note"]
    assert error(errors, "tdp-time", "5-fold")["mape_percent"] is None


def test_the_chosen_law_is_the_one_that_validation_finds(as_table: Any) -> None:
    rows = as_table(measured(noise=0.02))
    errors, _ = validate(rows)
    (group,) = fit_table(rows)["groups"]
    assert f"{error(errors, group['law'], '5-fold')['mape_percent']:.3g} %" in group["chosen_because"]


def test_rows_in_two_units_are_doubted(as_table: Any) -> None:
    rows = measured(noise=0.02)
    mixed = rows.with_columns(pl.col("energy_j") / pl.when(pl.int_range(pl.len()) % 3 == 0).then(1000).otherwise(1))
    for frame, doubted in ((rows, False), (mixed, True)):
        table = as_table(frame)
        assert ("predictions of held-out cells are off by" in summary(fit_table(table), validate(table)[0])) is doubted


def test_files_and_summary(as_table: Any, tmp_path: Path) -> None:
    small = measured(inputs=(64,), outputs=(64,), source="simulated-kernels").with_columns(model=pl.lit("small"))
    rows = as_table(pl.concat([small, measured(noise=0.02, source="simulated-kernels")]))
    errors, predictions = validate(rows)
    write(errors, predictions, tmp_path / "new" / "validation.csv", tmp_path / "new" / "predictions.parquet")
    again = pl.read_csv(tmp_path / "new" / "validation.csv")
    assert again["mape_percent"].to_list() == pytest.approx(errors["mape_percent"].to_list(), nan_ok=True)
    assert pl.read_parquet(tmp_path / "new" / "predictions.parquet").equals(predictions)
    fitted = fit_table(rows)
    predictor.write(fitted, tmp_path / "predictor.json")
    text = summary(fitted, errors)
    assert text.startswith("SIMULATED (kernel times measured by NVIDIA, power modelled)")
    assert fitted["groups"][1]["law"] == "steps-5"
    assert f"{error(errors.filter(pl.col('model') == 'm'), 'chosen', '5-fold')['mape_percent']:.2f} %" in text
    assert "small (SIMULATED): no law can be fitted" in text
    spot = next(spot for spot in fitted["groups"][1]["sweet_spots"] if spot["status"] == "interior")
    flat = f"a plateau from {spot['plateau_low']:,.0f} to {spot['plateau_high']:,.0f}"
    assert f"replies of {spot['output_tokens']:,.0f} tokens ({flat}) need the least energy per token" in text
    flat_none = {**spot, "plateau_low": spot["output_tokens"], "plateau_high": spot["output_tokens"]}
    assert "plateau" not in summary({"groups": [{**fitted["groups"][1], "sweet_spots": [flat_none]}]}, errors)
    assert set(GROUP) < set(predictions.columns)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in ("in-sample", "leave-one-model-out")])
def test_intervals_hold_the_cells_that_they_have_not_seen(as_table: Any, scheme: str) -> None:
    held = []
    for seed in range(4):
        errors, predictions = validate(as_table(measured("steps-8", batches=BATCHES, noise=0.03, seed=seed)))
        row = error(errors, "steps-8", scheme)
        held.append(row["coverage_percent"])
        own = predictions.filter((pl.col("law") == "steps-8") & (pl.col("scheme") == scheme))
        inside = own.filter(pl.col("energy_j").is_between("low_j", "high_j"))
        assert row["coverage_percent"] == pytest.approx(100 * inside.height / own.height)
    assert 90 <= sum(held) / len(held) <= 99


def test_an_interval_is_wider_where_the_law_does_not_hold(as_table: Any) -> None:
    """The linear estimate of a table with cross terms: many times the noise, and still its intervals hold."""
    errors, predictions = validate(as_table(measured("paper-6", noise=0.01)))
    assert error(errors, "linear", "5-fold")["mape_percent"] > 4
    assert error(errors, "linear", "5-fold")["coverage_percent"] >= 85
    width = predictions.with_columns((pl.col("high_j") / pl.col("predicted_j") - 1).alias("width"))
    linear, six = (width.filter(pl.col("law") == law)["width"].median() for law in ("linear", "paper-6"))
    assert linear > 4 * six


def test_outliers_are_not_among_the_cells_and_are_counted(as_table: Any) -> None:
    frame = measured(noise=0.01).with_row_index()
    wrong = frame.with_columns(pl.when(pl.col("index") == 24).then(pl.col("energy_j") * 10).otherwise("energy_j"))
    errors, predictions = validate(as_table(wrong.drop("index")))
    row = error(errors, "paper-6", "in-sample")
    assert row["cells"] == 48
    assert "1 row set aside" in row["note"]
    assert row["mape_percent"] < 1.5
    assert predictions["energy_j"].max() == frame["energy_j"].max()


def test_models_that_were_never_measured(as_table: Any) -> None:
    """With architectures each model is predicted by the others, and every cell is counted once."""
    found = {path.stem: load(path) for path in ARCHITECTURES.glob("llama*.json")}
    frame = pl.concat(
        measured("steps-8", batches=(1, 8), noise=0.02).with_columns(
            pl.col("energy_j") * architecture.parameters / 1e9, model=pl.lit(name)
        )
        for name, architecture in found.items()
    )
    errors, predictions = validate(as_table(frame), found)
    rows = errors.filter((pl.col("law") == "across-models") & (pl.col("scheme") == "leave-one-model-out"))
    assert rows["cells"].to_list() == [98] * len(found)
    assert (rows["mape_percent"] < 50).all()
    own = predictions.filter(pl.col("scheme") == "leave-one-model-out", pl.col("law") == "across-models")
    assert (own["held_out"] == "model " + own["model"]).all()
    inside = own.filter(pl.col("energy_j").is_between("low_j", "high_j")).height / own.height
    assert 100 * inside == pytest.approx(rows["coverage_percent"].mean())
    without, _ = validate(as_table(frame))
    assert "config.json" in error(without, "across-models", "leave-one-model-out")["note"]
