"""The real bindings on a stub library with known power: joules are recovered, faults caught, boards found.

Most tests run in virtual time, shared by library and clock; those in real time say so.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import nvml_inside
import nvml_stub
from nvml_inside import CONSTANT
from nvml_stub import A100, H100, OTHER, START_S, Stub, Trace
from sweetspot.errors import SweetspotError
from sweetspot.measure.protocol import Protocol
from sweetspot.sensors import board as boards
from sweetspot.sensors.meter import GpuLostError
from sweetspot.sensors.window import REASONS, uncertainty

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: NVML was not tested")

WAVE = Trace(((0.353, 650.0, 650.0), (0.461, 130.0, 130.0)))
SLOW_RAMP = Trace(((31.0, 200.0, 600.0),))
WORK_S = 10.037
# Like real work, each begins on the counter's first step after START_S and leaves the board idle.
TRACES = {
    "constant": ((0.1, 130.0, 130.0), (WORK_S, 400.0, 400.0)),
    "square wave": ((0.1, 130.0, 130.0), *[(0.353, 650.0, 650.0), (0.461, 130.0, 130.0)] * 12, (0.269, 650.0, 650.0)),
    "ramp": ((0.1, 130.0, 130.0), (WORK_S, 150.0, 700.0)),
    "two ramps": ((0.1, 130.0, 130.0), (7.3, 120.0, 700.0), (WORK_S - 7.3, 700.0, 300.0)),
}
UUID = H100.split()[0]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def inside(stub: Stub) -> Iterator[Callable[..., Any]]:
    """Call a function in a process that loads the stub in place of the driver's library."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stub.environment.items():
            patch.setenv(name, value)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield lambda function, *arguments: pool.submit(function, stub, *arguments).result(timeout=60)


# Known joules.


@pytest.mark.parametrize("gain", [0.96, 1.0, 1.05])
@pytest.mark.parametrize("name", TRACES)
def test_known_joules_come_back(stub: Stub, inside: Callable[..., Any], name: str, gain: float) -> None:
    trace = Trace((*TRACES[name], (20 - sum(length for length, _, _ in TRACES[name]), 130.0, 130.0)))
    stub.set(f"gain {gain}", trace=trace)
    window = inside(nvml_inside.measure, WORK_S, Protocol())
    assert window.reasons == ()
    assert window.duration_s == pytest.approx(WORK_S)
    true_j = gain * trace.energy_j(window.start_s, window.start_s + window.duration_s)
    assert window.energy_j == pytest.approx(true_j, rel=0.005)
    assert window.energy_average_j == pytest.approx(true_j, rel=0.1)
    assert window.edge_error == pytest.approx(0.1 / WORK_S)


def test_the_counter_sees_changes_faster_than_its_steps(stub: Stub, inside: Callable[..., Any]) -> None:
    fast = Trace(((0.0093, 650.0, 650.0), (0.0057, 130.0, 130.0)))
    stub.set(trace=fast)
    window = inside(nvml_inside.measure, WORK_S, Protocol())
    assert window.energy_j == pytest.approx(fast.energy_j(window.start_s, window.start_s + WORK_S), rel=0.005)


def test_known_joules_come_back_in_real_time(stub: Stub, inside: Callable[..., Any]) -> None:
    """Ten real seconds: the machine's clock, polls from a thread, and whatever else the machine does."""
    stub.set("gain 1.03", trace=SLOW_RAMP, real=True)
    epoch_s = float(stub.file.read_text().split()[1])
    window = inside(nvml_inside.measure_really, 10.2)
    assert window.reasons == ()
    start_s = window.start_s - epoch_s
    true_j = 1.03 * SLOW_RAMP.energy_j(start_s, start_s + window.duration_s)
    assert window.energy_j == pytest.approx(true_j, rel=0.005)


