"""The law across models: its features against a walk of every pass, its fit against tables of known prices."""

import copy
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_architecture import LENGTHS, SMALL, small

from simulation import ARCHITECTURES
from sweetspot import engines, models
from sweetspot.architecture import Architecture
from sweetspot.engines import simulated
from sweetspot.errors import SweetspotError
from sweetspot.fit.across_models import fit_across_models, read_architectures, summary
from sweetspot.precision import ElementBytes, element_bytes
from sweetspot.predict.across_models import TERMS, choose, features, predict, predict_by, waves

MODELS = ["opt-1.3b", "llama-3.2-3b", "gemma-2-9b", "falcon-7b", "qwen2-7b", "granite-3.1-2b"]
ARCHS = {model: models.load(ARCHITECTURES / f"{model}.json") for model in MODELS}
NEW = models.load(ARCHITECTURES / "llama-3.1-8b.json")
ENERGY = dict(zip(TERMS, [9e-13, 6e-13, 1.8e-10, 1.7e-10, 0.06, 0.014, 0.004], strict=True))
TIME = dict(zip(TERMS, [1.3e-15, 2e-16, 3.3e-13, 3.3e-13, 3e-4, 7e-5, 2e-5], strict=True))
CELLS = [(b, n, m) for b in (1, 8, 32) for n in (64, 512, 1024) for m in (64, 256, 1024)]


def table(
    models: dict[str, Architecture] | None = None,
    cells: list[tuple[int, int, int]] | None = None,
    noise: float = 0.0,
    departure: float = 0.0,
    **columns: Any,
) -> pl.DataFrame:
    """Cells at known prices, each price of a model off by `departure` and each cell by `noise` (relative, s.d.)."""
    draw = np.random.default_rng(3)
    rows = []
    for model, arch in (models or ARCHS).items():
        off = [np.exp(draw.normal(0, departure, len(TERMS))) for _ in range(2)]
        for batch, n, m in cells or CELLS:
            row = np.array(features(arch, ElementBytes(2, 2), n, m, batch, 1.0))
            energy, duration = (
                float(row @ (np.array(list(of.values())) * factor)) * np.exp(draw.normal(0, noise))
                for of, factor in zip((ENERGY, TIME), off, strict=True)
            )
            cell = {"batch": batch, "input_tokens": n, "output_tokens": m, "energy_j": energy, "duration_s": duration}
            rows.append(
                {"model": model, "gpu": "H100", "engine": "e", "precision": "bfloat16", "parallelism": "tp1"} | cell
            )
    frame = pl.DataFrame(rows).with_columns(source=pl.lit("measured"), waves=pl.lit(1.0))
    return frame.with_columns(pl.lit(value).alias(name) for name, value in columns.items())


def known(law: dict[str, float], n: int, m: int, batch: int, arch: Architecture = NEW) -> float:
    return sum(x * p for x, p in zip(features(arch, ElementBytes(2, 2), n, m, batch), law.values(), strict=True))


def fitted(cells: pl.DataFrame, architectures: dict[str, Any]) -> list[dict[str, Any]]:
    return fit_across_models(cells, architectures)[0]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_features_equal_a_walk_of_every_pass(kind: str, n: int, m: int) -> None:
    arch, model = small(kind)
    size, waves = 2, [3, 3, 1]  # a batch of 7 where the cache holds 3
    walked = dict.fromkeys(TERMS, 0)
    for requests in waves:
        for emitted in range(m):
            tokens = range(n + emitted, n + emitted + 1) if emitted else range(1, n + 1)
            walked["decode_flop" if emitted else "prefill_flop"] += requests * model.flops(tokens, 1)
            walked["weight_byte"] += model.weights_read() * size
            walked["pass"] += 1
            walked["layer_pass"] += len(model.windows)
            walked["token"] += requests
        walked["kv_byte"] += model.bytes_moved(n, m, requests, size) - m * model.weights_read() * size
    assert (
        dict(zip(TERMS, features(arch, ElementBytes(size, size), n, m, sum(waves), len(waves)), strict=True)) == walked
    )


