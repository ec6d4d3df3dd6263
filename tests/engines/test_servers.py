"""Engines that are servers: exact lengths, times, capacity, and what makes rows invalid."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import servers
from serving import KINDS, MODEL, spec
from sweetspot import engines
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine


@pytest.mark.parametrize("name", KINDS)
def test_batches_of_exact_lengths_with_the_times_of_each_request(name: str, serving: Any, opened: Any) -> None:
    server = serving(KINDS[name])
    server.step_s = 0.01
    engine = opened(name, server)
    server.asked.clear()
    for _ in range(2):
        ran = engine.run(48, 5)
        assert ran.waves == 1
        assert ran.in_flight == (None if name == "server" else 8), "unknown, if the server does not tell its capacity"
        assert len(ran.requests) == 8
        for times in ran.requests:
            assert times.arrival_s <= times.first_token_s < times.last_token_s
            assert times.first_token_s - times.arrival_s >= 0.01
            assert times.last_token_s - times.arrival_s >= 0.05
    assert engine.reasons() == ()
    prompts = [request["prompt"] for request in server.asked]
    assert [len(prompt) for prompt in prompts] == [48] * 16
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 16, "no prompt begins like another"
    assert all(0 <= token < 128256 for prompt in prompts for token in prompt)
    for request in server.asked:
        assert request.keys() <= servers.KNOWN[KINDS[name]]
        assert (request["max_tokens"], request["ignore_eos"], request["temperature"]) == (5, True, 0)


def test_the_version_is_the_servers_own(serving: Any, opened: Any) -> None:
    known = {name: opened(name, serving(kind)).version for name, kind in KINDS.items()}
    assert known == {
        "server": "unknown",
        "vllm-server": "vLLM 0.33.0",
        "trtllm-server": "trtllm-serve 1.2.1",
        "sglang-server": "SGLang 0.5.23",
        "llamacpp-server": "llama.cpp b9000-0c1e57098",
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_server_with_few_seats_gets_no_more_requests_at_once(name: str, serving: Any, opened: Any) -> None:
    server = serving(KINDS[name], seats=3)
    ran = opened(name, server).run(32, 8)
    assert (ran.in_flight, ran.waves) == (None if name == "server" else 3, 3)
    assert len(ran.requests) == 8


@pytest.mark.parametrize("name", ["vllm-server", "trtllm-server", "sglang-server"])
def test_a_batch_that_exceeds_the_kv_cache_runs_in_waves(name: str, serving: Any, opened: Any) -> None:
    engine = opened(name, serving(KINDS[name], kv_tokens=4 * 128), max_input_tokens=512)
    assert (ran := engine.run(64, 64)).in_flight == 4
    assert ran.waves == 2
    assert engine.run(32, 16).waves == 1
    with pytest.raises(OutOfMemory, match=r"one request of 500 \+ 64 tokens exceeds the KV cache"):
        engine.run(500, 64)


def doubts(engine: Any) -> tuple[str, ...]:
    """What is wrong with two runs."""
    engine.run(32, 8)
    engine.run(32, 8)
    found: tuple[str, ...] = engine.reasons()
    engine.run(16, 8)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_prompts_from_a_cache_make_a_row_invalid(name: str, serving: Any, opened: Any) -> None:
    server = serving(KINDS[name])
    engine = opened(name, server)
    server.cached_of_each = 16
    assert doubts(engine) == ("prompt_cached",)


@pytest.mark.parametrize("name", KINDS)
def test_without_a_count_of_cached_tokens_the_cache_must_be_off_or_counted_otherwise(
    name: str, serving: Any, opened: Any
) -> None:
    server = serving(KINDS[name])
    server.reports_cached, server.caches = False, True
    expected = {"server": ("prompt_cache_unknown",), "trtllm-server": ("prompt_cache_unknown",)}
    engine = opened(name, server)
    assert doubts(engine) == expected.get(name, ())
    if name in ("vllm-server", "sglang-server"):
        server.cached_of_each = 16  # seen in /metrics only
        assert doubts(engine) == ("prompt_cached",)


@pytest.mark.parametrize("name", ["vllm-server", "sglang-server"])
def test_preemptions_and_requests_of_others_make_a_row_invalid(name: str, serving: Any, opened: Any) -> None:
    server = serving(KINDS[name])
    engine = opened(name, server)
    assert doubts(engine) == ()
    server.counters["preempted"] += 1
    assert doubts(engine) == ("preempted",)
    server.counters["reply"] += 1
    assert doubts(engine) == ("other_requests",)
    assert doubts(engine) == ()


@pytest.mark.parametrize("name", ["vllm-server", "sglang-server"])
def test_a_long_request_of_another_is_seen_in_every_window(name: str, serving: Any, opened: Any) -> None:
    """Its prompt counts in the first window, its reply bit by bit in those that follow."""
    server = serving(KINDS[name])
    engine = opened(name, server)
    server.counters["prompt"] += 5000
    assert doubts(engine) == ("other_requests",)
    for _ in range(3):
        server.counters["reply"] += 100
        assert doubts(engine) == ("other_requests",)


def test_a_server_that_counts_anew_was_restarted(serving: Any, opened: Any) -> None:
    server = serving("vllm")
    engine = opened("vllm-server", server)
    assert doubts(engine) == ()
    server.counters.update(dict.fromkeys(server.counters, 0))
    assert doubts(engine) == ("server_restarted",)
    assert doubts(engine) == ()
    server.counters["reply"] += 1
    assert doubts(engine) == ("other_requests",)


@pytest.mark.parametrize("name", KINDS)
def test_a_server_that_does_not_count_is_flagged(name: str, serving: Any, opened: Any) -> None:
    ran = opened(name, serving(KINDS[name])).run(16, 4)
    assert ("requests_unchecked" in ran.flags) is (name not in ("vllm-server", "sglang-server"))
    assert ("kv_capacity_unknown" in ran.flags) is (name == "server")


@pytest.mark.parametrize("name", ["server", "vllm-server", "trtllm-server", "sglang-server"])
def test_a_stream_that_begins_with_several_tokens_has_no_times(name: str, serving: Any, opened: Any) -> None:
    server = serving(KINDS[name])
    engine = opened(name, server)
    for tokens_per_event in (4, 20):
        server.tokens_per_event = tokens_per_event
        assert engine.run(16, 20).requests == ()
    server.first_alone, server.tokens_per_event = True, 4  # a stream interval
    assert len(engine.run(16, 20).requests) == (0 if name == "server" else 8), "known where tokens are counted"
    server.tokens_per_event = 1
    assert len(engine.run(16, 20).requests) == 8
    assert len(engine.run(16, 1).requests) == 8


def test_an_error_counts_whatever_follows_it(serving: Any, opened: Any) -> None:
    server = serving("vllm")
    engine = opened("vllm-server", server)
    server.fails, server.goes_on_after_failing = "the engine is dead", True
    with pytest.raises(SweetspotError, match="the engine is dead"):
        engine.run(32, 8)
    server.fails, server.pings_at_the_end = "", 20
    assert engine.run(32, 8).waves == 1


ODD_USAGE = [None, [], 7, {}, {"prompt_tokens": 32}, {"prompt_tokens": None, "completion_tokens": None}]
ODD_USAGE += [{"prompt_tokens": 32, "completion_tokens": 8, "prompt_tokens_details": [1]}]


@pytest.mark.parametrize("usage", ODD_USAGE)
def test_a_usage_that_says_nothing_is_one_clear_error(usage: Any, serving: Any, opened: Any) -> None:
    server = serving("other")
    engine = opened("server", server)
    server.usage = {"usage": usage}
    with pytest.raises(SweetspotError, match="no usage that can be read"):
        engine.run(32, 8)


ODD_PAGES = [
    ("vllm", "/v1/models", "[]"),
    ("vllm", "/v1/models", '{"data": ["a"]}'),
    ("vllm", "/v1/models", '{"data": [null]}'),
    ("vllm", "/v1/models", '{"data": {}}'),
    ("vllm", "/version", "[1]"),
    ("vllm", "/metrics", 'vllm:cache_config_info{block_size="0",kv_cache_size_tokens="6400"} 1.0'),
    ("sglang", "/server_info", '{"max_total_num_tokens": "many"}'),
    ("sglang", "/server_info", "[1]"),
    ("llamacpp", "/props", '{"total_slots": "4", "default_generation_settings": []}'),
    ("trtllm", "/metrics", '{"a": 1}'),
    ("trtllm", "/metrics", "[null, 5]"),
    ("trtllm", "/metrics", '[{"kvCacheStats": [1]}]'),
]


@pytest.mark.parametrize(("kind", "path", "content"), ODD_PAGES)
def test_a_server_that_answers_oddly_is_one_clear_error_or_unknown(
    kind: str, path: str, content: str, serving: Any, opened: Any
) -> None:
    server = serving(kind)
    server.instead[path] = (200, content)
    with suppress(SweetspotError):
        assert opened(f"{kind}-server", server).run(16, 4).in_flight in (None, 8)


def test_odd_values_of_metrics_are_passed_over(serving: Any, opened: Any) -> None:
    server = serving("vllm")
    lines = [f"vllm:generation_tokens_total {odd}" for odd in ("e", "-", "1.2.3", "", "NaN", "+Inf")]
    server.instead["/metrics"] = (200, "\n".join(lines))
    assert "requests_unchecked" in opened("vllm-server", server).run(16, 4).flags


def test_a_key_is_sent_and_its_lack_is_said(
    serving: Any, opened: Any, board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serving("vllm")
    server.key = "secret"
    for key, said in (("", "HTTP 401: Unauthorized"), ("grün\n", "OPENAI_API_KEY has characters")):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(SweetspotError, match=said):
            opened("vllm-server", server)
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    opened("vllm-server", server)


def test_a_server_that_redirects_or_is_not_ready_says_so(serving: Any, opened: Any) -> None:
    server = serving("llamacpp")
    for status, said in ((307, "it redirects to another address"), (503, "is not ready .*Loading model")):
        server.instead["/v1/models"] = (status, '{"error": {"message": "Loading model"}}')
        with pytest.raises(SweetspotError, match=said):
            opened("llamacpp-server", server)


def test_replies_or_prompts_of_another_length_end_the_measurement(serving: Any, opened: Any) -> None:
    server = serving("vllm")
    engine = opened("vllm-server", server)
    server.short_by = 2
    with pytest.raises(SweetspotError, match="returned 8 replies of 6 tokens instead of 8 of 8"):
        engine.run(32, 8)
    server.short_by, server.more_prompt = 0, 1
    with pytest.raises(SweetspotError, match="counted 33 prompt tokens instead of 32"):
        engine.run(32, 8)


def test_what_a_server_answers_is_passed_on(serving: Any, opened: Any) -> None:
    server = serving("vllm", kv_tokens=1000)
    engine = opened("vllm-server", server)
    server.fails = "the engine is dead"
    with pytest.raises(SweetspotError, match="the engine is dead"):
        engine.run(32, 8)
    server.fails, server.kv_tokens = "", 20
    with pytest.raises(SweetspotError, match="HTTP 400: max_tokens=8 is too large"):
        engine.run(32, 8)
    server.shutdown()
    server.server_close()
    with pytest.raises(SweetspotError, match=r"the server at http://127.0.0.1:\d+ does not answer .*refused"):
        engine.run(32, 8)


def test_another_kind_of_server_or_another_model_is_refused(
    serving: Any, opened: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = serving("vllm")
    with pytest.raises(SweetspotError, match=r"is vLLM, but engine.name is sglang-server; set it to vllm-server"):
        opened("sglang-server", vllm)
    with pytest.raises(SweetspotError, match=r"of no known kind .*set it to server"):
        opened("vllm-server", serving("other"))
    assert opened("server", vllm).version == "vLLM 0.33.0"
    assert "`engine: name: vllm-server`" in capsys.readouterr().err
    with pytest.raises(SweetspotError, match=f"serves Qwen2-7B, not {MODEL}"):
        opened("server", serving("other", "Qwen2-7B"))
    for same in ("meta-llama/Llama-3.2-1B", "/models/llama-3.2-1b.gguf"):
        opened("server", serving("other", same)).run(8, 2)


def test_a_server_elsewhere_is_refused_with_what_to_do(board: Any, tmp_path: Path) -> None:
    wanted = spec("vllm-server", url="http://192.0.2.7:8000")  # TEST-NET-1 (RFC 5737)
    engines.build(wanted, tmp_path)
    with pytest.raises(UnfitMachine, match=r"on another machine.*http://localhost:8000 .* on 192.0.2.7: .*snakemake"):
        engines.open_device(wanted, tmp_path)


def test_no_server_at_the_url(board: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = spec("server", url=f"http://127.0.0.1:{port}")
    engines.build(wanted, tmp_path)
    with pytest.raises(SweetspotError, match=rf"the server at http://127.0.0.1:{port} does not answer"):
        engines.open_device(wanted, tmp_path)