def test_the_instant_sensor_misses_what_lies_between_its_samples(stub: Stub, inside: Callable[..., Any]) -> None:
    """A wave with the sensor's own period: the second source contradicts the counter, so the window is invalid."""
    hidden = Trace(((0.06, 650.0, 650.0), (0.04, 130.0, 130.0)))
    stub.set(trace=hidden)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.energy_j == pytest.approx(hidden.energy_j(0, 12.0), rel=0.005)
    assert window.energy_instant_j == pytest.approx(130 * 12.0, rel=0.02)
    assert window.reasons == ("counter_vs_integral",)


@pytest.mark.parametrize("duration_s", [1.5, 5.0, 20.0])
def test_the_error_is_within_the_budget(stub: Stub, inside: Callable[..., Any], duration_s: float) -> None:
    """Even if the power changes in the tail, which the meter cannot see."""
    stub.set(trace=WAVE)
    window = inside(nvml_inside.measure, duration_s, Protocol())
    budget = uncertainty(window, 0.05)
    assert budget["counter_step"] == pytest.approx(0.1 / duration_s)
    assert budget["gain"] == 0.05
    assert 0 < budget["tail"] < 0.1 / duration_s * 650 / 130
    assert budget["total"] ** 2 == pytest.approx(sum(budget[name] ** 2 for name in ("gain", "counter_step", "tail")))
    true_j = WAVE.energy_j(window.start_s, window.start_s + duration_s)
    assert abs(window.energy_j / true_j - 1) < budget["total"]


# Faults: each has its own reason.