def test_known_prices_are_found() -> None:
    entry, held_out = fit_across_models(table(), ARCHS)[0][0], fit_across_models(table(), ARCHS)[1]
    assert entry["energy"]["prices"] == pytest.approx(ENERGY, rel=1e-4)
    assert entry["duration"]["prices"] == pytest.approx(TIME, rel=1e-3)
    assert entry["energy"]["leave_one_model_out"]["mape_percent"] < 0.01
    assert held_out["ape_percent"].max() < 0.01
    assert set(held_out["held_out"]) == {f"model {model}" for model in MODELS}
    answer = predict_by(json.loads(json.dumps(entry)), NEW, 2000, 300, 16)
    assert answer.energy_batch_j == pytest.approx(known(ENERGY, 2000, 300, 16), rel=1e-3)
    assert answer.duration_s == pytest.approx(known(TIME, 2000, 300, 16), rel=1e-3)
    assert answer.power_w == pytest.approx(answer.energy_batch_j / answer.duration_s)
    assert answer.extrapolates == ["input_tokens 2000 is above the measured 64-1024"]
    assert answer.cells == 0
    assert "6 others" in answer.warnings[0]


def test_departing_models_are_predicted_within_honest_intervals() -> None:
    entries, held_out = fit_across_models(table(noise=0.01, departure=0.1), ARCHS)
    for target in ("energy", "duration"):
        error = entries[0][target]["leave_one_model_out"]
        assert 1 < error["mape_percent"] < 15
        assert error["coverage_percent"] > 85
        assert min(entries[0][target]["prices"].values()) >= 0
    errors = held_out.group_by("model").agg(pl.col("ape_percent").mean())
    assert dict(errors.rows()) == pytest.approx(entries[0]["energy"]["leave_one_model_out"]["models"])
    inside = held_out.filter(pl.col("energy_j").is_between("low_j", "high_j")).height / held_out.height
    assert 100 * inside == pytest.approx(entries[0]["energy"]["leave_one_model_out"]["coverage_percent"])


def test_six_cells_of_a_new_model_make_a_good_law_and_many_its_own() -> None:
    rows = table({**ARCHS, NEW.name: NEW}, noise=0.01, departure=0.15)
    mine = rows.filter(pl.col("model") == NEW.name)
    others = rows.filter(pl.col("model") != NEW.name)

    def entry(known: pl.DataFrame) -> dict[str, Any]:
        return fitted(pl.concat([others, known]), {**ARCHS, NEW.name: NEW})[0]

    def judged(entry: dict[str, Any]) -> tuple[float, float, float]:
        answers = [predict_by(entry, NEW, n, m, b) for b, n, m in CELLS]
        found, low, high, true = (
            np.array(values)
            for values in zip(
                *(
                    (a.energy_per_request_j, a.energy_per_request_low_j, a.energy_per_request_high_j, e / b)
                    for a, e, (b, _, _) in zip(answers, mine["energy_j"], CELLS, strict=True)
                ),
                strict=True,
            )
        )
        return np.abs(found / true - 1).mean(), ((low <= true) & (true <= high)).mean(), (high / low).mean()

    some = mine[[0, 5, 10, 16, 21, 26]]
    none, six, all_cells = judged(entry(mine[:0])), judged(entry(some)), judged(entry(mine))
    assert all_cells[0] < 0.012  # what noise of 1 % leaves
    assert six[0] < 2 * all_cells[0] < none[0]
    assert min(none[1], six[1], all_cells[1]) > 0.85
    assert none[2] > 1.5 * six[2] > all_cells[2]
    wild = some.with_columns(pl.when(pl.int_range(pl.len()) == 2).then(0.1).otherwise(1).alias("f"))
    guarded = entry(wild.with_columns(pl.col("energy_j") * pl.col("f")).drop("f"))
    assert guarded["models"][NEW.name]["odd_cells"] == [["energy_j", 8, 64, 256]]
    assert judged(guarded)[0] < 2 * six[0]


