"""Predicting from a fitted predictor: the law by hand, the interval, reservations and choices."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from energies import TRUTH, measured
from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.predict import predictor
from sweetspot.predict.laws import LAWS, per_token
from sweetspot.table.read import read
from sweetspot.vocabulary import SIMULATED

GRID = (64, 256, 1024, 4096)
SIX = TRUTH["steps-5"]
EIGHT = TRUTH["steps-8"]


def rows(
    law: str,
    values: dict[str, float],
    batches: tuple[int, ...],
    noise: float = 0.01,
    cells: list[tuple[int, int]] | None = None,
    seed: int = 1,
    **columns: object,
) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "model": "llama-3.1-8b",
            "batch": batch,
            "input_tokens": n,
            "output_tokens": m,
            "energy_j": per_token(LAWS[law], values, n, m, batch) * m * batch * math.exp(random.normal(0, noise)),
        }
        | columns
        for batch in batches
        for n, m in cells or itertools.product(GRID, GRID)
    )


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Rows to a predictor, by way of its file."""

    def through_the_file(*frames: pl.DataFrame) -> dict[str, Any]:
        pl.concat(frames, how="diagonal").write_parquet(tmp_path / "rows.parquet")
        fitted = fit_table(read([tmp_path / "rows.parquet"]))
        predictor.write(fitted, tmp_path / "predictor.json")
        loaded = predictor.load(tmp_path / "predictor.json")
        assert loaded == fitted  # nothing is lost on the way
        return loaded

    return through_the_file


def ask(fitted: dict[str, Any], n: int = 500, m: int = 700, **choice: Any) -> predictor.Prediction:
    return predictor.predict(fitted, choice.pop("model", "llama-3.1-8b"), n, m, **choice)


def refused(fitted: dict[str, Any], n: int = 500, m: int = 700, **choice: Any) -> str:
    with pytest.raises(SweetspotError) as caught:
        ask(fitted, n, m, **choice)
    return str(caught.value)


def test_a_mean_number_in_flight_need_not_be_whole(make: Any) -> None:
    fitted = make(rows("steps-8", EIGHT, (1, 8, 64), noise=0.0))
    truth = per_token(LAWS["steps-8"], EIGHT, 500, 700, 12.5) * 700
    assert ask(fitted, batch=12.5).energy_per_request_j == pytest.approx(truth, rel=0.01)
    for nonsense in (0.5, 0, -1.5, math.nan, math.inf):
        assert f"batch is {nonsense}" in refused(fitted, batch=nonsense)


def test_the_energies_are_the_formula_by_hand(make: Any) -> None:
    fitted = make(rows("steps-5", SIX, (8,)))
    (group,) = fitted["groups"]
    assert group["law"] == "steps-5"
    t = {name: term["value"] for name, term in group["laws"]["steps-5"][0]["terms"].items()}
    n, m = 500, 700
    token = ((m - 1) * (t["t0"] + t["t2"] * (n + m / 2)) + t["t1"] * n**2 + t["t3"] * n + t["t5"]) / m
    answer = ask(fitted, n, m)
    assert answer.energy_per_output_token_j == pytest.approx(token, rel=1e-12)
    assert answer.energy_per_request_j == pytest.approx(token * m, rel=1e-12)
    assert answer.energy_batch_j == pytest.approx(token * m * 8, rel=1e-12)
    assert (answer.batch, answer.extrapolates, answer.warnings) == (8, [], [])


def test_a_law_for_every_batch_by_hand(make: Any) -> None:
    fitted = make(rows("steps-8", EIGHT, (1, 8, 64)))
    (group,) = fitted["groups"]
    assert group["law"] == "steps-8"
    t = {name: term["value"] for name, term in group["laws"]["steps-8"][0]["terms"].items()}
    n, m, b = 500, 700, 20
    few = t["a"] / (1 + (b * (n + m / 2) / 16384) ** 4) ** 0.25
    step = t["u"] + t["v"] / b + (t["t2"] + few) * (n + m / 2)
    token = ((m - 1) * step + t["t1"] * n**2 + t["t3"] * n + t["w"] + t["x"] / b) / m
    answer = ask(fitted, n, m, batch=b)
    assert answer.energy_per_output_token_j == pytest.approx(token, rel=1e-12)
    assert answer.extrapolates == []
    assert any("batch 20 was not measured" in warning for warning in answer.warnings)


