"""Logs of requests as serving systems and published traces have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweetspot.errors import SweetspotError
from sweetspot.table import requests

PAIRS = [(165, 66), (1421, 457), (2048, 1), (300, 1024)]


def csv(header: str, row: Callable[[int, int, int], list[Any]], separator: str = ",") -> str:
    lines = [header.replace(",", separator)]
    lines += [separator.join(map(str, row(i, n, m))) for i, (n, m) in enumerate(PAIRS)]
    return "\n".join(lines) + "\n"


def jsonl(row: Callable[[int, int, int], dict[str, Any]]) -> str:
    return "".join(json.dumps(row(i, n, m)) + "\n" for i, (n, m) in enumerate(PAIRS))


def usage(n: int, m: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": n, "completion_tokens": m, "total_tokens": n + m}}


LOGS = {  # content, and seconds between requests if the log has times
    "Azure.csv": (
        csv("TIMESTAMP,ContextTokens,GeneratedTokens", lambda i, n, m: [f"2023-11-16 18:17:0{i}.9799600", n, m]),
        1,
    ),
    "BurstGPT.csv": (
        csv(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
            lambda i, n, m: [5 * i, "ChatGPT", n, m, n + m, "API log"],
        ),
        5,
    ),
    "Mooncake.jsonl": (
        jsonl(lambda i, n, m: {"timestamp": 3000 * i, "input_length": n, "output_length": m, "hash_ids": [i, 7]}),
        3,
    ),
    "OpenAI.jsonl": (
        jsonl(lambda i, n, m: {"created": 1_700_000_000 + i, "choices": [{"finish_reason": "stop"}], **usage(n, m)}),
        1,
    ),
    "batch API.jsonl": (
        jsonl(lambda i, n, m: {"response": {"status_code": 200, "body": usage(n, m)}, "error": None}),
        None,
    ),
    "LiteLLM.json": (
        json.dumps(
            [
                {
                    **{"spend": 0.1, "startTime": f"2026-01-01T00:00:0{i}.5Z", "status": "success"},
                    **{"prompt_tokens": n, "completion_tokens": m, "total_tokens": n + m},
                }
                for i, (n, m) in enumerate(PAIRS)
            ]
        ),
        1,
    ),
    "vLLM.log": (
        jsonl(lambda i, n, m: {"num_prompt_tokens": n, "num_generation_tokens": m, "arrival_time": 1.7e9 + i}),
        1,
    ),
    "spans.jsonl": (
        jsonl(lambda i, n, m: {"attributes": {"gen_ai.usage.input_tokens": n, "gen_ai.usage.output_tokens": m}}),
        None,
    ),
    "German.csv": (csv("prompt_tokens,completion_tokens", lambda i, n, m: [f"{n:,}".replace(",", "."), m], ";"), None),
    "quoted.csv": (csv("ts,isl,osl", lambda i, n, m: [1_700_000_000_000 + 1000 * i, f'"{n:,}"', m]), 1),
    "texts.csv": (
        csv(
            "prompt,prompt_tokens,completion_tokens", lambda i, n, m: ['"# Title\n\n## a, ""b"""' if i else "#x", n, m]
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_common_logs_are_read(tmp_path: Path, name: str) -> None:
    content, seconds = LOGS[name]
    (tmp_path / name).write_text(content)
    log = requests.read(tmp_path / name)
    assert log.counts == dict.fromkeys(PAIRS, 1)
    assert (None if log.times_s is None else log.times_s.to_list()) == (
        None if seconds is None else pytest.approx([seconds * i for i in range(len(PAIRS))], abs=1e-3)
    )


ABORTED = {
    "no reply": '{"prompt_tokens": 9, "completion_tokens": 0}',
    "empty reply": '{"prompt_tokens": 9, "completion_tokens": null}',
    "by status": '{"prompt_tokens": 9, "completion_tokens": 4, "finish_reason": "abort"}',
    "by code": '{"prompt_tokens": 9, "completion_tokens": 4, "status_code": 500}',
    "an error": '{"prompt_tokens": null, "completion_tokens": null, "error": {"code": 500}}',
}


@pytest.mark.parametrize("kind", ABORTED)
def test_aborted_requests_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    whole = jsonl(lambda i, n, m: {"prompt_tokens": n, "completion_tokens": m})
    (tmp_path / "a.jsonl").write_text(whole + ABORTED[kind] + "\n")
    log = requests.read(tmp_path / "a.jsonl")
    assert log.counts == dict.fromkeys(PAIRS, 1)
    assert any("1 of 5 requests were aborted or have no reply (first in row 5)" in note for note in log.notes)


def test_a_log_of_aborted_requests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt_tokens,completion_tokens\n5,0\n6,0\n")
    with pytest.raises(SweetspotError, match="all 2 were aborted"):
        requests.read(tmp_path / "a.csv")