def test_a_model_in_the_table_is_predicted_by_its_own_rows_too() -> None:
    entry = fitted(table(noise=0.01, departure=0.15), ARCHS)[0]
    arch = ARCHS["qwen2-7b"]
    own, foreign = (predict_by(entry, replace(arch, name=name), 512, 256, 8) for name in (arch.name, "x"))
    assert own.cells == 27
    assert not [warning for warning in own.warnings if "not measured" in warning]
    spread = own.energy_per_request_high_j / own.energy_per_request_low_j
    assert spread < foreign.energy_per_request_high_j / foreign.energy_per_request_low_j


@pytest.mark.parametrize("factor", [10, 0.1])
def test_a_row_ten_times_off_moves_nothing_and_is_named(factor: float) -> None:
    rows = table(noise=0.01)
    position = pl.int_range(pl.len())
    broken = rows.with_columns(pl.col("energy_j") * pl.when(position == 40).then(factor).otherwise(1.0))
    whole, entry = fitted(rows, ARCHS)[0], fitted(broken, ARCHS)[0]
    cell = rows.row(40, named=True)
    named = [["energy_j", cell["batch"], cell["input_tokens"], cell["output_tokens"]]]
    assert {model: m["odd_cells"] for model, m in entry["models"].items() if m["odd_cells"]} == {cell["model"]: named}
    assert entry["energy"]["relative_sd"]["cell"] == pytest.approx(whole["energy"]["relative_sd"]["cell"], rel=0.1)
    assert entry["energy"]["leave_one_model_out"]["worst_ape_percent"] > 80  # still counted


def test_what_is_shared_and_what_is_not() -> None:
    rows = table()
    half = rows.with_columns(precision=pl.when(pl.col("model") < "h").then(pl.lit("float16")).otherwise("precision"))
    assert [set(e["precisions"]) for e in fitted(half, ARCHS)] == [{"float16", "bfloat16"}]
    others = [table(source="simulated"), table(engine="f"), table(precision="fp8"), table(parallelism="tp2")]
    entries = fitted(pl.concat([rows, *others]), ARCHS)
    assert len(entries) == 5
    with pytest.raises(SweetspotError, match=r"choose with --gpu, --engine, --precision[\s\S]*H100, f"):
        choose(entries)
    assert choose(entries, engine="F")["engine"] == "f"
    assert choose(entries, precision="fp8")["precisions"] == ["fp8"]
    assert choose(entries, parallelism="tp2")["parallelism"] == "tp2"


@pytest.mark.parametrize(
    ("precision", "weight", "cached"),
    [
        ("float32", 4, 4),
        ("bfloat16", 2, 2),
        ("fp16", 2, 2),
        ("fp8", 1, 2),
        ("fp8+kv_fp8", 1, 1),
        ("int8", 1, 2),
        ("int4", 0.5 + 2.5 / 128, 2),
        ("mxfp4", 0.5 + 1 / 32, 2),
        ("w4a16", 0.5 + 2.5 / 128, 2),
        ("q4_k_m", 0.5, 2),
        ("8 bits", 1, 2),
        ("unspecified", 2, 2),
    ],
)
def test_bytes_of_a_precision_of_other_tables(precision: str, weight: float, cached: int) -> None:
    assert element_bytes(precision)[:2] == (weight, cached)


def test_a_model_that_only_four_bits_fit_the_board_with() -> None:
    config = json.loads((ARCHITECTURES / "llama-3.1-8b.json").read_text())
    large = models.from_config(config | {"num_hidden_layers": 200}, "large")
    with pytest.raises(SweetspotError, match="GB of weights"):
        waves(large, "NVIDIA H100 80GB HBM3", "bfloat16", 64, 64, 1)
    assert waves(large, "NVIDIA H100 80GB HBM3", "int4", 64, 64, 1) == 1
    half, quarter = (features(large, element_bytes(name), 64, 64, 1) for name in ("fp8", "int4"))
    weight, cache = (list(TERMS).index(name) for name in ("weight_byte", "kv_byte"))
    eighth = features(large, element_bytes("fp8+kv_fp8"), 64, 64, 1)
    assert 0.5 < quarter[weight] / half[weight] < 0.55, "scales, and a head in 16 bits"
    assert quarter[cache] == half[cache] == 2 * eighth[cache]


