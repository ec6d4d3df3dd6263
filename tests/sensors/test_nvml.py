"""The real bindings on a stub library with known power: joules are recovered, faults caught, boards found.

Most tests run in virtual time, shared by library and clock; those in real time say so.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

import nvml_inside
from nvml_inside import CONSTANT
from nvml_stub import H100, START_S, Stub, Trace
from sweetspot.errors import SweetspotError
from sweetspot.measure.protocol import Protocol
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
    "power fails for a while": ([f"@{MID}-{MID + 1} fail:186 999"], "sensor_failed"),
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


@pytest.mark.parametrize("at_s", [START_S + 2, MID + 0.5, START_S + 11.7])
@pytest.mark.parametrize("lasting_s", [0.6, 0.2])
def test_a_power_limit_changed_for_a_moment_is_found(
    stub: Stub, inside: Callable[..., Any], at_s: float, lasting_s: float
) -> None:
    stub.set(f"@{at_s}-{at_s + lasting_s} limit_mw 500000", trace=CONSTANT)
    assert inside(nvml_inside.measure, 12.0, Protocol()).reasons == ("power_limit_changed",)


WHIMS = {  # of counters whose energy may be right, each with the relative error that the window must state
    "ticks once a second": (["step 1.0"], 1 / 12),
    "ticks four times a second": (["step 0.25"], 0.25 / 12),
    "ticks seven times a second": (["step 0.15"], 0.15 / 12),
    "stands and catches up": ([f"@{MID}-{MID + 1.5} stuck {MID}"], 1.4 / 12),
    "stands for a moment and catches up": ([f"@{MID}-{MID + 0.5} stuck {MID}"], 0.4 / 12),
    "stands as the window closes": ([f"@{START_S + 11}-{START_S + 12.5} stuck {START_S + 11}"], 1.4 / 12),
    "jumps by 4 %": ([f"@{MID} reset -0.48"], 0.04),
    "jumps by 2 %": ([f"@{MID} reset -0.24"], 0.02),
    "jumps by 4 % as the window closes": ([f"@{START_S + 12.05} reset -0.48"], 0.04),
}


@pytest.mark.parametrize("whim", WHIMS)
def test_the_error_is_that_of_the_counter_as_it_stepped(stub: Stub, inside: Callable[..., Any], whim: str) -> None:
    lines, least = WHIMS[whim]
    stub.set(*lines, trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.reasons == ()
    budget = uncertainty(window, 0.0)
    assert 0.99 * least <= budget["counter_step"] < 2 * least + 0.1 / 12
    assert abs(window.energy_j / 4800 - 1) < budget["total"]


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
    assert "processes_unchecked" not in window.flags


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
    assert (window.reasons, window.flags) == ((), ("processes_unchecked",))


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
    stub.set(f"@{MID}-{MID + 0.2} reasons {bits}", trace=CONSTANT)
    window = inside(nvml_inside.measure, 12.0, Protocol())
    assert window.reasons == ()
    assert list(window.flags) == flags


def test_a_lost_gpu_explains_why_the_work_failed(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(f"@{MID} lost", trace=CONSTANT)
    with pytest.raises(GpuLostError, match=H100.split()[0]):
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