MID = START_S + 6
FAULTS = {
    "counter stuck": ([f"stuck {MID}"], "counter_stuck"),
    "counter never steps": ([f"stuck {START_S}"], "counter_stuck"),
    "counter stuck for a while": ([f"@{MID}-{MID + 3} stuck {MID}"], "counter_stuck"),
    "counter reset": ([f"@{MID} reset {MID}"], "counter_reset"),
    "counter too low by a factor": (["factor 0.57"], "counter_vs_integral"),
    "counter too high by a factor": (["factor 1.1"], "counter_vs_integral"),
    "instant sensor unsupported": (["fail:186 3"], "instant_power_missing"),
    "instant sensor unknown to the driver": (["fail:186 2"], "instant_power_missing"),
    "GPU lost": ([f"@{MID} lost"], "gpu_lost"),
    "GPU needs a reset": ([f"@{MID} fail:nvmlDeviceGetFieldValues 16"], "gpu_lost"),
    "a reading fails": ([f"@{MID} fail:83 999"], "sensor_failed"),
    "power fails": ([f"@{MID} fail:186 999"], "sensor_failed"),
    "another process comes and goes": ([f"@{MID}-{MID + 1.5} process {os.getppid()}"], "other_process"),
    "power limit changed": ([f"@{MID} limit_mw 500000"], "power_limit_changed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_reason(stub: Stub, inside: Callable[..., Any], fault: str) -> None:
    lines, reason = FAULTS[fault]
    stub.set(*lines, trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.reasons == (reason,)
    assert reason in REASONS
    if reason in ("counter_stuck", "counter_reset", "gpu_lost", "sensor_failed"):
        assert window.energy_j is None, "missing, not 0 J"
        assert uncertainty(window, 0.05) == {}
    else:
        assert window.energy_j > 1000


READINGS = ("83", "185", "186", "nvmlDeviceGetFieldValues", "nvmlDeviceGetTemperature", "nvmlDeviceGetClockInfo")
READINGS += ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetEnforcedPowerLimit")
READINGS += ("nvmlDeviceGetComputeRunningProcesses_v3",)


@pytest.mark.parametrize("at_s", [START_S + 0.05, MID, START_S + 12.1], ids=["opening", "within", "closing"])
@pytest.mark.parametrize("reading", READINGS)
def test_a_reading_that_fails_for_a_moment_spoils_nothing(
    stub: Stub, inside: Callable[..., Any], reading: str, at_s: float
) -> None:
    stub.set(f"@{at_s}-{at_s + 0.16} fail:{reading} 999", trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.reasons == ()
    assert window.energy_j == pytest.approx(4800, rel=0.005)
    assert window.energy_instant_j == pytest.approx(4800, rel=0.005)
    assert window.processes_checked


@pytest.mark.parametrize("code", [3, 4, 999])
@pytest.mark.parametrize("reading", ["nvmlDeviceGetTemperature", "nvmlDeviceGetClockInfo"])
def test_a_reading_that_no_energy_needs_may_be_missing(
    stub: Stub, inside: Callable[..., Any], reading: str, code: int
) -> None:
    stub.set(f"fail:{reading} {code}", trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.reasons == ()
    assert window.energy_j == pytest.approx(4800, rel=0.005)
    assert (window.temperature_c is None) is (reading == "nvmlDeviceGetTemperature")
    assert (window.sm_clock_mhz is None) is (reading == "nvmlDeviceGetClockInfo")


@pytest.mark.parametrize("code", [3, 4, 999])
def test_a_board_that_lists_no_processes_is_measured_and_flagged(
    stub: Stub, inside: Callable[..., Any], code: int
) -> None:
    stub.set(f"fail:nvmlDeviceGetComputeRunningProcesses_v3 {code}", trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.energy_j == pytest.approx(4800, rel=0.005)
    assert (window.reasons, window.processes_checked) == ((), False)


def test_a_window_shorter_than_the_sensor_has_its_reason(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(trace=CONSTANT)
    assert inside(nvml_inside.measure, 0.7, Protocol()).reasons == ("window_too_short",)


@pytest.mark.parametrize(("fault", "reason"), [("stall", "polls_late"), ("jump", "clock_jumped"), ("", None)])
def test_a_bad_host_has_its_reason(stub: Stub, inside: Callable[..., Any], fault: str, reason: str | None) -> None:
    stub.set(trace=CONSTANT)
    assert inside(nvml_inside.measure_on_a_bad_host, fault).reasons == ((reason,) if reason else ())


def test_a_power_limit_changed_between_two_windows_is_found(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(f"@{START_S + 11.5} limit_mw 500000", trace=CONSTANT)
    assert [window.reasons for window in inside(nvml_inside.measure_twice)] == [(), ("power_limit_changed",)]


@pytest.mark.parametrize(
    ("bits", "flags"),
    [
        ("0x4", ["power_capped"]),
        ("0x20", ["throttled"]),
        ("0x40", ["throttled"]),
        ("0x8", ["throttled"]),
        ("0x80", ["throttled"]),
        ("0x1", []),
    ],
)
def test_throttling_is_a_flag(stub: Stub, inside: Callable[..., Any], bits: str, flags: list[str]) -> None:
    from sweetspot.sensors.window import regime

    stub.set(f"@{MID}-{MID + 0.2} reasons {bits}", trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.reasons == ()
    assert regime(window.event_reasons) == flags


def test_a_lost_gpu_explains_why_the_work_failed(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(f"@{MID} lost", trace=CONSTANT)
    with pytest.raises(GpuLostError, match=UUID):
        inside(nvml_inside.measure_failing_work)
    stub.set(trace=CONSTANT)
    with pytest.raises(RuntimeError, match="CUDA error"):
        inside(nvml_inside.measure_failing_work)


def test_our_own_processes_may_compute(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(trace=CONSTANT)
    assert inside(nvml_inside.measure_with_a_child).reasons == ()


def test_a_container_that_sees_ids_of_the_host(stub: Stub, inside: Callable[..., Any]) -> None:
    """An id unknown here may be ours if the board was idle before; an id of another process here is not."""
    stub.set("process 4194304")
    with pytest.raises(SweetspotError, match="4194304"):
        inside(nvml_inside.in_a_container)
    stub.set()
    strangers, check = inside(nvml_inside.in_a_container)
    assert strangers == (os.getpid(),)
    assert check == "when opened"


# Refusals before anything is measured.


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["fail:nvmlInitWithFlags 9"], ["driver is not loaded", "nvidia-smi"]),
        (["fail:nvmlInitWithFlags 12"], ["libnvidia-ml.so.1", "--nv"]),
        (["fail:nvmlInitWithFlags 18"], ["reboot"]),
        (["fail:nvmlDeviceGetFieldValues 4"], ["denies access", UUID]),
        (["fail:83 3"], ["energy counter", "Volta"]),
        (["fail:nvmlDeviceGetCurrentClocksEventReasons 13"], ["EventReasons", "535"]),
        (["fail:nvmlDeviceGetUUID 999"], ["999"]),
        (["mig 1"], ["MIG", UUID, "whole GPU"]),
        ([f"process {os.getpid()}"], [str(os.getpid()), "in use", "python"]),
        (["process 4194304"], ["4194304", "in use"]),
        (["lost"], ["is lost"]),
    ],
)
def test_what_cannot_be_measured_is_refused(
    stub: Stub, inside: Callable[..., Any], lines: list[str], parts: list[str]
) -> None:
    stub.set(*lines)
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.identify)
    for part in parts:
        assert part in str(raised.value)


def test_only_the_last_user_shuts_nvml_down(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set()
    assert inside(nvml_inside.use_twice) > 0


# Which board.

SECOND = OTHER.split()[0]


@pytest.mark.parametrize(
    ("visible", "uuid", "found"),
    [
        ("0", None, UUID),
        ("1", None, SECOND),
        (SECOND, None, SECOND),
        ("GPU-222", None, SECOND),
        ("1,0", UUID, UUID),
        (None, SECOND, SECOND),
        (None, "GPU-1", UUID),
        ("1,1", None, SECOND),
    ],
)
def test_the_allocated_board_is_found(
    stub: Stub, inside: Callable[..., Any], visible: str | None, uuid: str | None, found: str
) -> None:
    stub.set(boards=(H100, OTHER))
    assert inside(nvml_inside.identify, visible, uuid) == found


@pytest.mark.parametrize("visible", ["0", None, SECOND])
def test_a_board_that_the_scheduler_fenced_off_does_not_count(
    stub: Stub, inside: Callable[..., Any], visible: str | None
) -> None:
    """Slurm with ConstrainDevices allocated the second board: index 0 is the first that opens, not the node's first."""
    stub.set("denied 0", boards=(H100, OTHER))
    assert inside(nvml_inside.identify, visible, None) == SECOND


@pytest.mark.parametrize("code", [15, 16, 999], ids=["lost", "needs a reset", "unknown"])
@pytest.mark.parametrize(("bad", "visible"), [(0, SECOND), (0, "GPU-2"), (0, None), (1, UUID), (1, "0"), (1, None)])
def test_a_neighbour_that_cannot_be_read_does_not_count(
    stub: Stub, inside: Callable[..., Any], bad: int, visible: str | None, code: int
) -> None:
    stub.set(f"bad {bad} {code}", boards=(H100, OTHER))
    assert inside(nvml_inside.identify, visible, None) == (UUID if bad else SECOND)


@pytest.mark.parametrize(
    ("visible", "parts"),
    [(UUID, [UUID, "does not match", SECOND]), ("0", ["by its UUID", SECOND]), ("1", ["by its UUID", SECOND])],
)
def test_a_board_of_ours_that_cannot_be_read_is_named(
    stub: Stub, inside: Callable[..., Any], visible: str, parts: list[str]
) -> None:
    stub.set("bad 0 15", boards=(H100, OTHER))
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.identify, visible, None)
    for part in ["GPU 0", "is lost", *parts]:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("boards", "visible", "uuid", "kept"),
    [
        ((H100,), None, None, None),
        ((H100,), "0", None, "0"),
        ((H100, OTHER), "1", None, "1"),
        ((H100, OTHER), "GPU-2", None, "GPU-2"),
        ((H100, OTHER), "0,1", SECOND, "1"),
        ((H100, OTHER), None, SECOND, SECOND),
    ],
)
def test_a_metered_command_keeps_its_own_way_of_naming_the_board(
    stub: Stub,
    inside: Callable[..., Any],
    boards: tuple[str, ...],
    visible: str | None,
    uuid: str | None,
    kept: str | None,
) -> None:
    stub.set(boards=boards, trace=CONSTANT, real=True)
    assert inside(nvml_inside.visible_to_a_command, visible, uuid) == kept


@pytest.mark.parametrize(
    ("visible", "uuid", "parts"),
    [
        (None, None, ["2 GPUs", UUID, SECOND, "--gpu"]),
        ("0,1", None, ["2 GPUs", UUID, SECOND]),
        ("", None, ["no GPU is visible"]),
        ("-1", None, ["no GPU is visible"]),
        ("7", None, ["7", "CUDA_VISIBLE_DEVICES"]),
        ("GPU-9", None, ["GPU-9", "CUDA_VISIBLE_DEVICES"]),
        ("GPU-", None, ["GPU- does not match exactly one GPU", "CUDA_VISIBLE_DEVICES"]),
        ("0", SECOND, ["--gpu", "not among", UUID]),
        ("MIG-44444444-aaaa-bbbb-cccc-000000000004", None, ["MIG", "slice"]),
        (f"MIG-{UUID}/1/0", None, ["MIG", "slice"]),
        (None, "MIG-44444444-aaaa-bbbb-cccc-000000000004", ["MIG", "slice"]),
    ],
)
def test_a_board_that_is_not_ours_to_measure_is_refused(
    stub: Stub, inside: Callable[..., Any], visible: str | None, uuid: str | None, parts: list[str]
) -> None:
    stub.set(boards=(H100, OTHER))
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.identify, visible, uuid)
    for part in parts:
        assert part in str(raised.value)


def test_indices_among_boards_of_two_kinds_are_refused(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(boards=(H100, A100))
    with pytest.raises(SweetspotError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        inside(nvml_inside.identify, "1")
    assert inside(nvml_inside.identify, A100.split()[0]) == A100.split()[0]


def test_another_kind_of_board_than_configured_is_refused(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set()
    assert inside(nvml_inside.identify, None, None, "NVIDIA H100 80GB HBM3") == UUID
    with pytest.raises(SweetspotError, match="NVIDIA H200") as raised:
        inside(nvml_inside.identify, None, None, "NVIDIA H200")
    assert "NVIDIA H100 80GB HBM3" in str(raised.value)


# Machines.


def test_a_machine_that_changed_between_sessions_is_found(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set()
    before = inside(nvml_inside.describe)
    assert before["gpu"] == "NVIDIA H100 80GB HBM3"
    assert (before["driver_version"], before["ecc"], before["power_limit_w"]) == ("580.159.03", "on", 700.0)
    assert before["process_check"] == "throughout"
    assert boards.changes(before, inside(nvml_inside.describe)) == []
    stub.set("driver 590.1", "ecc 0", "vbios 96.2", "limit_mw 500000", "persistence 0")
    assert boards.changes(before, inside(nvml_inside.describe)) == [
        "driver_version: 580.159.03 -> 590.1",
        "vbios_version: 96.00.89.00.01 -> 96.2",
        "ecc: on -> off",
        "power_limit_w: 700.0 -> 500.0",
    ]


def test_values_that_a_board_does_not_report_are_none(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set("fail:nvmlDeviceGetEccMode 3", "fail:nvmlDeviceGetDefaultApplicationsClock 26")
    machine = inside(nvml_inside.describe)
    assert machine["ecc"] == "none"
    assert machine["sm_clock_default_mhz"] is None


def test_the_probe_finds_the_periods_of_the_sensors(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set("step 0.2", trace=Trace(((3.7, 70.0, 75.0), (2.9, 75.0, 70.0))))
    record = inside(nvml_inside.probe_idle)
    for source in ("counter", "instant", "average"):
        assert record["sensors"][source]["period_s"] == pytest.approx(0.2, abs=0.004)
    assert record["idle"]["bare"]["counter"] == pytest.approx(72.5, rel=0.02)
    assert record["idle"]["bare"]["reasons"] == ""
    assert "no load" in record["note"]
    assert record["protocol"]["counter_step_s"] == pytest.approx(0.2, abs=0.004)
    assert record["protocol"]["window_s"] == pytest.approx(20, abs=0.4)
    assert set(record["protocol"]) <= set(Protocol.__dataclass_fields__)