def test_waves_are_as_recorded_or_what_the_cache_implies() -> None:
    assert waves(NEW, "H100", "bfloat16", 4096, 4096, 128) > 1
    assert waves(NEW, "some board", "bfloat16", 4096, 4096, 128) == 1
    with pytest.raises(SweetspotError, match="do not fit on NVIDIA H100"):
        waves(NEW, "H100", "bfloat16", 10**6, 10**6, 1)
    cells = [*CELLS, (128, 4096, 4096)]
    rows = table({"llama": NEW, **ARCHS}, cells)
    assert fitted(rows, {"llama": NEW, **ARCHS})[0]["energy"]["leave_one_model_out"]["mape_percent"] < 0.01
    implied = fitted(rows.with_columns(source=pl.lit("published")), {"llama": NEW, **ARCHS})[0]
    assert implied["energy"]["in_sample_mape_percent"] > 0.1  # these rows ran in one wave, which is taken for more


def test_too_little_for_a_law_says_why() -> None:
    one = fitted(table({"qwen2-7b": ARCHS["qwen2-7b"]}), ARCHS)[0]
    assert one["reason"] == "needs 3 models of known architecture; has 1"
    few = {model: ARCHS[model] for model in MODELS[:2]}
    unknown = fitted(table(), few)[0]
    assert "has 2; no architecture for gemma-2-9b, falcon-7b" in unknown["reason"]
    assert "needs more than 7 cells" in fitted(table(cells=CELLS[:1]), ARCHS)[0]["reason"]
    for entries in ([], [one]):
        with pytest.raises(SweetspotError, match=r"--architectures DIR|needs 3 models"):
            predict({"across_models": entries}, NEW, 64, 64)
    assert summary([one]) == "across models (H100, e, bfloat16): needs 3 models of known architecture; has 1"


def test_one_batch_or_length_is_not_carried_over_in_silence() -> None:
    entry = fitted(table(cells=[(8, n, m) for _, n, m in CELLS[:9]]), ARCHS)[0]
    inside, outside = (predict_by(entry, NEW, 512, 256, batch) for batch in (8, 32))
    assert inside.extrapolates == []
    assert "batch 32 is above the measured 8, the only batch in the rows" in outside.extrapolates
    assert outside.energy_per_request_high_j >= 4 * outside.energy_per_request_j


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_what_several_gpus_exchange_has_a_price(tensor: int) -> None:
    """Without one, a left-out model on four boards with slow links is off by 8 %."""
    spread = {model: arch for model, arch in ARCHS.items() if arch.heads % 4 == 0}
    board, rows = "NVIDIA H100 PCIe", []
    for (model, arch), (batch, n, m) in itertools.product(spread.items(), CELLS):
        asked = engines.EngineSpec("simulated", arch, "bfloat16", "none", board, batch, n, m, 0.9, 1)
        energy, duration, times = simulated.expected(replace(asked, tensor_parallel=tensor), n, m)
        cell = {"batch": batch, "input_tokens": n, "output_tokens": m, "energy_j": energy, "duration_s": duration}
        rows.append(
            {"model": model, "gpu": board, "engine": "e", "precision": "bfloat16", "waves": float(times)} | cell
        )
    frame = pl.DataFrame(rows).with_columns(source=pl.lit("simulated"), parallelism=pl.lit(f"tp{tensor}"))
    entry = fitted(frame, spread)[0]
    for target in ("energy", "duration"):
        assert entry[target]["leave_one_model_out"]["mape_percent"] < 0.6
    answer = predict_by(entry, NEW, 512, 256, 8)
    asked = engines.EngineSpec("simulated", NEW, "bfloat16", "none", board, 8, 512, 256, 0.9, 1)
    truth, _, _ = simulated.expected(replace(asked, tensor_parallel=tensor), 512, 256)
    assert answer.energy_batch_j == pytest.approx(truth, rel=0.01)
    older = copy.deepcopy(entry)  # a file that has no such price yet is still read
    for law in (older["energy"], older["duration"]):
        law["prices"].pop("exchanged_byte", None)
        law["covariance"] = [line[: len(TERMS)] for line in law["covariance"][: len(TERMS)]]
    assert predict_by(older, NEW, 512, 256, 8).energy_batch_j <= answer.energy_batch_j


