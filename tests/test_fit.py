"""Fitting and validation: known coefficients come back, bad designs invent nothing, held-out errors are held out."""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sweetspot import gpus, predictor
from sweetspot.errors import SweetspotError
from sweetspot.fit import fit_table
from sweetspot.laws import LAWS, per_token, sweet_spot
from sweetspot.table import CELL, GROUP, Table, read
from sweetspot.validation import SCHEMES, summary, validate, write

GRID = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 8, 32, 128)
TRUTH = {
    "linear": {"c0": 3.0, "c1": 0.02, "c2": 1.5},
    "wilkins": {"a0": 0.02, "a1": 1.5, "a2": 1e-4},
    "paper-5": {"t0": 1.5, "t1": 4e-6, "t2": 1e-4, "t3": 0.02, "t4": 5e-5},
    "paper-6": {"t0": 1.5, "t1": 4e-6, "t2": 1e-4, "t3": 0.02, "t4": 5e-5, "t5": 20.0},
    "batch-8": {"u": 0.02, "v": 1.5, "t1": 4e-6, "t2": 1e-4, "t3": 0.02, "t4": 5e-5, "w": -0.3, "x": 5.0},
}


def measured(
    law: str = "paper-6",
    inputs: Iterable[int] = GRID,
    outputs: Iterable[int] = GRID,
    batches: Iterable[int] = (8,),
    noise: float = 0.0,
    seed: int = 1,
    cells: Iterable[tuple[int, int, int]] | None = None,
    values: dict[str, float] | None = None,
    **columns: Any,
) -> pl.DataFrame:
    """Rows that a law would give, with log-normal noise; `cells` (input, output, batch) replaces the full grid."""
    random = np.random.default_rng(seed)
    rows = []
    for n, m, batch in cells or itertools.product(inputs, outputs, batches):
        energy = per_token(LAWS[law], values or TRUTH[law], n, m, batch) * m * batch * math.exp(random.normal(0, noise))
        rows.append({"model": "m", "batch": batch, "input_tokens": n, "output_tokens": m, "energy_j": energy} | columns)
    return pl.DataFrame(rows)


@pytest.fixture
def as_table(tmp_path: Path) -> Any:
    def through_a_file(frame: pl.DataFrame) -> Table:
        frame.write_parquet(tmp_path / "rows.parquet")
        return read([tmp_path / "rows.parquet"])

    return through_a_file


@pytest.fixture
def fitted(as_table: Any) -> Any:
    return lambda frame: fit_table(as_table(frame))["groups"][0]


def values(fit: dict[str, Any]) -> dict[str, float]:
    return {name: term["value"] for name, term in fit["terms"].items()}


@pytest.mark.parametrize("law", TRUTH)
def test_exact_energies_give_the_coefficients_back(fitted: Any, law: str) -> None:
    group = fitted(measured(law, batches=BATCHES if law == "batch-8" else (8,)))
    (fit,) = group["laws"][law]
    assert values(fit) == pytest.approx(TRUTH[law], rel=1e-6)
    assert fit["in_sample_mape_percent"] < 1e-6
    assert group["law"] == law  # and the law that made the table is the one chosen
    assert law == "batch-8" or "two batches" in group["laws"]["batch-8"][0]["skipped"]


@pytest.mark.parametrize("law", ["paper-6", "batch-8"])
@pytest.mark.parametrize("seed", range(5))
def test_noisy_energies_give_them_back_within_their_errors(fitted: Any, law: str, seed: int) -> None:
    (fit,) = fitted(measured(law, batches=BATCHES if law == "batch-8" else (8,), noise=0.02, seed=seed))["laws"][law]
    for name, term in fit["terms"].items():
        if not term["at_bound"]:
            assert abs(term["value"] - TRUTH[law][name]) < 3 * term["standard_error"], name
    assert fit["relative_residual_sd"] == pytest.approx(0.02, rel=0.25)


def test_the_fit_minimises_relative_errors(fitted: Any) -> None:
    """One cell is off by 50 %. It is the cheapest: absolute weights would not see it, relative ones must."""
    frame = measured("linear", inputs=(64, 512, 4096), outputs=(64, 512, 4096))
    cheapest = (pl.col("input_tokens") == 64) & (pl.col("output_tokens") == 64)
    frame = frame.with_columns(pl.when(cheapest).then(pl.col("energy_j") * 1.5).otherwise("energy_j"))
    (fit,) = fitted(frame)["laws"]["linear"]
    n, m, b = (frame[name].to_numpy().astype(float) for name in ("input_tokens", "output_tokens", "batch"))
    request = frame["energy_j"].to_numpy() / b
    features = np.stack([np.ones_like(n), n, m], axis=1)
    by_hand = np.linalg.lstsq(features / request[:, None], np.ones(len(n)))[0]
    assert list(values(fit).values()) == pytest.approx(by_hand, rel=1e-6)
    assert values(fit)["c0"] != pytest.approx(TRUTH["linear"]["c0"], rel=0.5)