def test_the_interval_by_hand(make: Any) -> None:
    fitted = make(rows("steps-5", SIX, (8,), noise=0.03))
    fit = fitted["groups"][0]["laws"][fitted["groups"][0]["law"]][0]
    answer = ask(fitted)
    x = np.array([term.value(500, 700, 8) for term in LAWS[answer.law].terms])
    token = answer.energy_per_output_token_j
    sd = np.sqrt(x @ np.array(fit["covariance"]) @ x + (fit["relative_residual_sd"] * token) ** 2)
    half = fit["interval_scale"] * stats.t.ppf(0.975, fit["degrees_of_freedom"]) * sd
    assert fit["interval_scale"] >= 1
    assert answer.energy_per_output_token_low_j == pytest.approx(token - half, rel=1e-9)
    assert answer.energy_per_output_token_high_j == pytest.approx(token + half, rel=1e-9)
    assert answer.energy_per_request_low_j == pytest.approx(700 * (token - half), rel=1e-9)
    assert answer.energy_per_request_high_j == pytest.approx(700 * (token + half), rel=1e-9)


def test_the_interval_holds_a_new_measurement_19_times_in_20(make: Any) -> None:
    """New cells, inside and at the edge of the grid, fall into their 95 % interval as often as it says."""
    inside, asked = 0, 0
    random = np.random.default_rng(7)
    for seed in range(40):
        fitted = make(rows("steps-5", SIX, (8,), noise=0.03, seed=seed))
        for n, m in ((64, 64), (500, 700), (4096, 100), (100, 4000), (4096, 4096)):
            truth = per_token(LAWS["steps-5"], SIX, n, m, 8) * math.exp(random.normal(0, 0.03))
            answer = ask(fitted, n, m)
            inside += answer.energy_per_output_token_low_j <= truth <= answer.energy_per_output_token_high_j
            asked += 1
    assert 0.90 <= inside / asked <= 0.99


def test_the_interval_widens_with_each_octave_from_the_cells(make: Any) -> None:
    fitted = make(rows("steps-8", EIGHT, (1, 8, 64), noise=0.03))
    parts = [ask(fitted, n, m, batch=b).interval_parts for n, m, b in ((4096, 64, 8), (8192, 64, 8), (16384, 64, 8))]
    assert parts[0]["distance"] == 0
    assert 0.001 < parts[1]["distance"] == pytest.approx(parts[2]["distance"] / 2)
    assert ask(fitted, 512, 512, batch=23).interval_parts["distance"] > 0.001  # between the batches that were measured
    assert ask(fitted, 4096, 16, batch=8).interval_parts["distance"] == pytest.approx(parts[2]["distance"])
    assert ask(fitted, 500, 700, batch=256).interval_parts["distance"] > 0.001


def test_a_single_length_tells_of_another_only_what_gpus_make_likely(make: Any) -> None:
    fitted = make(rows("steps-8", EIGHT, (1, 8, 16, 32, 64), cells=[(512, 512)]))
    here, answer = ask(fitted, 512, 512, batch=8), ask(fitted, 4096, 512, batch=8)
    assert answer.extrapolates
    assert any("is not determined by the cells: it is what such GPUs make likely" in note for note in answer.warnings)
    half, half_here = (one.energy_per_request_high_j / one.energy_per_request_j - 1 for one in (answer, here))
    assert half > 0.25 > 0.06 > half_here
    assert answer.energy_per_request_low_j < per_token(LAWS["steps-8"], EIGHT, 4096, 512, 8) * 512
    assert answer.energy_per_request_high_j > per_token(LAWS["steps-8"], EIGHT, 4096, 512, 8) * 512


def test_the_gain_of_the_sensors_is_in_the_interval(make: Any) -> None:
    frame = rows("steps-5", SIX, (8,))
    without, with_gain = ask(make(frame)), ask(make(frame.with_columns(uncertainty_gain=0.05)))
    assert "sensor_gain" not in without.interval_parts
    half = with_gain.energy_per_request_high_j / with_gain.energy_per_request_j - 1
    assert half == pytest.approx(math.hypot(without.interval_parts["law"], 0.05))