def test_that_latency_is_not_predicted_is_said() -> None:
    answer = predict_by(fitted(table(), ARCHS)[0], NEW, 512, 256, 8)
    assert answer.latency_s == {}
    assert any("no time to first token" in warning for warning in answer.warnings)


def test_durations_may_be_missing() -> None:
    nothing = fitted(table().with_columns(duration_s=pl.lit(None, dtype=pl.Float64)), ARCHS)[0]
    answer = predict_by(nothing, NEW, 512, 256, 8)
    assert (nothing["duration"], answer.duration_s, answer.power_w) == (None, None, None)
    some = table().with_columns(duration_s=pl.when(pl.col("model") != "opt-1.3b").then("duration_s"))
    entries, held_out = fit_across_models(some, ARCHS)
    assert entries[0]["models"]["opt-1.3b"]["duration"] is None
    assert held_out.filter(pl.col("predicted_s").is_null())["model"].unique().to_list() == ["opt-1.3b"]
    assert predict_by(entries[0], ARCHS["opt-1.3b"], 512, 256, 8).duration_s == pytest.approx(
        known(TIME, 512, 256, 8, ARCHS["opt-1.3b"]), rel=1e-3
    )


@pytest.mark.parametrize(
    ("factor", "word"), [(3, "above the board's power cap of 700 W"), (0.2, "below the board's idle power of 110 W")]
)
def test_a_power_that_no_board_draws_is_said(factor: float, word: str) -> None:
    rows = table(idle_w=110.0).with_columns(pl.col("energy_j") * factor)
    answer = predict_by(fitted(rows, ARCHS)[0], NEW, 512, 256, 8)
    assert any(word in warning for warning in answer.warnings)


def test_bad_questions_are_refused() -> None:
    entry = fitted(table(), ARCHS)[0]
    with pytest.raises(SweetspotError, match="output_tokens is 0"):
        predict_by(entry, NEW, 64, 0, 1)
    with pytest.raises(SweetspotError, match="more than 2048 exceed the 2048 positions"):
        predict_by(entry, ARCHS["opt-1.3b"], 1024, 1025, 1)


