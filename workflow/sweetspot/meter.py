"""Reading a GPU's sensors over a window of work, and judging whether the reading can be believed.

The energy counter is the primary source. It steps about every 100 ms, so a window starts on a step; beside it the two
power readings are polled and integrated, because a counter can be plainly wrong and only a second source shows it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Protocol

from sweetspot.clock import Clock

_STEP_POLL_S = 0.002  # while waiting for a step; an NVML call takes about 1 ms


class Sensor(Protocol):
    """What NVML tells of one board. A power that the board does not report is None."""

    def energy_mj(self) -> int:
        """Energy counter, in mJ since any moment."""

    def power_instant_w(self) -> float | None:
        """Latest short average of the power (nvmlDeviceGetFieldValues, field 186)."""

    def power_average_w(self) -> float | None:
        """Average of the power over one second (field 185)."""

    def temperature_c(self) -> float:
        """GPU temperature."""

    def sm_clock_mhz(self) -> int:
        """SM clock."""

    def event_reasons(self) -> int:
        """Bits of nvmlDeviceGetCurrentClocksEventReasons."""

    def identity(self) -> dict[str, str | float]:
        """Board and driver: gpu, gpu_uuid, driver_version, power_limit_w."""


@dataclass(frozen=True)
class Sample:
    """One poll: moment in s, counter in mJ, powers in W."""

    at_s: float
    energy_mj: int
    instant_w: float | None
    average_w: float | None
    temperature_c: float
    sm_clock_mhz: int
    event_reasons: int


@dataclass(frozen=True)
class Window:
    """Energies of one window by source, None where a source gave none, and why the window may not be believed."""

    start_s: float
    duration_s: float
    counter_j: float | None
    instant_j: float | None
    average_j: float | None
    edge_error: float
    temperature_c: float
    sm_clock_mhz: float
    event_reasons: int
    reasons: tuple[str, ...]
    samples: tuple[Sample, ...] = field(repr=False)


class Meter:
    """Measures windows of work with one sensor on one clock."""

    def __init__(
        self, sensor: Sensor, clock: Clock, *, poll_s: float, tolerance: float, counter_timeout_s: float, step_s: float
    ) -> None:
        """Poll every `poll_s`; two sources that differ by more than `tolerance` (relative) invalidate a window.

        A counter without a step for `counter_timeout_s` is stuck. `step_s` is the counter's period. `started_s` is when
        the session began, by the clock.
        """
        self.sensor, self.clock, self.started_s = sensor, clock, clock.now()
        self._poll_s, self._tolerance, self._timeout_s, self._step_s = poll_s, tolerance, counter_timeout_s, step_s

    @contextmanager
    def polling(self) -> Iterator[list[Sample]]:
        """Poll the sensor in the background; the list fills while the context is open, and once more as it closes.

        There is no poll before the work: what the board shows then (idle clock, idle reason) is not the work's.
        """
        samples: list[Sample] = []
        with self.clock.every(self._poll_s, lambda: samples.append(self._sample())):
            yield samples
        samples.append(self._sample())

    def window(self, work: Callable[[], None]) -> Window:
        """Measure `work`, which must be synchronised when it returns.

        The window opens on a counter step. The work does not end on one, so the GPU is left idle until the counter has
        stepped twice: the first step closes the window, and the second tells, by the same counter and at the same
        temperature and clocks, what an idle second costs. The joules of the tail up to the first step are taken off at
        that power. The tail lasts one step at most, so even 20 % of error in it would cost about 2 J.
        """
        reasons = []
        opened = self._next_step()
        start_s = self.clock.now()
        with self.polling() as samples:
            work()
            end_s = self.clock.now()  # here: ending the polls takes a thread and several NVML calls
        closed, closed_s = self._next_step(), self.clock.now()
        later, later_s = self._next_step(), self.clock.now()
        duration_s = end_s - start_s
        counter_j = None
        if opened is None or closed is None or later is None:
            reasons.append("counter_stuck")
        elif not opened < closed < later or any(b.energy_mj < a.energy_mj for a, b in pairwise(samples)):
            reasons.append("counter_reset")
        else:
            counter_j = (closed - opened) / 1000 - (later - closed) / 1000 / (later_s - closed_s) * (closed_s - end_s)
        instant_j = _integral(start_s, [(s.at_s, s.instant_w) for s in samples])
        average_j = _integral(start_s, [(s.at_s, s.average_w) for s in samples])
        if instant_j is None:
            reasons.append("instant_power_missing")
        elif counter_j is not None and abs(counter_j - instant_j) > self._tolerance * counter_j:
            reasons.append("counter_vs_integral")
        return Window(
            start_s,
            duration_s,
            counter_j,
            instant_j,
            average_j,
            self._step_s / duration_s,
            fmean(s.temperature_c for s in samples),
            fmean(s.sm_clock_mhz for s in samples),
            _union(s.event_reasons for s in samples),
            tuple(reasons),
            tuple(samples),
        )

    def _sample(self) -> Sample:
        sensor = self.sensor
        return Sample(
            self.clock.now(),
            sensor.energy_mj(),
            sensor.power_instant_w(),
            sensor.power_average_w(),
            sensor.temperature_c(),
            sensor.sm_clock_mhz(),
            sensor.event_reasons(),
        )

    def _next_step(self) -> int | None:
        """Wait for the counter to change; its new value in mJ, or None when it does not within the timeout."""
        before, deadline_s = self.sensor.energy_mj(), self.clock.now() + self._timeout_s
        while self.clock.now() < deadline_s:
            self.clock.sleep(_STEP_POLL_S)
            if (value := self.sensor.energy_mj()) != before:
                return value
        return None


def _integral(start_s: float, points: list[tuple[float, float | None]]) -> float | None:
    """Joules under a polled power in W from `start_s` to the last poll; None where a poll gave none."""
    total = 0.0
    for (at_s, _), (next_s, power_w) in pairwise([(start_s, None), *points]):
        if power_w is None:
            return None
        # What a poll reads describes the time before it.
        total += power_w * (next_s - at_s)
    return total


def _union(bits: Iterator[int]) -> int:
    result = 0
    for value in bits:
        result |= value
    return result