def test_time_and_power_where_the_table_has_durations(make: Any) -> None:
    frame = rows("steps-8", EIGHT, (1, 8, 64), gpu="NVIDIA H100 80GB HBM3")
    answer = ask(make(frame.with_columns(duration_s=pl.col("energy_j") / 400)), batch=8)
    assert answer.power_w == pytest.approx(400, rel=0.01)
    assert answer.duration_s == pytest.approx(answer.energy_batch_j / answer.power_w)
    assert "400 W" in answer.as_text()
    assert not any("energy over duration" in warning for warning in answer.warnings)
    hot = ask(make(frame.with_columns(duration_s=pl.col("energy_j") / 900)), batch=8)
    assert any("above the board's power cap of 700 W" in warning for warning in hot.warnings)
    assert ask(make(frame), batch=8).duration_s is None


@pytest.mark.parametrize(
    ("law", "share"), [("experts-10", 1 - (1 - 8 / 128) ** 24), ("skewed-9", 24 * 8 / (128 + 23 * 8))]
)
def test_a_mixture_of_experts_by_hand(make: Any, law: str, share: float) -> None:
    frame = measured(law, inputs=GRID, outputs=GRID, batches=(1, 4, 16, 64, 256))
    answer = ask(make(frame.with_columns(model=pl.lit("llama-3.1-8b"))), 500, 700, batch=24)
    t = TRUTH[law]
    step = t["u"] + (t["v"] + t["y"] * share + t.get("z", 0) * share**2) / 24 + t["c"] / 24**0.75 + t["t2"] * 850
    token = (699 * step + t["t1"] * 500**2 + t["t3"] * 500 + t["w"] + t["x"] / 24) / 700
    assert answer.law == law
    assert answer.energy_per_output_token_j == pytest.approx(token, rel=1e-3)


