"""Engines that are servers: exact lengths, times, capacity, what makes rows invalid, and whose processes are whose."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import servers
from servers import Server
from simulation import ARCHITECTURES, H100
from sweetspot import architecture, engines
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine
from sweetspot.sensors import processes

MODEL = "llama-3.2-1b"
KINDS = {
    "server": "other",
    "vllm-server": "vllm",
    "trtllm-server": "trtllm",
    "sglang-server": "sglang",
    "llamacpp-server": "llamacpp",
}
PROGRAM = f"{sys.executable} {servers.__file__}"


def spec(name: str, **changes: Any) -> engines.EngineSpec:
    """A server of 8 requests of at most 64 + 64 tokens."""
    path = ARCHITECTURES / f"{MODEL}.json"
    arch, config = architecture.load(path), architecture.resolved(path)["config"]
    whole = engines.EngineSpec(name, arch, "bfloat16", "served", H100.name, 8, 64, 64, 0.9, 1, model_config=config)
    return replace(whole, **changes)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """A sensor that nothing is asked of, and the servers' processes that it was told of."""
    told: list[set[int]] = []

    def open_sensor(gpu: str | None, uuid: str | None, owners: set[int]) -> object:
        told.append(set(owners))
        return SimpleNamespace(environment=lambda: {"CUDA_VISIBLE_DEVICES": "GPU-7"})

    monkeypatch.setitem(sys.modules, "sweetspot.sensors.nvml", SimpleNamespace(open_sensor=open_sensor))
    return told


@pytest.fixture
def opened(board: list[set[int]], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the engine of a stand-in (or a command's), and close it after the test."""
    made = []

    def open_it(name: str, server: Server | None = None, **changes: Any) -> Any:
        wanted = spec(name, **({"url": server.url} if server else {}), **changes)
        engines.build(wanted, tmp_path / "engine")
        made.append(engines.open_device(wanted, tmp_path / "engine")[0])
        return made[-1]

    yield open_it
    for engine in made:
        engine.close()


@pytest.fixture
def serving() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def serve(kind: str, model: str = MODEL, **options: Any) -> Server:
        made.append(Server(kind, model, **options).started())
        return made[-1]

    yield serve
    for server in made:
        server.shutdown()
        server.server_close()


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
            assert (times.last_token_s - times.first_token_s) / 4 >= 0.01
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


def test_the_servers_process_is_found_by_its_port_or_named(serving: Any, opened: Any, board: list[set[int]]) -> None:
    server = serving("vllm")
    opened("vllm-server", server)
    assert board[-1] == {os.getpid()}
    opened("vllm-server", server, pid=os.getppid())
    assert board[-1] == {os.getppid()}
    with pytest.raises(UnfitMachine, match="no process 99999999 here"):
        opened("vllm-server", server, pid=99999999)
    with pytest.raises(UnfitMachine, match="running container 'nowhere'"):
        opened("vllm-server", server, container="nowhere")


def test_a_container_is_asked_of_docker_or_podman(
    serving: Any, opened: Any, board: list[set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$*" = "inspect --format {{{{.State.Pid}}}} nim" ] && echo {os.getppid()}\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    opened("vllm-server", serving("vllm"), container="nim")
    assert board[-1] == {os.getppid()}


def test_no_server_at_the_url(board: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = spec("server", url=f"http://127.0.0.1:{port}")
    engines.build(wanted, tmp_path)
    with pytest.raises(SweetspotError, match=rf"the server at http://127.0.0.1:{port} does not answer"):
        engines.open_device(wanted, tmp_path)


def test_listening_sees_only_the_process_that_listens() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert processes.listening(one.getsockname()[1]) == set(), "bound, but not listening"
        one.listen()
        assert processes.listening(one.getsockname()[1]) == {os.getpid()}


def test_a_campaign_starts_and_stops_its_server(opened: Any, tmp_path: Path) -> None:
    engine = opened("vllm-server", command=f"{PROGRAM} vllm {{port}} {{name}} {{batch}} {{tokens}} {{precision}}")
    assert engine.run(32, 4).waves == 1
    (child,) = children()
    engine.close()
    assert children() == []
    assert not processes.ancestors(child)
    log = (tmp_path / "engine" / "server.log").read_text()
    assert f"'{MODEL}', '8', '128', 'bfloat16'] GPU-7" in log


def test_a_server_of_this_campaigns_own_model_needs_no_name(opened: Any, tmp_path: Path) -> None:
    """{model} is a directory with a config.json for random weights."""
    engine = opened("vllm-server", weights="dummy", command=f"{PROGRAM} vllm {{port}} {{model}}")
    engine.run(8, 2)
    assert (tmp_path / "engine" / "model" / "config.json").is_file()


def test_a_server_that_does_not_start(opened: Any) -> None:
    with pytest.raises(SweetspotError, match=r"ended with status 1\nthe end of .*server.log:\n.*no such option"):
        opened("vllm-server", command=f"{PROGRAM} broken")
    with pytest.raises(OutOfMemory, match=r"CUDA out of memory. Tried to allocate"):
        opened("vllm-server", command=f"{PROGRAM} out-of-memory")
    with pytest.raises(UnfitMachine, match=r"engine.command: nowhere-to-be-found cannot be started"):
        opened("vllm-server", command="nowhere-to-be-found --port {port}")
    assert children() == []


def test_a_server_that_dies_shows_its_log(opened: Any) -> None:
    engine = opened("vllm-server", command=f"{PROGRAM} vllm {{port}} {{name}}")
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(SweetspotError, match=r"(?s)does not answer.*the end of .*server.log:\n  serving"):
        engine.run(32, 4)


def test_another_server_at_the_port_is_not_measured_by_mistake(serving: Any, opened: Any) -> None:
    with pytest.raises(UnfitMachine, match=r"another server answers at .*already"):
        opened("vllm-server", serving("vllm"), command=f"{PROGRAM} vllm {{port}} {{name}}")


def test_a_killed_measurement_leaves_no_server_behind(tmp_path: Path) -> None:
    code = f"""
import sys, time, types
sys.path[:0] = {sys.path!r}
sensor = types.SimpleNamespace(environment=dict)
sys.modules["sweetspot.sensors.nvml"] = types.SimpleNamespace(open_sensor=lambda *given: sensor)
import test_servers, pathlib
wanted = test_servers.spec("vllm-server", command={PROGRAM + " vllm {port} {name}"!r})
place = pathlib.Path({str(tmp_path)!r})
test_servers.engines.build(wanted, place)
test_servers.engines.open_device(wanted, place)
print("open", flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as measuring:
        assert measuring.stdout is not None
        assert measuring.stdout.readline() == "open\n"
        (server,) = children(measuring.pid)
        measuring.kill()
    for _ in range(100):
        if not processes.ancestors(server):
            return
        time.sleep(0.1)
    raise AssertionError("the server outlived the measurement by 10 s")


def children(parent: int | None = None) -> list[int]:
    """The stand-ins that a process started and that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        chain = processes.ancestors(int(place.name))
        if chain[1:2] == [parent or os.getpid()] and b"servers.py" in (place / "cmdline").read_bytes():
            found.append(int(place.name))
    return found