def sweetspot(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweetspot", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_fit_and_predict_an_unmeasured_model_from_the_command_line(tmp_path: Path) -> None:
    four = {model: ARCHS[model] for model in MODELS[1:5]}
    table(four, CELLS[::2]).drop("waves").write_csv(tmp_path / "rows.csv")
    fitted = sweetspot("fit", tmp_path / "rows.csv", "--out", tmp_path, "--architectures", ARCHITECTURES)
    assert fitted.returncode == 0, fitted.stderr
    assert "4 models; energy of a left-out model is off by 0.00 %" in fitted.stdout
    query = ["predict", "--predictor", tmp_path / "predictor.json", "--input-tokens", 900, "--output-tokens", 200]
    query += ["--architecture", ARCHITECTURES / "llama-3.1-8b.json", "--batch", 16]
    answer = sweetspot(*query, "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["energy_batch_j"] == pytest.approx(known(ENERGY, 900, 200, 16), rel=1e-3)
    assert "this model was not measured" in sweetspot(*query).stdout
    predictor = json.loads((tmp_path / "predictor.json").read_text())
    del predictor["across_models"]
    (tmp_path / "predictor.json").write_text(json.dumps(predictor))
    without = sweetspot(*query)
    assert (without.returncode, without.stdout) == (1, "")
    assert "no law across models" in without.stderr


def test_models_of_too_few_cells_make_a_law_together(tmp_path: Path) -> None:
    rows = table(cells=CELLS[:2]).filter((pl.col("model") != MODELS[1]) | (pl.int_range(pl.len()) % 2 == 0))
    rows.drop("waves").write_csv(tmp_path / "rows.csv")
    fitting = ["fit", tmp_path / "rows.csv", "--out", tmp_path]
    assert "no law can be fitted" in sweetspot(*fitting).stdout
    fitted = sweetspot(*fitting, "--architectures", ARCHITECTURES)
    assert fitted.returncode == 0, fitted.stderr
    lengths = ["--input-tokens", CELLS[0][0], "--output-tokens", CELLS[0][1]]
    query = ["predict", "--predictor", tmp_path / "predictor.json", *lengths]
    alone = sweetspot(*query, "--model", MODELS[1])
    assert alone.returncode == 1
    assert "the law across models uses its cells and predicts it" in alone.stderr
    answer = sweetspot(*query, "--architecture", ARCHITECTURES / f"{MODELS[1]}.json", "--json")
    assert json.loads(answer.stdout)["cells"] == 1


def test_a_model_of_few_cells_is_told_of_the_law_across_models(tmp_path: Path) -> None:
    few = table({MODELS[1]: ARCHS[MODELS[1]]}, CELLS[:2])
    others = table({model: ARCHS[model] for model in MODELS[2:]})
    pl.concat([others, few]).drop("waves").write_csv(tmp_path / "rows.csv")
    fitted = sweetspot("fit", tmp_path / "rows.csv", "--out", tmp_path, "--architectures", ARCHITECTURES)
    assert fitted.returncode == 0, fitted.stderr
    query = ["predict", "--predictor", tmp_path / "predictor.json"]
    for model, batch, said in (
        (MODELS[1], 128, "uses its cells and predicts it: give its config.json with --architecture"),
        (MODELS[1], 16, "ask it with --architecture"),
        (MODELS[2], 16, ""),
    ):
        lengths = ["--input-tokens", 300, "--output-tokens", 200, "--batch", batch]
        answer = sweetspot(*query, "--model", model, *lengths)
        assert answer.returncode == ("uses its" in said), answer.stderr
        assert said in answer.stderr
        assert bool(said) == bool(answer.stderr)


def test_resolved_architectures_and_owners_are_read(tmp_path: Path) -> None:
    resolved = models.resolved(ARCHITECTURES / "llama-3.1-8b.json")
    (tmp_path / "Llama.json").write_text(json.dumps(resolved))
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/config.json").write_text((ARCHITECTURES / "opt-1.3b.json").read_text())
    (tmp_path / "odd.json").write_text('{"model_type": "perceptron"}')
    found, refused = read_architectures(tmp_path, ["meta/Llama", "opt", "other", "odd"])
    assert found.keys() == {"meta/Llama", "opt"}
    assert found["meta/Llama"] == NEW
    (said,) = refused
    assert "odd.json" in said
    assert "odd is left out" in said
    with pytest.raises(SweetspotError, match="no such directory"):
        read_architectures(tmp_path / "no", ["opt"])


def test_a_prediction_needs_the_standard_library_only() -> None:
    code = "import sys, sweetspot.predict.across_models\n"
    code += "sys.exit(any(name in sys.modules for name in ('numpy', 'polars', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_kind_of_layer_that_no_measured_model_has_is_an_extrapolation() -> None:
    entry = fit_across_models(table(), ARCHS)[0][0]
    mixture = models.load(ARCHITECTURES / "qwen3-30b-a3b.json")
    assert any("has experts" in reason for reason in predict_by(entry, mixture, 512, 256, 8).extrapolates)
    assert not any("experts" in reason for reason in predict_by(entry, NEW, 512, 256, 8).extrapolates)
