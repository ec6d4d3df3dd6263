"""Limits on the time to first token and on the time per further token, in advice."""

import json
from pathlib import Path
from typing import Any

import pytest

from advising import NOW, POWER_W, ask, fit, rows, told
from sweetspot.commands.main import main
from sweetspot.errors import SweetspotError
from sweetspot.predict import advise_text, predictor, workload
from sweetspot.predict.advise import Wishes, advise


def ttft_s(n: int, batch: float) -> float:
    return 0.01 + 1e-5 * n * batch


def tpot_s(n: int, m: int, batch: float) -> float:
    return 0.008 + 1e-4 * batch + 1e-8 * batch * (n + (m - 1) / 2)


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = [
        row
        | {"duration_s": row["energy_j"] / POWER_W}
        | {"ttft_p95_s": ttft_s(row["input_tokens"], row["batch"])}
        | {"tpot_p95_s": tpot_s(row["input_tokens"], row["output_tokens"], row["batch"])}
        for row in rows()
    ]
    return fit(tmp_path_factory.mktemp("prompt"), table)


@pytest.fixture(scope="module")
def fitted_prompt(prompt_file: Path) -> dict[str, Any]:
    return predictor.load(prompt_file)


def test_the_time_to_first_token_is_told_and_limited(fitted_prompt: dict[str, Any]) -> None:
    most = (ttft_s(1500, 8) + ttft_s(1500, 32)) / 2
    answer = told(fitted_prompt, what_ifs={"batches": [1, 32]}, max_ttft_s=most)
    assert answer["now"]["ttft_p95_s"] == pytest.approx(ttft_s(1500, 8), rel=1e-6)
    assert answer["now"]["tpot_p95_s"] == pytest.approx(tpot_s(1500, 200, 8), rel=1e-6)
    kept, out = answer["what_ifs"]
    assert kept["excluded"] is None
    assert out["excluded"] == f"the first token takes {ttft_s(1500, 32):.3g} s, more than {most:g} s"
    text = advise_text.as_text(ask(fitted_prompt, what_ifs={"batches": [1, 32]}, max_ttft_s=most))
    assert "0.130 s to the first token and 0.00893 s for each further one" in text
    assert "first token" in next(line for line in text.splitlines() if line.startswith("what if"))


def test_the_time_per_further_token_is_limited(fitted_prompt: dict[str, Any]) -> None:
    most = (tpot_s(1500, 200, 8) + tpot_s(1500, 200, 32)) / 2
    answer = ask(fitted_prompt, what_ifs={"batches": [1, 32]}, max_tpot_s=most)
    assert [option.number for option in answer.ranked] == [1]
    assert "each further token takes" in advise_text.as_text(answer)
    with pytest.raises(SweetspotError, match=r"--max-tpot 0.001: no option meets it; in the fastest, batch 1, each"):
        ask(fitted_prompt, what_ifs={"batches": [1, 32]}, max_tpot_s=0.001)


def test_every_limit_counts_and_a_broken_one_is_said(fitted_prompt: dict[str, Any]) -> None:
    answer = ask(
        fitted_prompt, what_ifs={"batches": [1, 32]}, max_ttft_s=0.9 * ttft_s(1500, 8), max_tpot_s=tpot_s(1500, 200, 9)
    )
    text = advise_text.as_text(answer)
    assert "not allowed: the first token takes" in text
    assert len(answer.excluded) == 1
    assert all(words in str(answer.excluded[0].excluded) for words in ("first token", "further token"))


def test_the_first_token_waits_for_the_whole_summary(fitted_prompt: dict[str, Any]) -> None:
    answer = told(fitted_prompt, what_ifs={"summarise": [100]})
    (summary,) = answer["what_ifs"]
    before = predictor.predict(fitted_prompt, "big", 1500, 100, 8).duration_s
    assert before is not None
    assert summary["ttft_p95_s"] == pytest.approx(before + ttft_s(100, 8), rel=1e-6)


def test_between_batches_times_are_interpolated(fitted_prompt: dict[str, Any]) -> None:
    answer = told(fitted_prompt, rate_per_s=3.0, what_ifs={"batches": [1]})
    in_flight = answer["now"]["requests_in_flight"]
    assert answer["now"]["ttft_p95_s"] == pytest.approx(ttft_s(1500, max(1.0, in_flight)), rel=1e-3)


def test_a_reply_of_one_token_meets_any_limit_on_further_ones(fitted_prompt: dict[str, Any]) -> None:
    answer = ask(fitted_prompt, what_ifs={"cap": [1]}, max_tpot_s=tpot_s(1500, 200, 9))
    assert [option.excluded for option in answer.options] == [None]


def test_without_latencies_a_limit_is_refused_with_the_columns_to_add(
    timed_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--predictor", str(timed_file), "--model", "big", *NOW, "--max-ttft", "1"]) == 1
    error = capsys.readouterr().err
    assert "no time to first token in it, so --max-ttft cannot be checked; fit a table with ttft_p95_s" in error


def test_the_command_takes_the_limits(prompt_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["advise", "--predictor", str(prompt_file), "--model", "big", *NOW, "--max-ttft", "0.2"]
    assert main([*command, "--max-tpot", "0.02", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["workload"]["max_ttft_s"], answer["workload"]["max_tpot_s"]) == (0.2, 0.02)
    assert main([*command[:-1], "0"]) == 1
    assert "--max-ttft 0: give a number above 0" in capsys.readouterr().err


def test_replies_of_one_token_hide_no_slow_ones(fitted_prompt: dict[str, Any]) -> None:
    load = workload.of_counts({(1500, 1): 96, (2000, 2000): 4})
    answer = advise(fitted_prompt, "big", load, Wishes(batch=8, what_ifs={"cap": [500]}, max_tpot_s=1.0))
    assert answer.now.tpot_p95_s == pytest.approx(tpot_s(2000, 2000, 8), rel=1e-6)
    with pytest.raises(SweetspotError, match="no option meets it"):
        advise(fitted_prompt, "big", load, Wishes(batch=8, what_ifs={"cap": [500]}, max_tpot_s=0.0001))
