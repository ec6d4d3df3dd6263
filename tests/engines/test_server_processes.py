"""Whose processes are whose, and servers that a campaign starts: nothing is left of them, however it ends."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving import MODEL, PROGRAM
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine
from sweetspot.sensors import processes


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


def test_listening_sees_only_the_process_that_listens() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert processes.listening(one.getsockname()[1]) == set(), "bound, but not listening"
        one.listen()
        assert processes.listening(one.getsockname()[1]) == {os.getpid()}
        assert processes.listening(one.getsockname()[1], "127.0.0.2") == set(), "another address of this machine"
    for host in ("0.0.0.0", "::", "::1"):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.bind((host, 0))
            one.listen()
            assert processes.listening(one.getsockname()[1], "::1" if ":" in host else "127.0.0.1") == {os.getpid()}


def test_a_started_server_that_wants_a_key_is_not_waited_for(opened: Any) -> None:
    with pytest.raises(SweetspotError, match="HTTP 401: Unauthorized"):
        opened("vllm-server", command=f"{PROGRAM} vllm {{port}} {{name}} locked")
    assert children() == []


def test_a_busy_server_is_found_although_it_closes_descriptors_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each descriptor but the listening one is gone when it is looked at."""
    readlink = os.readlink

    def read(path: Any) -> str:
        target = readlink(path)
        if "/fd/" in str(path) and not target.startswith("socket:"):
            raise FileNotFoundError(path)
        return target

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        monkeypatch.setattr(os, "readlink", read)
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


@pytest.mark.parametrize("script", ["{}; true", "setsid {} & wait", "(setsid {} &); sleep 60"])
@pytest.mark.parametrize("how", ["closed", "killed", "terminated"])
def test_nothing_that_a_command_started_is_left(script: str, how: str, opened: Any, tmp_path: Path) -> None:
    command = f"bash -c {shlex.quote(script.format(PROGRAM + ' vllm {port} {name}'))}"
    if how == "closed":
        engine = opened("vllm-server", command=command)
        (server,) = children()
        engine.close()
        assert not processes.is_alive(server)
        return
    with measuring(tmp_path, command) as process:
        (server,) = children(process.pid)
        process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
    assert ended(server), "the server outlived the measurement by 10 s"


def test_ctrl_c_ends_a_measurement_whose_server_hangs(tmp_path: Path) -> None:
    with measuring(tmp_path, f"{PROGRAM} vllm {{port}} {{name}} hanging", wait=False) as process:
        while not (found := children(process.pid)):
            time.sleep(0.05)
        time.sleep(1.0)  # the trial batch is on its way
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert ended(found[0])


@contextmanager
def measuring(place: Path, command: str, wait: bool = True) -> Iterator["subprocess.Popen[str]"]:
    """Another process that opens a server's engine by this command; it ends with the context."""
    code = f"""
import sys, time, types
sys.path[:0] = {sys.path!r}
sys.modules["sweetspot.sensors.nvml"] = types.SimpleNamespace(open_sensors=lambda *given: [None])
import serving, pathlib
wanted = serving.spec("vllm-server", command={command!r})
place = pathlib.Path({str(place)!r})
serving.engines.build(wanted, place)
serving.engines.open_device(wanted, place)
print("open", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        if wait:
            assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.kill()


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


def ended(pid: int) -> bool:
    """Whether a process ends within 10 s."""
    for _ in range(100):
        if not processes.is_alive(pid):
            return True
        time.sleep(0.1)
    return False


def children(parent: int | None = None) -> list[int]:
    """The stand-ins that a process started, itself or through others, and that have not ended."""
    found = []
    for pid in processes.descendants(parent or os.getpid()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if (
            b"servers.py" in command
            and not command.startswith(b"bash")
            and b"supervise" not in command
            and processes.is_alive(pid)
        ):
            found.append(pid)
    return found
