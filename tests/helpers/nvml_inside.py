"""What tests of NVML call in a process that has the stub for a driver: everything here gets the stub first."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nvml_stub import Stub, Trace
from simulation import ARCHITECTURES
from sweetspot import engines, models
from sweetspot.errors import SweetspotError
from sweetspot.measure import command, probe, session
from sweetspot.measure.journal import Place
from sweetspot.measure.protocol import Protocol, open_meter
from sweetspot.sensors import leases, nvml, processes
from sweetspot.sensors.clock import Clock, VirtualClock
from sweetspot.sensors.window import Window

CONSTANT = Trace(((1.0, 400.0, 400.0),))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function, and undo what it does to the environment: opening sensors hides other boards from CUDA."""
    before = dict(os.environ)
    try:
        return function(*arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(stub: Stub, duration_s: float, protocol: Protocol) -> Window:
    clock = stub.clock()
    sensor = nvml.open_sensors()[0]
    try:
        return open_meter([sensor], clock, protocol).window(lambda: clock.sleep(duration_s))
    finally:
        sensor.close()


def measure_twice(stub: Stub) -> list[Window]:
    clock = stub.clock()
    meter = open_meter(nvml.open_sensors(), clock, Protocol())
    return [meter.window(lambda: clock.sleep(11.0)) for _ in range(2)]


def measure_really(stub: Stub, duration_s: float) -> Window:
    clock = Clock()
    return open_meter(nvml.open_sensors(), clock, Protocol()).window(lambda: clock.sleep(duration_s))


def measure_failing_work(stub: Stub) -> None:
    clock = stub.clock()

    def work() -> None:
        clock.sleep(8.0)
        raise RuntimeError("CUDA error: unspecified launch failure")

    open_meter(nvml.open_sensors(), clock, Protocol()).window(work)


def measure_with_a_child(stub: Stub) -> Window:
    clock = stub.clock()
    meter = open_meter(nvml.open_sensors(), clock, Protocol())

    def work() -> None:
        shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        assert shell.stdout
        grandchild = int(shell.stdout.readline())
        stub.set(f"process {os.getpid()}", f"process {shell.pid}", f"process {grandchild}", trace=CONSTANT)
        clock.sleep(5.0)
        shell.kill()
        shell.wait()  # the grandchild is an orphan now, and as much ours as before
        clock.sleep(6.0)
        os.kill(grandchild, 9)

    return meter.window(work)


def measure_on_a_bad_host(stub: Stub, fault: str) -> Window:
    clock = stub.clock()
    meter = open_meter(nvml.open_sensors(), clock, Protocol())
    start_s = clock.now()
    if fault == "jump":
        clock.offset_s = lambda: 0.3 if clock.now() > start_s + 5 else 0.0  # type: ignore[method-assign]

    def work() -> None:
        clock.sleep(5.0)
        if fault == "stall":
            timers, clock._timers = clock._timers, []
            clock.sleep(1.0)
            for due, _, _ in timers:
                due[0] += 1.0
            clock._timers = timers
        clock.sleep(5.0)

    return meter.window(work)


def identify(stub: Stub, visible: str | None = None, uuid: str | None = None, gpu: str | None = None) -> str:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        os.environ.pop(name, None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        return nvml.open_sensors(gpu, None, uuid)[0].uuid
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def memory_bytes(stub: Stub) -> int:
    return nvml.open_sensors()[0].memory_bytes()


def visible_to_a_command(stub: Stub, visible: str | None, uuid: str | None) -> str | None:
    """CUDA_VISIBLE_DEVICES of a command that is metered."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        with tempfile.NamedTemporaryFile("r") as file:
            shell = ["sh", "-c", f'echo "${{CUDA_VISIBLE_DEVICES-unset}}" > {file.name}']
            command.measure(shell, nvml.open_sensors(uuid=uuid)[0], Clock(), Protocol())
            found = file.read().strip()
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return None if found == "unset" else found


def describe(stub: Stub) -> dict[str, Any]:
    return nvml.open_sensors()[0].machine()


def in_a_container(stub: Stub) -> tuple[tuple[int, ...], str]:
    processes._HOST_PROCESSES = "pid:[1]"
    nvml._FOUND_IDLE.clear()
    try:
        [sensor] = nvml.open_sensors()
        stub.set("process 4194304", f"process {os.getppid()}")
        strangers = sensor.strangers()
        stub.set("process 4194304")  # what building an engine leaves on the board
        return strangers, nvml.open_sensors()[0].machine()["process_check"]
    finally:
        processes._HOST_PROCESSES = "pid:[4026531836]"


def use_twice(stub: Stub) -> int:
    [first], [second] = nvml.open_sensors(), nvml.open_sensors()
    first.close()
    return second.energy_mj()


class _Sleeper:
    """An engine whose batch takes a second."""

    version = "1"

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def run(self, input_tokens: int, output_tokens: int) -> engines.BatchRun:
        self._clock.sleep(1.0)
        return engines.BatchRun(1, 1)

    def reasons(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass


def session_of(stub: Stub, directory: Path, cells: list[tuple[int, int]], boards: int = 1) -> str:
    """A session of a measuring job on the stub's boards; what it printed to standard error."""
    clock = stub.clock()
    engine = {"name": "vllm", "gpu": "NVIDIA H100 80GB HBM3", "precision": "float16", "weights": "dummy"}
    job = {
        "campaign": "stub",
        "model": "m",
        "batch": 1,
        "engine": {**engine, "kv_cache_fraction": 0.9, "seed": 1, "tensor_parallel": boards},
        "protocol": asdict(Protocol(visits=1, min_repetitions=2, repetitions=2)),
        "seed": 1,
        "cells": [{"input_tokens": n, "output_tokens": m, "flags": ""} for n, m in cells],
    }
    engines.open_device = lambda spec, place: (_Sleeper(clock), nvml.open_sensors(spec.gpu, spec.gpus), clock)
    resolved = {"architecture": models.load(ARCHITECTURES / "opt-1.3b.json").as_dict()}
    said = io.StringIO()
    with redirect_stderr(said):
        block = session.Block(job, resolved, Place(directory, "m", 1, "grid"))
        try:
            block.run(block.pending())
        except SweetspotError as error:
            print(f"error: {error}", file=sys.stderr)
        block.write_rows()
    return said.getvalue()


def probe_idle(stub: Stub) -> dict[str, Any]:
    [sensor] = nvml.open_sensors()
    return probe.probe(sensor, sensor.machine(), stub.clock(), 60.0, None)


def beside_a_server(stub: Stub, servers: set[int], later: list[int], host: bool) -> tuple[int, ...] | str | None:
    """The strangers that a sensor opened beside servers finds among the processes `later`; or the error of opening it.

    `host`: whether process ids here are the host's.
    """
    own = processes._HOST_PROCESSES
    processes._HOST_PROCESSES = os.readlink("/proc/self/ns/pid") if host else "pid:[1]"
    nvml._FOUND_IDLE.clear()
    try:
        [sensor] = nvml.open_sensors(None, 1, servers=servers)
        stub.set(*(f"process {pid}" for pid in later))
        return sensor.strangers()
    except SweetspotError as error:
        return str(error)
    finally:
        processes._HOST_PROCESSES = own


def board_of_a_server(stub: Stub, servers: set[int]) -> str:
    """The board that a sensor opened beside servers reads; or the error of opening it. Ids here are the host's."""
    own = processes._HOST_PROCESSES
    processes._HOST_PROCESSES = os.readlink("/proc/self/ns/pid")
    try:
        return nvml.open_sensors(None, 1, servers=servers)[0].uuid
    except SweetspotError as error:
        return str(error)
    finally:
        processes._HOST_PROCESSES = own


def measure_on(stub: Stub, boards: int, duration_s: float) -> Window:
    """A window of work on several boards."""
    clock = stub.clock()
    meter = open_meter(nvml.open_sensors(boards=boards), clock, Protocol())
    return meter.window(lambda: clock.sleep(duration_s))


def choose(stub: Stub, visible: str | None, boards: int, servers: tuple[int, ...] = ()) -> tuple[list[str], str | None]:
    """The boards that a job gets, by name, and what it shows CUDA of them. Ids of processes here are the host's."""
    own = processes._HOST_PROCESSES
    processes._HOST_PROCESSES = os.readlink("/proc/self/ns/pid")
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        sensors = nvml.open_sensors("NVIDIA H100 80GB HBM3", boards, servers=servers)
        return [sensor.name for sensor in sensors], os.environ.get("CUDA_VISIBLE_DEVICES")
    finally:
        processes._HOST_PROCESSES = own
        leases._HELD.clear()
