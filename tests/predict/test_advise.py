"""Advice against brute force: a table made by a formula is fitted, and every answer worked out from the formula."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advising import BATCHES, NOW, POWER_W, ask, fit, joules, rows, told
from sweetspot.commands.main import main
from sweetspot.errors import SweetspotError
from sweetspot.predict import advise_text, predictor, workload
from sweetspot.predict.advise import Wishes, advise
from sweetspot.table import requests


def test_now_is_the_formula_in_every_unit(fitted: dict[str, Any]) -> None:
    now = told(fitted, grid_g_per_kwh=380.0)["now"]
    truth = joules(1500, 200, 8)
    assert now["energy_per_request_j"] == pytest.approx(truth, rel=1e-3)
    assert now["energy_per_1000_requests_kwh"] == pytest.approx(truth * 1000 / 3.6e6, rel=1e-3)
    assert now["carbon_per_1000_requests_g_co2e"] == pytest.approx(truth * 1000 / 3.6e6 * 380, rel=1e-3)
    assert "co2" not in json.dumps(told(fitted)).lower()  # no carbon without a grid factor
    assert now["energy_per_request_low_j"] <= now["energy_per_request_j"] <= now["energy_per_request_high_j"]


def test_each_what_if_is_the_formula(fitted: dict[str, Any]) -> None:
    what_ifs = {"truncate": [400], "summarise": [100], "cap": [90], "split": [70], "batches": [32]}
    truth = {
        "truncate": joules(400, 200, 8),
        "summarise": joules(1500, 100, 8) + joules(100, 200, 8),
        "cap": joules(1500, 90, 8),
        "split": 2 * joules(1500, 67, 8) + joules(1500, 66, 8),
        "batches": joules(1500, 200, 32),
    }
    answer = told(fitted, what_ifs=what_ifs)
    now = joules(1500, 200, 8)
    found = {what["what_if"]: what for what in answer["what_ifs"]}
    assert found.keys() == truth.keys()
    for kind, energy in truth.items():
        assert found[kind]["energy_per_request_j"] == pytest.approx(energy, rel=1e-3), kind
        assert found[kind]["saving_per_request_j"] == pytest.approx(now - energy, rel=2e-3), kind
        assert found[kind]["saving_percent"] == pytest.approx(100 * (1 - energy / now), rel=2e-3), kind
    order = [what["saving_per_request_j"] for what in answer["what_ifs"]]
    assert order == sorted(order, reverse=True)


def test_another_model_makes_the_summary(fitted: dict[str, Any]) -> None:
    answer = ask(fitted, what_ifs={"summarise": [100]}, summariser="small")
    truth = joules(1500, 100, 8, price=0.1) + joules(100, 200, 8)
    assert answer.options[0].cost is not None
    assert answer.options[0].cost.energy_j.value == pytest.approx(truth, rel=1e-3)
    text = advise_text.as_text(answer)
    assert "summaries below are by small" in text
    assert "pays off at its first use" in text


def test_what_is_listed_when_nothing_is_named(fitted: dict[str, Any]) -> None:
    answer = told(fitted, 1024, 2000)
    spot = answer["sweet_spot"]["output_tokens"]
    named = {(what["what_if"], what.get("tokens", what.get("batch"))) for what in answer["what_ifs"]}
    expected = {(kind, tokens) for kind in ("truncate", "summarise") for tokens in (512, 256)}
    assert named == expected | {("cap", spot), ("split", spot), ("batches", 1), ("batches", 32)}
    short = ask(fitted, 1024, 64)
    assert not {"cap", "split"} & {option.kind for option in short.options}
    assert any("sweet spot" in note for note in short.notes)


def test_the_sweet_spot_by_brute_force(fitted: dict[str, Any]) -> None:
    spot = told(fitted)["sweet_spot"]
    per_token = {m: joules(1500, m, 8) / m for m in range(64, 2049)}
    best = min(per_token, key=lambda m: per_token[m])
    assert spot["output_tokens"] == pytest.approx(best, rel=0.01)
    assert spot["times_above"] == pytest.approx(joules(1500, 200, 8) / 200 / per_token[best], rel=1e-3)
    low, high = spot["plateau_output_tokens"]
    assert low < best < high
    assert all(per_token[m] <= 1.011 * per_token[best] for m in (low, high))


def test_no_sweet_spot_is_invented(fitted: dict[str, Any]) -> None:
    cheap = json.loads(json.dumps(fitted))  # a prefill that costs less than a decode step
    for name in "wx":
        cheap["groups"][0]["laws"]["steps-8"][0]["terms"][name]["value"] = 0.0
    known = told(cheap, 1, 200, batch=32)["sweet_spot"]  # there energy per token rises from the shortest reply on
    assert known["output_tokens"] is None
    assert "rises throughout" in known["status"]
    blind = json.loads(json.dumps(fitted))
    for entry in blind["groups"][0]["sweet_spots"]:
        entry["status"] = "not identified"
    assert told(blind)["sweet_spot"]["status"].startswith("not identified")


@pytest.mark.parametrize(("n", "m"), [(1500, 200), (2000, 1500)])
def test_break_even_points_by_brute_force(fitted: dict[str, Any], n: int, m: int) -> None:
    k = 80
    answer = told(fitted, n, m, what_ifs={"summarise": [k], "split": [m // 2]})
    found = {(even["what_if"], even["axis"]): even for even in answer["break_evens"]}

    def gain(n: int, m: int, batch: int, uses: int = 1) -> float:
        return uses * (joules(n, m, batch) - joules(k, m, batch)) - joules(n, k, batch)

    truth = {
        ("summarise", "uses"): min((uses for uses in range(1, 1000) if gain(n, m, 8, uses) > 0), default=None),
        ("summarise", "output_tokens"): min((x for x in range(64, 2049) if gain(n, x, 8) > 0), default=None),
        ("summarise", "input_tokens"): min((x for x in range(k + 1, 2049) if gain(x, m, 8) > 0), default=None),
        ("summarise", "batch"): min((x for x in range(1, 33) if gain(n, m, x) > 0), default=None),
        ("split", "output_tokens"): min(
            (x for x in range(64, 2049) if joules(n, x, 8) > joules(n, x // 2, 8) + joules(n, x - x // 2, 8)),
            default=None,
        ),
    }
    assert found.keys() == truth.keys()
    for key, value in truth.items():
        where = found[key]["where"]
        if value is None:
            assert where == "never", key
        elif where == "always":
            assert value == found[key]["tried_from_to"][0], key
        else:
            assert where == "from", key
            assert found[key]["value"] == pytest.approx(value, rel=0.01, abs=1), key


def test_what_extrapolates_is_marked_and_said_once(fitted: dict[str, Any]) -> None:
    answer = ask(fitted, what_ifs={"truncate": [400, 32], "batches": [100, 200]})
    text = advise_text.as_text(answer)
    assert text.count("input_tokens 32 is below the measured 64-2048") == 1
    lines = text.splitlines()
    assert any(line.startswith("truncate prompts to 32 *") for line in lines)
    assert any(line.startswith("truncate prompts to 400  ") for line in lines)
    assert text.count("batch 100 is above the measured 1-32") == 1
    assert text.count("was not measured") == 1
    assert "so every saving does" not in text
    assert "so every saving does" in advise_text.as_text(ask(fitted, 5000, 200))


def test_a_mix_is_the_mean_of_its_requests(fitted: dict[str, Any]) -> None:
    mix = workload.Workload(((200, 100, 1), (1500, 200, 7)))
    answer = advise(fitted, "big", mix, Wishes(batch=8, what_ifs={"summarise": [300], "cap": [150]}))
    now = (7 * joules(1500, 200, 8) + joules(200, 100, 8)) / 8
    then = (7 * (joules(1500, 300, 8) + joules(300, 200, 8)) + joules(200, 100, 8)) / 8
    assert answer.now.energy_j.value == pytest.approx(now, rel=1e-3)
    (summary,) = (option for option in answer.options if option.kind == "summarise")
    assert summary.cost is not None
    assert summary.cost.energy_j.value == pytest.approx(then, rel=1e-3)
    assert "not defined: the requests have different lengths" in advise_text.as_text(answer)


def test_a_large_log_is_answered_from_buckets(fitted: dict[str, Any], tmp_path: Path) -> None:
    pairs = [(64 + i * 37 % 1900, 64 + i * 101 % 1800) for i in range(6000)]
    (tmp_path / "log.csv").write_text("input_tokens,output_tokens\n" + "".join(f"{n},{m}\n" for n, m in pairs))
    log = workload.of_counts(requests.read(tmp_path / "log.csv").counts)
    assert log.requests == 6000
    assert len(log.lengths) <= 2000
    answer = advise(fitted, "big", log, Wishes(batch=8, what_ifs={"truncate": [300]}))
    truth = sum(joules(n, m, 8) for n, m in pairs) / 6000
    assert answer.now.energy_j.value == pytest.approx(truth, rel=0.005)
    (option,) = answer.options
    assert option.saving is not None
    assert option.saving.energy_j.value == pytest.approx(
        truth - sum(joules(min(n, 300), m, 8) for n, m in pairs) / 6000, rel=0.02
    )
    assert "length pairs merged into" in advise_text.as_text(answer)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["advise", *map(str, arguments)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("sweetspot: error: ")
    return message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([*NOW, "--model", "bigg"], ["no model 'bigg'", "did you mean big?"]),
        ([*NOW, "--truncate", 1500], ["--truncate 1500", "the prompt has 1500 tokens"]),
        ([*NOW, "--summarise", 9000], ["--summarise 9000", "the prompt has 1500 tokens"]),
        ([*NOW, "--cap", 200], ["--cap 200", "the reply has 200 tokens"]),
        ([*NOW, "--batches", 0], ["--batches 0", "at least 1"]),
        ([*NOW, "--max-latency", 5], ["no durations", "duration_s"]),
        ([*NOW, "--grid-g-per-kwh", -3], ["--grid-g-per-kwh -3"]),
        ([*NOW, "--summariser", "smal"], ["no model 'smal'", "did you mean small?"]),
        ([*NOW, "--map", "a=input_tokens"], ["--requests"]),
        ([*NOW, "--requests", "x.csv"], ["--input-tokens and --output-tokens, or"]),
        (["--input-tokens", 5, "--batch", 8], ["--output-tokens"]),
        (["--input-tokens", 9000, "--output-tokens", 5, "--batch", 8, "--strict"], ["9000 is above", "--strict"]),
        (["--input-tokens", 0, "--output-tokens", 5, "--batch", 8], ["--input-tokens 0"]),
        (["--input-tokens", 5, "--output-tokens", 5, "--batch", 0], ["batch is 0"]),
        (["--input-tokens", 5, "--output-tokens", 5, "--request-rate", "nan"], ["--request-rate nan"]),
        (["--input-tokens", 500, "--output-tokens", 500, "--request-rate", 2], ["no durations", "give --batch"]),
    ],
)
def test_a_mistake_is_one_message(
    untimed_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], parts: list[str]
) -> None:
    message = refused(capsys, "--predictor", untimed_file, "--model", "big", *arguments)
    for part in parts:
        assert part in message


def test_the_batch_follows_from_the_request_rate(fitted_timed: dict[str, Any]) -> None:
    """By the formula B = R E(B) B / P, whose solution is where requests take rate × energy = power."""
    for rate in (0.3, 1.0, 2.5):
        now = told(fitted_timed, 1500, 200, rate_per_s=rate)["now"]
        batches = [1 + i / 1000 for i in range(200_000)]
        behind = [(rate * joules(1500, 200, b) / POWER_W - 1) > 0 for b in batches]
        assert True in behind or rate < 0.5
        truth = batches[behind.index(False)]
        if truth > 1:
            assert now["requests_in_flight"] == pytest.approx(truth, rel=2e-3)
            assert now["energy_per_request_j"] == pytest.approx(joules(1500, 200, truth), rel=2e-3)
            assert now["latency_s"] == pytest.approx(truth / rate, rel=0.01)
            assert now["gpu_idle_per_request_s"] == 0
        else:
            share = rate * joules(1500, 200, 1) / POWER_W
            assert now["requests_in_flight"] == pytest.approx(share, rel=1e-3)
            assert now["gpu_idle_per_request_s"] == pytest.approx((1 - share) / rate, rel=1e-3)


def test_a_rate_beyond_the_gpu_is_refused(timed_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--predictor", timed_file, "--model", "big", *NOW[:4], "--request-rate", 100]
    message = refused(capsys, *arguments)
    assert "cannot keep up with 100 requests/s" in message
    pace = POWER_W / joules(1500, 200, 32)
    assert f"at most {pace:.3g} requests/s" in message
    assert f"over {math.ceil(100 / pace)} GPUs" in message


def test_few_unknown_requests_do_not_hide_what_the_others_cost(tmp_path: Path) -> None:
    """What is refused alone is a small part of a log; a rate is judged by times."""
    cells = {(1, 64, 64): 1.1, (1, 128, 64): 0.9, (8, 128, 2048): 1.1, (8, 2048, 512): 0.9}
    table = [
        row | {"energy_j": row["energy_j"] * cells[cell], "duration_s": row["energy_j"] / POWER_W}
        for row in rows()
        if row["model"] == "big" and (cell := (row["batch"], row["input_tokens"], row["output_tokens"])) in cells
    ]
    fitted = predictor.load(fit(tmp_path, table))
    with pytest.raises(SweetspotError, match="do not determine the energy of 9000 \\+ 10 tokens at batch 8"):
        ask(fitted, 9000, 10)
    answer = advise(fitted, "big", workload.of_counts({(500, 500): 99, (9000, 10): 1}), Wishes(batch=8))
    assert answer.now.energy_j.value == pytest.approx(joules(500, 500, 8), rel=0.5)
    assert "lie outside the measured cells" in advise_text.as_text(answer)
    with pytest.raises(SweetspotError, match="cannot keep up with 100 requests/s"):
        ask(fitted, 512, 512, rate_per_s=100.0)


def test_waiting_for_a_batch_takes_time_and_idles(fitted_timed: dict[str, Any]) -> None:
    rate = 2.0
    answer = told(fitted_timed, 1500, 200, rate_per_s=rate, what_ifs={"batches": [1, 32]})
    full, single = answer["what_ifs"]
    run_s = 32 * joules(1500, 200, 32) / POWER_W
    assert full["latency_s"] == pytest.approx(31 / rate + run_s, rel=1e-3)
    assert full["gpu_idle_per_request_s"] == pytest.approx(1 / rate - run_s / 32, rel=1e-3)
    lost_w = full["saving_per_request_j"] / (full["gpu_idle_per_request_s"] - answer["now"]["gpu_idle_per_request_s"])
    assert full["idle_power_that_uses_the_saving_up_w"] == pytest.approx(lost_w)
    assert "cannot keep up" in single["excluded"]


def test_what_takes_too_long_is_excluded(fitted_timed: dict[str, Any]) -> None:
    seconds = {batch: batch * joules(1500, 200, batch) / POWER_W for batch in BATCHES}
    most = 0.7 * seconds[8] + 0.3 * seconds[32]
    answer = ask(fitted_timed, what_ifs={"batches": [1, 32]}, max_latency_s=most)
    assert [option.number for option in answer.ranked] == [1]
    assert [option.number for option in answer.excluded] == [32]
    text = advise_text.as_text(answer)
    assert f"takes {seconds[32]:.3g} s, more than {most:g} s" in text
    largest = max(batch for batch in range(1, 33) if batch * joules(1500, 200, batch) / POWER_W <= most)
    assert f"The latency limit is met up to a batch of {largest}" in text
    with pytest.raises(SweetspotError, match="no option meets it; in the fastest, batch 1, a request takes"):
        ask(fitted_timed, what_ifs={"batches": [1, 32]}, max_latency_s=0.01)


def test_simulated_is_said_first(fitted_timed: dict[str, Any]) -> None:
    assert [at.start() for at in re.finditer("SIMULATED", advise_text.as_text(ask(fitted_timed)))] == [0]


def test_the_command_prints_both_ways(untimed_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["advise", "--predictor", str(untimed_file), "--model", "big", *NOW]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "gross energy of the GPU board" in text
    best = answer["what_ifs"][0]
    assert f"Best: {best['name']}" in text
    assert "times or more; used once, it pays off" in text
    for what in answer["what_ifs"]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{what['name']} ")]
        assert f"{what['saving_percent']:.3g}" in line


def test_it_starts_without_the_analysis_packages(untimed_file: Path) -> None:
    code = (
        "import sys; from sweetspot.commands.main import main\n"
        f"main(['advise', '--predictor', {str(untimed_file)!r}, '--model', 'big', *{NOW!r}])\n"
        "print({'numpy', 'polars', 'scipy', 'pandera', 'pydantic', 'statsmodels', 'yaml'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).endswith("\nset()\n")