def test_coefficients_at_their_bound_are_marked(fitted: Any) -> None:
    group = fitted(measured(values=TRUTH["paper-6"] | {"t4": -1e-5}))
    (fit,) = group["laws"]["paper-6"]
    term = fit["terms"]["t4"]
    assert (term["value"], term["standard_error"], term["at_bound"]) == (0.0, None, True)
    index = list(fit["terms"]).index("t4")
    assert np.array(fit["covariance"])[index].tolist() == [0.0] * 6
    assert fit["degrees_of_freedom"] == 49 - 5
    assert not fit["terms"]["t3"]["at_bound"]
    assert {spot["status"] for spot in group["sweet_spots"]} == {"no interior minimum"}
    (fit,) = fitted(measured(values=TRUTH["paper-6"] | {"t5": -20.0}))["laws"]["paper-6"]
    assert (fit["terms"]["t5"]["value"], fit["terms"]["t5"]["at_bound"]) == (pytest.approx(-20), False)


def test_covariance_is_of_the_terms_in_their_order(fitted: Any) -> None:
    (fit,) = fitted(measured(noise=0.02))["laws"]["paper-6"]
    assert list(fit["terms"]) == [term.name for term in LAWS["paper-6"].terms]
    errors = [term["standard_error"] or 0.0 for term in fit["terms"].values()]
    assert np.sqrt(np.diag(fit["covariance"])) == pytest.approx(errors)


def test_several_batches(fitted: Any) -> None:
    group = fitted(measured("batch-8", batches=BATCHES, noise=0.02))
    assert group["law"] == "batch-8"
    assert group["batches"] == list(BATCHES)
    assert [fit["batch"] for fit in group["laws"]["batch-8"]] == [None]
    assert [fit["batch"] for fit in group["laws"]["paper-6"]] == list(BATCHES)
    assert {spot["batch"] for spot in group["sweet_spots"]} == set(BATCHES)
    assert len(group["sweet_spots"]) == len(BATCHES) * len(GRID)


def test_batches_that_follow_no_batch_law_keep_their_own_coefficients(fitted: Any) -> None:
    parts = [
        measured(batches=(batch,), values={**TRUTH["paper-6"], "t0": t0})
        for batch, t0 in ((1, 1.0), (8, 3.0), (32, 0.5))
    ]
    assert fitted(pl.concat(parts))["law"] == "paper-6"


def test_a_law_that_covers_every_cell_goes_before_one_that_does_not(fitted: Any) -> None:
    group = fitted(pl.concat([measured(batches=(1,)), measured(cells=[(512, 512, 32)])]))
    assert "skipped" in group["laws"]["paper-6"][1]
    assert group["law"] == "batch-8"


def test_the_simpler_law_is_chosen_where_it_is_as_good(fitted: Any) -> None:
    group = fitted(measured("linear", noise=0.02, seed=3))
    assert group["law"] == "linear"
    assert "MAPE" in group["chosen_because"]


def test_six_cells(fitted: Any) -> None:
    group = fitted(measured("wilkins", inputs=(64, 512, 2048), outputs=(128, 1024), noise=0.01))
    assert group["law"] in ("linear", "wilkins")
    assert group["cells"] == 6
    assert "leave-one-cell-out" in group["chosen_because"]
    assert all(fit.get("degrees_of_freedom", 1) >= 1 for fits in group["laws"].values() for fit in fits)


def test_as_many_cells_as_coefficients_are_too_few(fitted: Any) -> None:
    cells = list(itertools.product((64, 512, 2048), (128, 1024, 4096), (8,)))
    assert "needs more than 6 cells" in fitted(measured(cells=cells[:4] + cells[7:]))["laws"]["paper-6"][0]["skipped"]
    assert "skipped" not in fitted(measured(cells=cells[:4] + cells[6:]))["laws"]["paper-6"][0]


def test_repetitions_are_averaged_and_invalid_rows_left_out(fitted: Any) -> None:
    exact = measured("linear", valid=True)
    low, high = (exact.with_columns(pl.col("energy_j") * factor) for factor in (0.9, 1.1))
    group = fitted(pl.concat([low, high, exact.with_columns(pl.col("energy_j") * 30, valid=False)]))
    assert values(group["laws"]["linear"][0]) == pytest.approx(TRUTH["linear"], rel=1e-6)
    assert (group["cells"], group["rows"]) == (49, 98)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [(measured(valid=False), "every row is marked invalid"), (measured(cells=[(64, 64, 8)]), "needs more than")],
)
def test_nothing_to_fit(as_table: Any, frame: pl.DataFrame, reason: str) -> None:
    with pytest.raises(SweetspotError, match=reason):
        fit_table(as_table(frame))


