"""Reading a GPU's sensors over a window of work, and judging whether the reading can be believed.

The energy counter is the primary source. It steps about every 100 ms, so a window starts on a step; beside it the two
power readings are polled and integrated, because a counter can be plainly wrong and only a second source shows it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from math import hypot
from statistics import fmean
from typing import Protocol

from sweetspot.clock import Clock
from sweetspot.errors import SweetspotError

STEP_POLL_S = 0.002  # while waiting for a step; an NVML call takes about 1 ms
_CONDITIONS_S = 1.0  # listing processes costs more than reading a sensor, and what it looks for comes to stay
# A host's clocks agree to 0.05 % (the fastest that NTP slews them), 5 ms in 10 s; more is a step or a suspended host.
_CLOCK_JUMP_S = 0.05

# Bits of nvmlDeviceGetCurrentClocksEventReasons
_POWER_CAP = 0x4
_THROTTLED = 0x8 | 0x20 | 0x40  # hardware slowdown, software and hardware thermal slowdown


class SensorError(SweetspotError):
    """The sensor of a board gave no answer. `reason` is the code that a window carries for it."""

    reason = "sensor_failed"


class GpuLostError(SensorError):
    """The board has fallen off the bus, or needs a reset."""

    reason = "gpu_lost"


@dataclass(frozen=True)
class Conditions:
    """What must not change while a board is measured: the power limit in W, and that nobody else computes on it."""

    power_limit_w: float
    strangers: tuple[int, ...]  # process ids


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

    def conditions(self) -> Conditions:
        """What must not change while the board is measured."""

    def identity(self) -> dict[str, str | float]:
        """Board and driver: gpu, gpu_uuid, driver_version, power_limit_w, and what else a row should carry."""


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
    """Energies of one window by source, None where a source gave none, and why the window may not be believed.

    `counter_j` is without `tail_j`, the joules between the end of the work and the counter's next step. `edge_error` is
    one counter step relative to the window: what the edges cost at most, were they not aligned.
    """

    start_s: float
    duration_s: float
    counter_j: float | None
    instant_j: float | None
    average_j: float | None
    tail_j: float
    edge_error: float
    temperature_c: float
    sm_clock_mhz: float
    event_reasons: int
    reasons: tuple[str, ...]
    samples: tuple[Sample, ...] = field(repr=False)


class Meter:
    """Measures windows of work with one sensor on one clock."""

    def __init__(
        self,
        sensor: Sensor,
        clock: Clock,
        *,
        poll_s: float,
        poll_gap_s: float,
        tolerance: float,
        counter_timeout_s: float,
        step_s: float,
        sensor_s: float,
    ) -> None:
        """Poll every `poll_s`; two sources that differ by more than `tolerance` (relative) invalidate a window.

        So do polls further apart than `poll_gap_s`, a counter without a step for `counter_timeout_s`, and a window
        shorter than `sensor_s`, the time that the slowest sensor averages over. `step_s` is the counter's period.
        """
        self.sensor, self.clock = sensor, clock
        self._poll_s, self._gap_s, self._tolerance = poll_s, poll_gap_s, tolerance
        self._timeout_s, self._step_s, self._sensor_s = counter_timeout_s, step_s, sensor_s
        self._limit_w: float | None = None  # the power limit of the first window: all others must have the same

    @contextmanager
    def polling(self, conditions: list[Conditions] | None = None) -> Iterator[list[Sample]]:
        """Poll the sensor in the background; the list fills while the context is open.

        `conditions` fills too, more slowly. The first SensorError of a poll ends the polling, not the work; it is
        raised when the context ends.
        """
        failures: list[SensorError] = []

        def guarded(read: Callable[[], None]) -> Callable[[], None]:
            def poll() -> None:
                if not failures:
                    try:
                        read()
                    except SensorError as error:
                        failures.append(error)

            return poll

        samples = [self._sample()]
        sample = guarded(lambda: samples.append(self._sample()))
        with self.clock.every(self._poll_s, sample):
            if conditions is None:
                yield samples
            else:
                look = guarded(lambda: conditions.append(self.sensor.conditions()))
                with self.clock.every(_CONDITIONS_S, look):
                    yield samples
                look()
        sample()
        if failures:
            raise failures[0]

    def window(self, work: Callable[[], None], idle_w: float | None = None) -> Window:
        """Measure `work`, which must be synchronised when it returns.

        The window opens on a counter step. The work does not end on one, so the counter is read at the next step after
        it, and the joules of the tail between are taken off again: at `idle_w`, since nothing runs in it, or else at
        the power of the step that follows. The tail is at most one step, so 30 W too few in `idle_w` cost 3 J.

        A board that is lost while the work goes on makes the window invalid. Raises SensorError when the sensor gives
        no answer before the work, or when the work failed as well.
        """
        conditions = [self.sensor.conditions()]
        if self._limit_w is None:
            self._limit_w = conditions[0].power_limit_w
        opened, start_s = self._next_step()
        offset_s = self.clock.offset_s()
        end_s = closed = failure = None
        tail_j = 0.0
        try:
            with self.polling(conditions) as samples:
                work()
                end_s = self.clock.now()
            jump_s = self.clock.offset_s() - offset_s
            closed, closed_s = self._next_step()
            if closed is not None:
                tail_j = (idle_w if idle_w is not None else self._power_w(closed, closed_s)) * (closed_s - end_s)
        except SensorError as error:
            if end_s is None:
                raise
            failure = error
        except Exception:
            self.sensor.energy_mj()  # raises where the board is gone: that explains whatever the work ran into
            raise
        duration_s = end_s - start_s
        counter_j = instant_j = average_j = None
        if failure:
            reasons = [failure.reason]
        else:
            instant_j = _integral([(s.at_s, s.instant_w) for s in samples], start_s, end_s)
            average_j = _integral([(s.at_s, s.average_w) for s in samples], start_s, end_s)
            reasons = self._counter_faults(opened, closed, samples)
            if opened is not None and closed is not None and not reasons:
                counter_j = (closed - opened) / 1000 - tail_j
            reasons += self._source_faults(counter_j, instant_j)
            reasons += self._host_faults(samples, duration_s, jump_s)
        reasons += ["other_process"] * any(state.strangers for state in conditions)
        reasons += ["power_limit_changed"] * any(state.power_limit_w != self._limit_w for state in conditions)
        return Window(
            start_s,
            duration_s,
            counter_j,
            instant_j,
            average_j,
            tail_j,
            self._step_s / duration_s,
            fmean(s.temperature_c for s in samples),
            fmean(s.sm_clock_mhz for s in samples),
            _union(s.event_reasons for s in samples),
            tuple(reasons),
            tuple(samples),
        )

    def _counter_faults(self, opened: int | None, closed: int | None, samples: list[Sample]) -> list[str]:
        if opened is None or closed is None or _longest_hold_s(samples) > self._timeout_s:
            return ["counter_stuck"]
        if closed < opened or any(b.energy_mj < a.energy_mj for a, b in pairwise(samples)):
            return ["counter_reset"]
        return []

    def _source_faults(self, counter_j: float | None, instant_j: float | None) -> list[str]:
        if instant_j is None:
            return ["instant_power_missing"]
        if counter_j is not None and abs(counter_j - instant_j) > self._tolerance * max(counter_j, instant_j):
            return ["counter_vs_integral"]
        return []

    def _host_faults(self, samples: list[Sample], duration_s: float, jump_s: float) -> list[str]:
        reasons = ["window_too_short"] * (duration_s < self._sensor_s)
        reasons += ["polls_late"] * any(b.at_s - a.at_s > self._gap_s for a, b in pairwise(samples))
        return reasons + ["clock_jumped"] * (abs(jump_s) > _CLOCK_JUMP_S)

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

    def _next_step(self) -> tuple[int | None, float]:
        """Wait for the counter to change; its new value in mJ, or None when it does not within the timeout, and now."""
        before, deadline_s = self.sensor.energy_mj(), self.clock.now() + self._timeout_s
        while self.clock.now() < deadline_s:
            self.clock.sleep(STEP_POLL_S)
            if (value := self.sensor.energy_mj()) != before:
                return value, self.clock.now()
        return None, self.clock.now()

    def _power_w(self, energy_mj: int, at_s: float) -> float:
        """Power from the step at `at_s`, which read `energy_mj`, to the next; 0 when there is no next."""
        value, next_s = self._next_step()
        return 0.0 if value is None else (value - energy_mj) / 1000 / (next_s - at_s)


def regime(event_reasons: int) -> list[str]:
    """Flags for what held the clocks down, from the bits of nvmlDeviceGetCurrentClocksEventReasons."""
    return ["power_capped"] * bool(event_reasons & _POWER_CAP) + ["throttled"] * bool(event_reasons & _THROTTLED)


def uncertainty(window: Window, gain: float) -> dict[str, float]:
    """Bounds of a window's error by cause, relative to its energy; empty where it has none.

    `gain`: that of the board, the same for all its rows, as given. `counter_step`: one step of the counter. `tail`: the
    whole of the joules taken off after the work. `total` is the root of the sum of their squares.
    """
    if not window.counter_j:
        return {}
    parts = {"gain": gain, "counter_step": window.edge_error, "tail": abs(window.tail_j) / abs(window.counter_j)}
    return {**parts, "total": hypot(*parts.values())}


def _integral(points: list[tuple[float, float | None]], start_s: float, end_s: float) -> float | None:
    """Joules from start to end under a polled power in W; None where a poll gave none."""
    total = 0.0
    for (at_s, _), (next_s, power_w) in pairwise(points):
        if power_w is None:
            return None
        # What a poll reads describes the time before it. The first poll stands for the start, the last for the end.
        total += power_w * (min(next_s, end_s) - min(at_s, end_s))
    first_s, first_w = points[0]
    return None if first_w is None else total + first_w * (first_s - start_s)


def _longest_hold_s(samples: list[Sample]) -> float:
    """The longest time over which the polls found the counter at one value, in s."""
    longest, since_s = 0.0, samples[0].at_s
    for before, sample in pairwise(samples):
        if sample.energy_mj != before.energy_mj:
            since_s = sample.at_s
        longest = max(longest, sample.at_s - since_s)
    return longest


def _union(bits: Iterable[int]) -> int:
    result = 0
    for value in bits:
        result |= value
    return result