def test_requests_that_the_cache_cannot_hold_run_in_waves(make: Any) -> None:
    frame = measured("steps-8", inputs=GRID, outputs=GRID, batches=(1, 8, 32, 64), capacity=100_000)
    fitted = make(frame.with_columns(model=pl.lit("llama-3.1-8b")))
    for n, m, batch in ((4096, 4096, 64), (4096, 1024, 40), (256, 4096, 64), (3000, 3000, 50), (64, 64, 64)):
        answer = ask(fitted, n, m, batch=batch)
        assert answer.waves == math.ceil(batch / (100_000 // (n + m)))
        truth = per_token(LAWS["steps-8"], TRUTH["steps-8"], n, m, batch / answer.waves)
        assert answer.energy_per_output_token_j == pytest.approx(truth, rel=1e-3)
        assert any("waves" in warning for warning in answer.warnings) == (answer.waves > 1)


def test_where_the_cells_do_not_tell_the_waves_the_interval_reaches_to_both(make: Any) -> None:
    frame = measured("steps-8", inputs=(2048, 4096), outputs=GRID, batches=(1, 8, 32), capacity=3 * 8192, noise=0.01)
    timed = frame.with_columns(model=pl.lit("llama-3.1-8b"), duration_s=pl.col("energy_j") / 400)
    fitted = make(timed)
    full = fitted["groups"][0]["kv_capacity"][-1]
    assert (full["total_tokens"], full["requests"]) == (8192, 3)
    sure = ask(fitted, 4096, 4096, batch=6)
    assert sure.waves == 2
    assert sure.extrapolates == []
    assert "waves" not in sure.interval_parts
    open_ = ask(fitted, 4096, 604, batch=5)  # it held 5 requests of 4352 tokens and 4 of 5120: of 4700, 4 or 5
    assert open_.extrapolates == ["the measured cells do not determine this batch's number of waves: 1 to 2"]
    for waves in (1, 2):
        truth = per_token(LAWS["steps-8"], TRUTH["steps-8"], 4096, 604, 5 / waves)
        assert open_.energy_per_output_token_low_j < truth < open_.energy_per_output_token_high_j
        assert open_.duration_low_s < truth * 604 * 5 / 400 < open_.duration_high_s
    half = open_.energy_per_request_high_j / open_.energy_per_request_j - 1
    assert half == pytest.approx(math.hypot(*open_.interval_parts.values()))


@pytest.mark.parametrize(
    ("n", "m", "batch", "reasons"),
    [
        (64, 64, 1, []),
        (4096, 4096, 64, []),
        (8192, 64, 8, ["input_tokens 8192 is above the measured 64-4096"]),
        (
            63,
            64,
            8,
            ["input_tokens 63 is below the measured 64-4096"],
        ),
        (64, 4097, 8, ["output_tokens 4097 is above the measured 64-4096"]),
        (64, 64, 65, ["batch 65 is above the measured 1-64"]),
    ],
)
def test_what_lies_outside_is_said(make: Any, n: int, m: int, batch: int, reasons: list[str]) -> None:
    fitted = make(rows("steps-8", EIGHT, (1, 8, 64)))
    assert ask(fitted, n, m, batch=batch).extrapolates == reasons


def test_total_length_has_its_own_range(make: Any) -> None:
    cells = [(n, m) for n, m in itertools.product((64, 256, 1024, 2048, 4096), repeat=2) if n + m <= 4200]
    fitted = make(rows("steps-5", SIX, (8,), cells=cells))
    assert ask(fitted, 4096, 4096).extrapolates == ["total_tokens 8192 is above the measured 128-4160"]


def test_a_corner_that_no_cell_reaches_is_an_extrapolation(make: Any) -> None:
    lengths = (64, 128, 256, 512, 1024, 2048)
    fitted = make(rows("steps-5", SIX, (8,), cells=[(64, m) for m in lengths] + [(n, 64) for n in lengths[1:]]))
    assert ask(fitted, 64, 2048).extrapolates == ask(fitted, 100, 128).extrapolates == []
    (reason,) = ask(fitted, 512, 512).extrapolates
    assert reason == "no cell combines such lengths and batch: the nearest is a factor of 8 away"
    assert ask(fitted, 512, 512).interval_parts["distance"] > 0


def test_lengths_measured_only_together_leave_others_less_certain(make: Any) -> None:
    fitted = make(
        rows("steps-5", SIX, (8,), cells=[(length, length) for length in (64, 128, 256, 512, 1024, 2048, 4096)])
    )
    same, other = ask(fitted, 1000, 1000), ask(fitted, 2000, 300)
    assert same.warnings == []
    assert other.interval_parts["law"] > 2 * same.interval_parts["law"]
    assert "do not determine the energy of 4000 + 100 tokens at batch 8 (its interval is" in refused(fitted, 4000, 100)


def test_without_a_batch_the_smallest_is_taken_and_said(make: Any) -> None:
    answer = ask(make(rows("steps-8", EIGHT, (8, 64))))
    assert answer.batch == 8
    assert any("no batch given: assuming 8" in warning for warning in answer.warnings)


BY_BATCH = ((1, 1.0), (8, 0.3), (32, 0.2))


def irregular() -> list[pl.DataFrame]:
    """Batches that follow no law of the batch, so that each keeps its own coefficients."""
    return [rows("steps-5", SIX | {"t0": t0}, (batch,)) for batch, t0 in BY_BATCH]


def test_an_unmeasured_batch_falls_back_on_the_law_for_every_batch(make: Any) -> None:
    fitted = make(*irregular())
    assert fitted["groups"][0]["law"] == "steps-5"
    assert ask(fitted, batch=8).law == "steps-5"
    answer = ask(fitted, batch=16)
    assert answer.law == fitted["groups"][0]["law_any_batch"]
    assert any("batch 16 was not measured" in warning and answer.law in warning for warning in answer.warnings)


def test_one_batch_tells_of_another_only_what_gpus_make_likely(make: Any) -> None:
    fitted = make(rows("steps-5", SIX, (8,)))
    answer = ask(fitted, batch=16)
    assert answer.extrapolates == ["batch 16 is above the measured 8"]
    assert answer.interval_parts["distance"] > 0.03
    assert any("batch 16 was not measured" in note for note in answer.warnings)


def test_each_batch_has_its_own_coefficients(make: Any) -> None:
    fitted = make(*irregular())
    for batch, t0 in BY_BATCH:
        truth = per_token(LAWS["steps-5"], SIX | {"t0": t0}, 500, 700, batch)
        assert ask(fitted, batch=batch).energy_per_output_token_j == pytest.approx(truth, rel=0.05)


def test_an_unknown_model_lists_close_ones(make: Any) -> None:
    fitted = make(rows("steps-5", SIX, (8,)), rows("steps-5", SIX, (8,), model="opt-1.3b"))
    assert "did you mean llama-3.1-8b?" in refused(fitted, model="llama3.1-8b")
    assert "did you mean opt-1.3b?" in refused(fitted, model="OPT")
    assert "llama-3.1-8b, opt-1.3b" in refused(fitted, model="zzz")
    assert ask(fitted, model="OPT-1.3B").model == "opt-1.3b"


def test_a_choice_left_open_lists_the_choices(make: Any) -> None:
    h100 = "NVIDIA H100 80GB HBM3"
    fitted = make(
        rows("steps-5", SIX, (8,), gpu=h100, engine="a", precision="fp8"),
        rows("steps-5", SIX | {"t0": 3.0}, (8,), gpu="NVIDIA A100", engine="a", precision="fp8"),
        rows("steps-5", SIX | {"t0": 6.0}, (8,), gpu="NVIDIA A100", engine="b", precision="fp8"),
    )
    message = refused(fitted)
    for choice in (f"--gpu '{h100}' --engine 'a'", "--gpu 'NVIDIA A100' --engine 'b'"):
        assert choice in message
    assert "precision" not in message
    assert ask(fitted, gpu="h100").gpu == h100
    assert "--engine 'b'" in refused(fitted, gpu="A100")
    assert ask(fitted, gpu="A100", engine="b").engine == "b"
    assert "there is a" in refused(fitted, gpu="h100", engine="c")


def test_a_whole_name_goes_before_a_part_of_another(make: Any) -> None:
    fitted = make(rows("steps-5", SIX, (8,), gpu="NVIDIA H100 NVL"), rows("steps-5", SIX, (8,), gpu="NVIDIA H100"))
    assert ask(fitted, gpu="nvidia h100").gpu == "NVIDIA H100"


@pytest.mark.parametrize(
    ("n", "m", "batch", "name"), [(0, 64, 8, "input_tokens"), (64, -1, 8, "output_tokens"), (64, 64, 0, "batch")]
)
def test_impossible_requests(make: Any, n: int, m: int, batch: int, name: str) -> None:
    assert name in refused(make(rows("steps-5", SIX, (8,))), n, m, batch=batch)


def test_a_law_whose_prices_are_all_zero_predicts_nothing(make: Any) -> None:
    fitted = make(rows("steps-5", SIX, (8,)))
    for term in fitted["groups"][0]["laws"]["steps-5"][0]["terms"].values():
        term["value"] = 0.0
    message = refused(fitted, 1, 1)
    assert "no positive energy" in message
    assert "input_tokens 1 is below" in message


def test_a_group_without_a_law_says_why(make: Any) -> None:
    one = rows("steps-5", SIX, (8,), cells=[(64, 64)], model="small")
    message = refused(make(rows("steps-5", SIX, (8,)), one), model="small")
    assert "no law can be fitted" in message


@pytest.mark.parametrize("source", SIMULATED)
def test_simulated_is_said(make: Any, source: str) -> None:
    answer = ask(make(rows("steps-5", SIX, (8,), source=source)))
    assert answer.source == source
    assert f"{SIMULATED[source]}: fitted to a simulated GPU" in answer.as_text()


def test_text_and_json_say_the_same(make: Any) -> None:
    answer = ask(make(rows("steps-8", EIGHT, (8, 64), gpu="H100")), 9000, 700)
    again = json.loads(json.dumps(answer.as_dict(), allow_nan=False))
    text = answer.as_text()
    for name in ("energy_per_request_j", "energy_per_output_token_high_j", "energy_batch_j"):
        assert f"{again[name]:.4g}" in text
    for reservation in again["extrapolates"] + again["warnings"]:
        assert reservation in text
    assert "llama-3.1-8b (H100)" in text


def test_a_predictor_holds_no_nan(make: Any, tmp_path: Path) -> None:
    fitted = make(rows("steps-5", SIX, (8,)))
    fitted["groups"][0]["laws"]["steps-5"][0]["relative_residual_sd"] = math.nan
    before = (tmp_path / "predictor.json").read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        predictor.write(fitted, tmp_path / "predictor.json")
    assert (tmp_path / "predictor.json").read_text() == before


def test_predicting_starts_without_the_analysis_packages(make: Any, tmp_path: Path) -> None:
    make(rows("steps-5", SIX, (8,)))
    code = (
        "import sys; from pathlib import Path; from sweetspot.predict import predictor\n"
        f"fitted = predictor.load(Path({str(tmp_path / 'predictor.json')!r}))\n"
        "answer = predictor.predict(fitted, 'llama-3.1-8b', 500, 700)\n"
        "answer.as_text()\n"
        "heavy = {'numpy', 'polars', 'scipy', 'pandera', 'pydantic', 'statsmodels', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
