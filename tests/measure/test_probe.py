"""The probe under load, on the simulated board: it must find that board's known properties."""

from typing import Any

import pytest

from simulation import Bench
from sweetspot.measure import probe
from sweetspot.sensors.simulated import AVERAGE_S, STEP_S, SimulatedSensor


class Burner:
    """A load of 500 W beyond idle."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def burn(self, duration_s: float) -> None:
        self._bench.watts((duration_s, 420.0))


class Glimpses(SimulatedSensor):
    """A counter that adds up what the instant sensor sees: 25 ms of each 100."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.device)
        self._bench, self._sum_j, self._at = bench, 0.0, self._step()[0]

    def energy_mj(self) -> int:
        number, at_s = self._step()
        while self._at < number:
            self._at += 1
            end_s = at_s - (number - self._at) * STEP_S
            self._sum_j += self._bench.device.true_energy_j(end_s - 0.025, end_s) * STEP_S / 0.025
        return round(1000 * self._sum_j)


def probed(bench: Bench) -> dict[str, Any]:
    return probe.probe(bench.sensor, bench.sensor.identity(), bench.device.clock, 120.0, lambda: Burner(bench).burn)


def test_a_good_board() -> None:
    bench = Bench()
    start_s = bench.device.clock.now()
    record = probed(bench)
    assert bench.device.clock.now() - start_s == pytest.approx(120, rel=0.1)
    for source in record["sensors"].values():
        assert source["period_s"] == pytest.approx(STEP_S, abs=0.003)
    load = record["load"]
    assert load["counter_sees_all"] is True
    assert load["spread"]["counter"] < 0.05 < 0.2 < load["spread"]["instant"]
    assert load["steady"]["counter"] == pytest.approx(load["steady"]["instant"], rel=0.02)
    assert 0 <= load["lag_s"]["instant"] < 0.3
    assert load["lag_s"]["average"] == pytest.approx(AVERAGE_S / 2, abs=0.2)
    assert record["idle"]["bare"]["counter"] == pytest.approx(bench.idle_w, rel=0.05)
    assert set(record["idle"]) == {"bare", "with_context"}
    assert record["protocol"]["poll_s"] == pytest.approx(0.05, abs=0.002)
    assert record["protocol"]["sensor_s"] == pytest.approx(1.0, abs=0.4)
    assert [wave["period_s"] for wave in load["waves"]] == [0.01, 0.03, 0.07, 0.13]
    assert "the counter integrates continuously" in probe.as_text(record)


def test_a_counter_that_samples_only_part_of_the_time_is_detected() -> None:
    bench = Bench()
    bench.sensor = Glimpses(bench)
    record = probed(bench)
    assert record["load"]["counter_sees_all"] is False
    assert "does NOT integrate" in probe.as_text(record)


def test_a_wave_out_of_step_with_the_sensors_gives_no_verdict() -> None:
    """If no sensor depends on the phase, the test could not have caught a counter that misses time."""
    bench = Bench()
    bench.sensor.power_instant_w = bench.sensor.power_average_w
    assert probed(bench)["load"]["counter_sees_all"] is None


def test_a_frozen_board_leaves_the_default_numbers() -> None:
    bench = Bench()
    bench.sensor.energy_mj = lambda: 42
    record = probed(bench)
    assert record["sensors"]["counter"] is None
    assert record["idle"]["bare"]["counter"] is None
    assert "counter_stuck" in record["idle"]["bare"]["reasons"]
    assert record["load"]["counter_sees_all"] is None
    assert record["protocol"]["counter_step_s"] == 0.1
    assert "counter: no new value" in probe.as_text(record)