def test_a_group_too_small_does_not_stop_the_others(as_table: Any) -> None:
    small = measured(inputs=(64,), outputs=(64,)).with_columns(model=pl.lit("small"))
    one, two = fit_table(as_table(pl.concat([small, measured()])))["groups"]
    assert (one["model"], one["law"], one["sweet_spots"]) == ("small", None, [])
    assert "no law can be fitted" in one["chosen_because"]
    assert two["law"] == "paper-6"


def ranks(fit: dict[str, Any]) -> tuple[int, int]:
    return len(fit["terms"]), len(fit["merged"])


def test_one_output_length_gives_no_sweet_spot(fitted: Any) -> None:
    group = fitted(measured(outputs=(256,)))
    (fit,) = group["laws"]["paper-6"]
    assert ranks(fit) == (3, 3)
    assert "cannot be told from" in fit["note"]
    assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}
    assert {spot["output_tokens"] for spot in group["sweet_spots"]} == {None}
    # What was merged is counted, not lost: the law still reproduces its own cells.
    assert fit["in_sample_mape_percent"] < 1e-6


@pytest.mark.parametrize("law", ["paper-5", "paper-6"])
def test_two_output_lengths_give_no_sweet_spot(fitted: Any, law: str) -> None:
    group = fitted(measured(law, outputs=(64, 4096)))
    assert group["law"] == law
    assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}


def test_one_input_length_gives_the_sweet_spot_of_that_length(fitted: Any) -> None:
    values_ = TRUTH["paper-6"] | {"t4": 5e-4}
    group = fitted(measured(inputs=(512,), noise=1e-4, values=values_))
    assert ranks(group["laws"]["paper-6"][0]) == (3, 3)
    (spot,) = group["sweet_spots"]
    assert spot["status"] == "interior"
    assert spot["output_tokens"] == pytest.approx(sweet_spot(LAWS["paper-6"], values_, 512, 8), rel=0.02)


def test_lengths_that_vary_together(fitted: Any) -> None:
    """Equal input and output lengths: n, m and n^2/m are one column, 1 and n/m another."""
    group = fitted(measured(cells=[(length, length, 8) for length in GRID]))
    fit = group["laws"]["paper-6"][0]
    assert ranks(fit) == (3, 3)
    assert fit["in_sample_mape_percent"] < 1e-6
    assert {spot["output_tokens"] for spot in group["sweet_spots"]} <= {None}


def test_one_length_and_four_batches(fitted: Any) -> None:
    """The design of public tables: only a + b/B can be learned, and is."""
    group = fitted(measured("batch-8", inputs=(1024,), outputs=(1024,), batches=(1, 16, 32, 64)))
    (fit,) = group["laws"]["batch-8"]
    assert group["law"] == "batch-8"
    assert ranks(fit) == (2, 6)
    assert {spot["status"] for spot in group["sweet_spots"]} == {"not identified"}


def test_a_merged_coefficient_may_be_negative_where_its_part_may(fitted: Any) -> None:
    frame = measured(outputs=(64,), values={"t0": 0.1, "t1": 0, "t2": 0, "t3": 0.5, "t4": 0, "t5": -20.0})
    (fit,) = fitted(frame)["laws"]["paper-6"]
    assert fit["terms"]["t0"]["value"] == pytest.approx(0.1 - 20 / 64)
    assert fit["in_sample_mape_percent"] < 1e-6


def test_the_sweet_spot_of_the_truth_is_found(fitted: Any) -> None:
    group = fitted(measured(noise=0.005))
    assert group["law"] == "paper-6"
    for spot in group["sweet_spots"]:
        truth = sweet_spot(LAWS["paper-6"], TRUTH["paper-6"], spot["input_tokens"], 8)
        assert spot["output_tokens"] == pytest.approx(truth, rel=0.1)
        assert spot["status"] == ("interior" if 64 <= spot["output_tokens"] <= 4096 else "outside measured range")
        energy = per_token(LAWS["paper-6"], TRUTH["paper-6"], spot["input_tokens"], spot["output_tokens"], 8)
        assert spot["energy_per_output_token_j"] == pytest.approx(energy, rel=0.02)


def test_a_sweet_spot_beyond_the_measured_lengths_is_marked(fitted: Any) -> None:
    group = fitted(measured(outputs=(64, 96, 128, 192, 256)))
    assert group["sweet_spots"][-1]["output_tokens"] > 256
    assert group["sweet_spots"][-1]["status"] == "outside measured range"


def test_the_order_of_rows_does_not_matter(as_table: Any) -> None:
    frame = measured("batch-8", batches=BATCHES, noise=0.02)
    assert fit_table(as_table(frame)) == fit_table(as_table(frame.sample(fraction=1, shuffle=True, seed=3)))