def test_two_columns_that_differ_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt_tokens,input_length,output_tokens\n5,6,7\n")
    with pytest.raises(SweetspotError, match=r"--map prompt_tokens=input_tokens"):
        requests.read(tmp_path / "a.csv")


FURTHER = {
    "Bedrock.jsonl": (
        jsonl(
            lambda i, n, m: {
                **{"timestamp": f"2026-03-01T10:00:0{i}Z", "input": {"inputTokenCount": n}},
                **{"output": {"outputTokenCount": m}},
            }
        ),
        1,
    ),
    "Anthropic, cached.jsonl": (
        jsonl(lambda i, n, m: {"usage": {"input_tokens": n - 50, "cache_read_input_tokens": 50, "output_tokens": m}}),
        None,
    ),
    "Ollama.jsonl": (jsonl(lambda i, n, m: {"prompt_eval_count": n, "eval_count": m, "done_reason": "stop"}), None),
    "Helicone.csv": (
        csv(
            "response_status,request_created_at,prompt_tokens,completion_tokens",
            lambda i, n, m: [200, f"2026-03-01T10:00:0{i}Z", n, m],
        )
        + "429,2026-03-01T10:00:09Z,55,7\n-3,2026-03-01T10:00:09Z,55,7\n",
        1,
    ),
    "LangSmith.csv": (
        csv("run_type,prompt_tokens,completion_tokens", lambda i, n, m: ["llm", n, m])
        + csv("run_type,prompt_tokens,completion_tokens", lambda i, n, m: ["chain", n, m]).partition("\n")[2],
        None,
    ),
    "AIPerf.jsonl": (
        jsonl(
            lambda i, n, m: {
                "metrics": {
                    "input_sequence_length": {"value": n, "unit": "tokens"},
                    "output_sequence_length": {"value": m, "unit": "tokens"},
                }
            }
        ),
        None,
    ),
    "detailed result.json": (
        json.dumps({"completed": 4, "input_lens": [n for n, _ in PAIRS], "output_lens": [m for _, m in PAIRS]}),
        None,
    ),
    "limits.csv": (
        csv("prompt_tokens,max_new_tokens,completion_tokens,cancelled", lambda i, n, m: [n, 4096, m, "false"])
        + "5,4096,3,true\n",
        None,
    ),
}
WRITTEN = [
    "03/01/2026 10:00:0{} AM",
    '"Sun, 01 Mar 2026 10:00:0{} +0000"',
    "10:00:0{}",
    "2026-03-01T10:00:0{}+05:30",
    "2026-03-01 10:00:0{}.5 UTC",
]


@pytest.mark.parametrize("name", FURTHER)
def test_further_logs_are_read(tmp_path: Path, name: str) -> None:
    content, seconds = FURTHER[name]
    (tmp_path / name).write_text(content)
    log = requests.read(tmp_path / name)
    assert log.counts == dict.fromkeys(PAIRS, 1)
    assert (log.times_s is not None) == (seconds is not None)


@pytest.mark.parametrize("written", WRITTEN)
def test_times_are_read_as_written(tmp_path: Path, written: str) -> None:
    content = csv("timestamp,prompt_tokens,completion_tokens", lambda i, n, m: [written.format(i), n, m])
    (tmp_path / "a.csv").write_text(content)
    times = requests.read(tmp_path / "a.csv").times_s
    assert times is not None
    assert times.to_list() == pytest.approx([0, 1, 2, 3], abs=1e-3)


@pytest.mark.parametrize(
    ("header", "unit"), [("timestamp_ms", 1000.0), ("Arrival time (ms)", 1000.0), ("ts", 1 / 86400)]
)
def test_times_have_the_unit_of_their_header_or_of_a_spreadsheet(tmp_path: Path, header: str, unit: float) -> None:
    start = 46082 if unit < 1 else 0
    content = csv(f"{header},isl,osl", lambda i, n, m: [start + i * unit, n, m])
    (tmp_path / "a.csv").write_text(content)
    times = requests.read(tmp_path / "a.csv").times_s
    assert times is not None
    assert times.to_list() == pytest.approx([0, 1, 2, 3], abs=1e-3)


def test_zones_of_half_an_hour_count(tmp_path: Path) -> None:
    rows = ["2026-03-01T15:30:00+05:30,5,6", "2026-03-01T10:00:02+00:00,5,6", "2026-03-01T06:30:04-03:30,5,6"]
    (tmp_path / "a.csv").write_text("\n".join(["timestamp,isl,osl", *rows]))
    times = requests.read(tmp_path / "a.csv").times_s
    assert times is not None
    assert times.to_list() == pytest.approx([0, 2, 4], abs=1e-3)


def test_rows_that_count_requests_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("input_tokens,output_tokens,num_model_requests\n100,50,5\n")
    with pytest.raises(SweetspotError, match=r"num_model_requests counts requests.*--map num_model_requests=count"):
        requests.read(tmp_path / "a.csv")
    assert requests.read(tmp_path / "a.csv", {"num_model_requests": "count"}).counts == {(100, 50): 5}
