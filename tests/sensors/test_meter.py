"""The meter against known joules, through the simulated board's sensors."""

import time

import pytest

from simulation import Bench
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Meter
from sweetspot.sensors.simulated import STEP_S
from sweetspot.sensors.window import Limits

TRACES = {
    "constant": [(12.0, 300.0)],
    "square wave": [(0.353, 450.0), (0.461, 20.0)] * 15,
    "ramp": [(0.1, 4.0 * step) for step in range(110)],
    "one long burst": [(4.0, 10.0), (4.0, 480.0), (4.0, 10.0)],
}


def error_beyond_gain(bench: Bench, window) -> float:
    true_j = bench.device.true_energy_j(window.start_s, window.start_s + window.duration_s)
    return window.energy_j / bench.gain / true_j - 1


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("seed", range(1, 6))
def test_known_joules_come_back(trace: str, seed: int) -> None:
    bench = Bench(seed=seed)
    window = bench.meter().window(lambda: bench.watts(*TRACES[trace]))
    assert window.reasons == ()
    assert window.duration_s == pytest.approx(sum(duration for duration, _ in TRACES[trace]))
    assert abs(error_beyond_gain(bench, window)) < 0.005


def test_the_window_opens_on_a_counter_step_and_does_not_count_the_tail() -> None:
    """Work that ends anywhere between two steps: without either correction the error is up to a step."""
    errors = []
    for tenths in range(20):
        bench = Bench()
        bench.device.clock.sleep(0.013 * tenths)
        window = bench.meter().window(lambda b=bench, t=tenths: b.watts((1.0 + 0.007 * t, 500.0)))
        errors.append(abs(error_beyond_gain(bench, window)))
        assert window.edge_error == pytest.approx(STEP_S / window.duration_s)
    assert max(errors) < 0.005


def test_three_sources_agree_on_steady_power() -> None:
    bench = Bench()
    bench.watts((5.0, 300.0))
    window = bench.meter().window(lambda: bench.watts((20.0, 300.0)))
    assert window.energy_instant_j == pytest.approx(window.energy_j, rel=0.01)
    assert window.energy_average_j == pytest.approx(window.energy_j, rel=0.01)


def test_the_gain_of_the_board_is_in_every_source_and_differs_between_boards() -> None:
    gains = set()
    for seed in range(8):
        bench = Bench(seed=seed)
        bench.watts((3.0, 300.0))
        window = bench.meter().window(lambda b=bench: b.watts((20.0, 300.0)))
        true_j = bench.device.true_energy_j(window.start_s, window.start_s + window.duration_s)
        assert window.energy_j / true_j == pytest.approx(bench.gain, rel=0.002)
        assert window.energy_instant_j / true_j == pytest.approx(bench.gain, rel=0.01)
        gains.add(round(bench.gain, 4))
    assert len(gains) == 8
    assert all(0.95 <= gain <= 1.05 for gain in gains)


class Faulty:
    """A wrapper that adds faults to a good sensor."""

    def __init__(self, sensor, **faults) -> None:
        self._sensor, self._faults = sensor, faults

    def __getattr__(self, name: str):
        return self._faults.get(name, getattr(self._sensor, name))


def reset_half_way(bench: Bench):
    start = bench.device.clock.now()
    good = bench.sensor.energy_mj
    return lambda: good() if bench.device.clock.now() < start + 6 else good() - 10**9


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("counter_stuck", lambda bench: {"energy_mj": lambda: 42}),
        ("counter_reset", lambda bench: {"energy_mj": reset_half_way(bench)}),
        ("counter_vs_integral", lambda bench: {"energy_mj": lambda good=bench.sensor.energy_mj: good() // 2}),
        ("instant_power_missing", lambda bench: {"power_instant_w": lambda: None}),
    ],
)
def test_each_fault_has_its_reason(reason: str, fault) -> None:
    bench = Bench()
    bench.sensor = Faulty(bench.sensor, **fault(bench))
    window = bench.meter().window(lambda: bench.watts((12.0, 300.0)))
    assert window.reasons == (reason,)
    if reason in ("counter_stuck", "counter_reset"):
        assert window.energy_j is None, "missing, not 0 J"


def test_the_sensor_steps_ten_times_a_second_and_sees_a_quarter_of_the_time() -> None:
    bench = Bench()
    values, instants = set(), set()
    start = bench.device.clock.now()
    with bench.device.clock.every(0.001, lambda: values.add(bench.sensor.energy_mj())):
        bench.watts((2.0, 300.0))
    assert 19 <= len(values) <= 22
    # 70 ms of every 100 are idle; an instant sensor in phase with them sees only idle time, or only the burst
    period = [(0.03, 400.0), (0.07, 0.0)] * 30
    with bench.device.clock.every(0.1, lambda: instants.add(round(bench.sensor.power_instant_w(), -1))):
        bench.watts(*period)
    true_w = bench.device.true_energy_j(start + 2.5, start + 4.5) / 2.0
    late = [value for value in instants if value]
    assert max(abs(value / true_w - 1) for value in late) > 0.2


def test_the_wall_clock_calls_back_and_passes_errors_on() -> None:
    clock, calls = Clock(), []
    with clock.every(0.01, lambda: calls.append(clock.now())):
        clock.sleep(0.2)
    assert 5 <= len(calls) <= 21

    def fail() -> None:
        raise OSError("GPU is lost")

    with pytest.raises(OSError, match="GPU is lost"), clock.every(0.01, fail):
        clock.sleep(0.1)


def test_ending_the_polls_does_not_lengthen_the_window() -> None:
    """NVML calls take milliseconds, and the window's duration is a measured column."""

    class Slow:
        def __getattr__(self, name: str):
            def read():
                time.sleep(0.04)
                counter = int(1000 * clock.now()) // 20 * 20
                return {"energy_mj": counter, "strangers": ()}.get(name, 300)

            return read

    clock = Clock()
    limits = Limits(tolerance=9.0, poll_gap_s=1.0, counter_timeout_s=1.0, sensor_s=0.1)
    worked: list[float] = []

    def work() -> None:
        start_s = clock.now()
        clock.sleep(0.3)
        worked.append(clock.now() - start_s)

    window = Meter([Slow()], clock, limits, poll_s=0.05, step_s=0.02).window(work)
    assert window.duration_s == pytest.approx(sum(worked), abs=0.1), "a poll of several calls takes more"
    assert window.energy_instant_j == pytest.approx(300 * window.duration_s, rel=0.01)


def test_the_tail_is_subtracted_at_the_idle_power_of_that_moment() -> None:
    """A hot board idles at a higher power: the idle power of a cold board would leave joules in the window."""
    errors = []
    for phase in range(10):
        bench = Bench()
        bench.watts((300.0, 590.0))
        bench.device.clock.sleep(0.011 * phase)
        window = bench.meter().window(lambda b=bench, p=phase: b.watts((1.0 + 0.01 * p, 1.0)))
        errors.append(error_beyond_gain(bench, window))
    assert max(map(abs, errors)) < 0.002