def test_groups_are_fitted_apart(as_table: Any) -> None:
    parts = [measured(engine=engine, values=TRUTH["paper-6"] | {"t0": t0}) for engine, t0 in (("a", 1.5), ("b", 3.0))]
    found = {group["engine"]: group["laws"]["paper-6"][0] for group in fit_table(as_table(pl.concat(parts)))["groups"]}
    assert values(found["a"])["t0"] == pytest.approx(1.5)
    assert values(found["b"])["t0"] == pytest.approx(3.0)


def error(errors: pl.DataFrame, law: str, scheme: str) -> dict[str, Any]:
    return errors.filter((pl.col("law") == law) & (pl.col("scheme") == scheme)).row(0, named=True)


def test_validation_has_one_row_for_each_law_and_scheme(as_table: Any) -> None:
    errors, predictions = validate(as_table(measured("batch-8", batches=BATCHES, noise=0.02)))
    assert errors.select("law", "scheme").rows() == list(itertools.product(LAWS, SCHEMES))
    assert error(errors, "batch-8", "5-fold")["folds"] == 5
    assert error(errors, "batch-8", "leave-one-length-out")["folds"] == 14
    assert error(errors, "batch-8", "leave-one-batch-out")["folds"] == 4
    assert error(errors, "batch-8", "leave-one-batch-out")["mape_percent"] < 4
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
    frame = measured("batch-8", batches=BATCHES, noise=0.02)
    _, before = validate(as_table(frame))
    own = (pl.col("law") == "batch-8") & (pl.col("scheme") == scheme)
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
    _, predictions = validate(as_table(measured("batch-8", batches=BATCHES, noise=0.02)))
    own = predictions.filter((pl.col("law") == "batch-8") & (pl.col("scheme") == "5-fold"))
    assert own.select(CELL).n_unique() == own.height == 196
    sizes = own.group_by("held_out", "batch").len()["len"]
    assert set(sizes) <= {9, 10}


def test_leave_one_out_where_cells_are_few(as_table: Any) -> None:
    errors, _ = validate(as_table(measured("wilkins", inputs=(64, 512, 2048), outputs=(128, 1024), noise=0.01)))
    assert error(errors, "wilkins", "5-fold")["folds"] == 6
    assert error(errors, "paper-6", "5-fold")["mape_percent"] is None
    assert "6 of 6" in error(errors, "paper-6", "5-fold")["note"]
    errors, _ = validate(as_table(measured(inputs=(64, 512), outputs=(128, 1024))))
    assert "needs more than 4 cells" in error(errors, "paper-6", "in-sample")["note"]


def test_a_fold_that_the_others_cannot_determine_is_left_out_and_said(as_table: Any) -> None:
    errors, predictions = validate(as_table(measured("linear", inputs=GRID, outputs=(256,), noise=0.01)))
    row = error(errors, "linear", "leave-one-length-out")
    assert row["cells"] == 7
    assert row["note"].startswith("7 of 14 held-out cells left out")
    assert not predictions.filter(pl.col("held_out") == "output_tokens 256").height
    # With one output length left, a fit exists but knows nothing of another.
    errors, _ = validate(as_table(measured("linear", inputs=GRID, outputs=(64, 256), noise=0.01)))
    assert error(errors, "linear", "leave-one-length-out")["note"].startswith("14 of 28 held-out cells left out")
    assert error(errors, "linear", "leave-one-length-out")["mape_percent"] < 5


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


def test_files_and_summary(as_table: Any, tmp_path: Path) -> None:
    small = measured(inputs=(64,), outputs=(64,), source="simulated").with_columns(model=pl.lit("small"))
    rows = as_table(pl.concat([small, measured(noise=0.02, source="simulated")]))
    errors, predictions = validate(rows)
    write(errors, predictions, tmp_path / "new" / "validation.csv", tmp_path / "new" / "predictions.parquet")
    again = pl.read_csv(tmp_path / "new" / "validation.csv")
    assert again["mape_percent"].to_list() == pytest.approx(errors["mape_percent"].to_list(), nan_ok=True)
    assert pl.read_parquet(tmp_path / "new" / "predictions.parquet").equals(predictions)
    fitted = fit_table(rows)
    predictor.write(fitted, tmp_path / "predictor.json")
    text = summary(fitted, errors)
    assert "SIMULATED" in text
    assert fitted["groups"][1]["law"] == "paper-6"
    assert f"{error(errors.filter(pl.col('model') == 'm'), 'paper-6', '5-fold')['mape_percent']:.2f} %" in text
    assert "small (SIMULATED): no law can be fitted" in text
    assert set(GROUP) < set(predictions.columns)
