"""The real bindings on a stub library with several boards: one window for all, and whose fault it was."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import nvml_inside
from nvml_stub import A100, H100, OTHER, START_S, Stub, Trace
from sweetspot.errors import SweetspotError
from sweetspot.measure import raw
from sweetspot.measure.journal import Place
from sweetspot.table.read import read

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: NVML was not tested")

THIRD = "GPU-44444444-aaaa-bbbb-cccc-000000000004 NVIDIA H100 80GB HBM3"
UUIDS = [board.split()[0] for board in (H100, OTHER, THIRD)]
NAMES = [f"{index}:{uuid}" for index, uuid in enumerate(UUIDS)]
# Powers of 300, 400 and 500 W, and counters that step at different moments.
POWERS = {1: Trace(((1.0, 300.0, 300.0),)), 2: Trace(((1.0, 400.0, 400.0),)), 3: Trace(((1.0, 500.0, 500.0),))}
SPREAD = [f"{board}/trace {trace}" for board, trace in POWERS.items()] + ["2/phase 0.03", "3/phase 0.07"]


def test_a_window_holds_the_energy_of_every_board(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(*SPREAD, boards=(H100, OTHER, THIRD))
    window = inside(nvml_inside.measure_on, 3, 12.0)
    assert (window.reasons, window.flags) == ((), ())
    assert window.shares_j == pytest.approx([3600, 4800, 6000], rel=1e-3)
    assert window.energy_j == pytest.approx(14400, rel=1e-3)
    assert window.energy_instant_j == pytest.approx(14400, rel=0.02)
    assert window.tail_j < 0.2 * 1200, "of each, less than a step before the work and one after it"
    assert {(one.edges.start_s, one.edges.end_s) for one in window.readings} == {(window.start_s, window.start_s + 12)}
    assert [one.board for one in window.readings] == NAMES
    for one in window.readings:
        assert 0 <= window.start_s - one.edges.opened_s < 0.1
        assert all(after.at_s > before.at_s for before, after in pairwise(one.samples))


def test_power_that_falls_as_the_window_opens_is_not_counted_as_work(stub: Stub, inside: Callable[..., Any]) -> None:
    """Boards idle at 300 W and work at 700 W, in phase with a window that opens when the last counter steps."""
    opens_s = START_S + 0.1  # the first steps after the start: at 0.03, 0.07 and 0.1 s
    trace = Trace(((opens_s % 60, 300.0, 300.0), (12.0, 700.0, 700.0), (48.0 - opens_s % 60, 300.0, 300.0)))
    stub.set("2/phase 0.03", "3/phase 0.07", trace=trace, boards=(H100, OTHER, THIRD))
    window = inside(nvml_inside.measure_on, 3, 12.0)
    assert window.start_s == pytest.approx(opens_s, abs=0.003)
    assert window.shares_j == pytest.approx([8400] * 3, rel=5e-4)


@pytest.mark.parametrize(
    ("line", "reasons"),
    [
        ("2/lost", [f"gpu_lost:{NAMES[1]}"]),
        ("3/fail:83 999", [f"sensor_failed:{NAMES[2]}"]),
        ("process 1 2", [f"other_process:{NAMES[1]}"]),
        ("1/limit_mw 500000", [f"power_limit_changed:{NAMES[0]}"]),
        ("2/instant 5", [f"counter_vs_integral:{NAMES[1]}"]),
    ],
)
def test_a_board_that_spoils_the_window_is_named(
    stub: Stub, inside: Callable[..., Any], line: str, reasons: list[str]
) -> None:
    ramp = Trace(((20.0, 100.0, 700.0),))
    stub.set(f"@{START_S + 6}-{START_S + 60} {line}", trace=ramp, boards=(H100, OTHER, THIRD))
    window = inside(nvml_inside.measure_on, 3, 11.0)
    assert list(window.reasons) == reasons
    assert window.flags == ()


def test_a_board_that_throttles_is_named_unless_all_do(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(*SPREAD, "3/reasons 0x40", boards=(H100, OTHER, THIRD))
    assert inside(nvml_inside.measure_on, 3, 12.0).flags == (f"throttled:{NAMES[2]}",)
    stub.set(*SPREAD, "reasons 0x40", boards=(H100, OTHER, THIRD))
    assert inside(nvml_inside.measure_on, 3, 12.0).flags == ("throttled",)


def test_rows_of_several_boards(stub: Stub, inside: Callable[..., Any], tmp_path: Path) -> None:
    """A session: rows with the sum and the shares, raw samples that give the same verdict, a table."""
    stub.set(*SPREAD, boards=(H100, OTHER))
    assert "error" not in inside(nvml_inside.session_of, tmp_path, [(64, 16)], 2)
    place = Place(tmp_path, "m", 1, "grid")
    rows = [json.loads(line) for line in place.rows.read_text().splitlines()]
    for row in rows:
        assert row["valid"], row["reasons"]
        assert (row["gpus"], row["parallelism"]) == (2, "tp2")
        assert row["gpu_uuid"] == ";".join(UUIDS[:2])
        assert row["power_limit_w"] == 1400
        assert row["energy_j_per_gpu"] == pytest.approx([300, 400], rel=0.01)
        assert row["energy_j"] == pytest.approx(sum(row["energy_j_per_gpu"]))
        assert row["power_w"] == pytest.approx(700, rel=0.01)
    assert raw.check(tmp_path) == 0
    frame = read([place.rows]).frame
    assert frame["energy_j_per_gpu"].list.len().unique().to_list() == [2]
    assert frame["parallelism"].unique().to_list() == ["tp2"]
    assert frame["engine"].unique().to_list() == ["vllm"], "the number of GPUs is no other set-up"


# Which boards.


@pytest.mark.parametrize(
    ("visible", "lines", "found", "shown"),
    [
        ("0,2", [], [0, 2], "0,2"),
        ("2,0", [], [2, 0], "2,0"),
        (None, [], [0, 1], "0,1"),
        (None, [f"process {os.getpid()} 1"], [1, 2], "1,2"),
        (f"GPU-4,{UUIDS[0]}", [], [2, 0], f"GPU-4,{UUIDS[0]}"),
        (None, ["bad 0 15"], [1, 2], ",".join(UUIDS[1:])),
    ],
)
def test_a_job_takes_as_many_boards_as_it_needs(
    stub: Stub, inside: Callable[..., Any], visible: str | None, lines: list[str], found: list[int], shown: str
) -> None:
    stub.set(*lines, boards=(H100, OTHER, THIRD))
    assert inside(nvml_inside.choose, visible, 2) == ([NAMES[index] for index in found], shown)


@pytest.mark.parametrize(
    ("boards", "lines", "wanted", "parts"),
    [
        ((H100, OTHER), [], 8, ["needs 8 GPUs of one node, but this process sees 2", "tensor_parallel", *UUIDS[:2]]),
        ((H100,), [], 2, ["needs 2 GPUs of one node, but this process sees 1"]),
        ((H100, A100), [], 2, [f"1:{A100.split()[0]} is a NVIDIA A100", "all GPUs of a job must be alike"]),
        ((H100, OTHER), ["2/mig 1"], 2, [UUIDS[1], "MIG", "whole GPU"]),
        ((H100, OTHER), [f"process {os.getpid()} 2"], 2, [f"{NAMES[1]} is in use by process {os.getpid()}"]),
    ],
)
def test_boards_that_cannot_be_measured_together_are_refused(
    stub: Stub, inside: Callable[..., Any], boards: tuple[str, ...], lines: list[str], wanted: int, parts: list[str]
) -> None:
    stub.set(*lines, boards=boards)
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.choose, None, wanted)
    for part in parts:
        assert part in str(raised.value)
    assert len(str(raised.value).splitlines()[0]) < 300


def test_a_server_is_measured_on_the_boards_that_its_processes_use(stub: Stub, inside: Callable[..., Any]) -> None:
    with subprocess.Popen(["sleep", "60"]) as server:
        stub.set(f"process {server.pid} 2", f"process {server.pid} 3", boards=(H100, OTHER, THIRD))
        assert inside(nvml_inside.choose, None, 2, (server.pid,))[0] == NAMES[1:]
        with pytest.raises(SweetspotError, match=r"runs on 2 GPUs .* but its model on 1: set tensor_parallel"):
            inside(nvml_inside.choose, None, 1, (server.pid,))
        server.kill()


@pytest.fixture
def holder(stub: Stub) -> Iterator[Callable[[int], "subprocess.Popen[str]"]]:
    """Start a job that takes so many boards, and wait until it has them, or none."""
    code = (
        "import sys, time; from sweetspot.sensors import open_sensors\n"
        "print(*[sensor.name for sensor in open_sensors(None, int(sys.argv[1]))], flush=True); time.sleep(60)"
    )
    started: list[subprocess.Popen[str]] = []

    def start(boards: int) -> "subprocess.Popen[str]":
        environment = {**os.environ, **stub.environment}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        command = [sys.executable, "-c", code, str(boards)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_no_two_jobs_get_one_board_even_after_a_kill(
    stub: Stub, holder: Callable[[int], "subprocess.Popen[str]"]
) -> None:
    """Jobs that begin together on a machine without a scheduler, before any of them runs anything on its boards."""
    stub.set(boards=(H100, OTHER, THIRD))
    pair, single = holder(2), holder(1)
    assert pair.stdout is not None
    assert single.stdout is not None
    found = [*pair.stdout.readline().split(), *single.stdout.readline().split()]
    assert sorted(found) == NAMES
    late = holder(1)
    assert "in use by another measuring job" in late.communicate(timeout=60)[1]
    pair.send_signal(signal.SIGKILL)
    pair.wait()
    after = holder(2)
    assert after.stdout is not None
    assert after.stdout.readline().split() == found[:2]
