"""Reading a GPU's sensors over a window of work, and judging whether the reading can be trusted.

The energy counter is the primary source. It steps about every 100 ms, so a window starts on a step. Both power readings
are also polled and integrated, because a counter can be plainly wrong and only a second source reveals it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from math import hypot
from statistics import fmean
from typing import Any, Protocol

from sweetspot.errors import SweetspotError
from sweetspot.sensors.clock import Clock

STEP_POLL_S = 0.002  # while waiting for a step; an NVML call takes about 1 ms
_CHECK_S = 1.0  # listing processes is slower than reading a sensor, and few processes run for less than this
# A host's clocks agree to 0.05 % (NTP's fastest slew), 10 ms in 20 s; more means a step or a suspended host.
_CLOCK_JUMP_S = 0.05

# Bits of nvmlDeviceGetCurrentClocksEventReasons
_POWER_CAP = 0x4
_THROTTLED = 0x8 | 0x20 | 0x40 | 0x80  # hardware slowdown; software or hardware thermal slowdown; power brake

REASONS = {
    "counter_stuck": "the energy counter did not step",
    "counter_reset": "the energy counter ran backwards",
    "counter_vs_integral": "energy counter and integrated power differ by more than the protocol allows",
    "instant_power_missing": "the second source, instantaneous power, returned no values",
    "window_too_short": "the window was shorter than the averaging time of the power sensor",
    "polls_late": "the host went too long without reading the sensors",
    "clock_jumped": "the host's clocks disagreed: one was set, or the host was suspended",
    "other_process": "another process used the GPU",
    "power_limit_changed": "the GPU's power limit was changed during the session",
    "gpu_lost": "the GPU was lost",
    "sensor_failed": "the driver refused a reading",
}


class SensorError(SweetspotError):
    """A board's sensor did not answer. `reason` is the reason code of the window."""

    reason = "sensor_failed"


class GpuLostError(SensorError):
    """The board has fallen off the bus, or needs a reset."""

    reason = "gpu_lost"


class Sensor(Protocol):
    """The readings of one board. A power that it does not report is None. Any call may raise SensorError."""

    def energy_mj(self) -> int:
        """Energy counter, in mJ since some fixed moment."""

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

    def power_limit_w(self) -> float:
        """The power limit in force."""

    def strangers(self) -> tuple[int, ...]:
        """Ids of compute processes on the board that are not ours."""

    def identity(self) -> dict[str, str | float]:
        """Board and driver for a row: gpu, gpu_uuid, driver_version, power_limit_w and more."""

    def machine(self) -> Mapping[str, Any]:
        """`identity` and everything else that can explain why two sessions differ."""

    def environment(self) -> Mapping[str, str]:
        """Environment variables that restrict a process to this board."""

    def close(self) -> None:
        """Release the board."""


@dataclass(frozen=True)
class Sample:
    """One poll: time in s, counter in mJ, powers in W."""

    at_s: float
    energy_mj: int
    instant_w: float | None
    average_w: float | None
    temperature_c: float
    sm_clock_mhz: int
    event_reasons: int


@dataclass(frozen=True)
class Edges:
    """Where a window begins and ends: times in s, the counter in mJ or None if it did not step in time.

    The counter stepped to `opened_mj` as the work began, and to `closed_mj` and `later_mj` after it ended. `seen` holds
    reasons for invalidity that the samples do not show. If `failed`, a sensor failed and there are no energies.
    """

    start_s: float
    end_s: float
    opened_mj: int | None
    closed_mj: int | None = None
    closed_s: float = 0.0
    later_mj: int | None = None
    later_s: float = 0.0
    seen: tuple[str, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class Limits:
    """What makes a window invalid.

    The two sources differ by more than `tolerance` (relative), polls are more than `poll_gap_s` apart, the counter does
    not step for `counter_timeout_s`, or the window is shorter than `sensor_s`, the slowest sensor's averaging time.
    """

    tolerance: float
    poll_gap_s: float
    counter_timeout_s: float
    sensor_s: float


@dataclass(frozen=True)
class Verdict:
    """Energies of one window in J by source (None if a source gave none), and the reasons why it is invalid."""

    energy_j: float | None
    energy_instant_j: float | None
    energy_average_j: float | None
    tail_j: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Window(Verdict):
    """One window of work: its verdict and the readings behind it.

    `tail_j`, already subtracted from `energy_j`, is the energy between the end of the work and the counter's next step.
    `edge_error` is one counter step relative to the window: the possible error of unaligned edges.
    """

    start_s: float
    duration_s: float
    edge_error: float
    temperature_c: float | None
    sm_clock_mhz: float | None
    event_reasons: int
    edges: Edges = field(repr=False)
    samples: tuple[Sample, ...] = field(repr=False)


class Meter:
    """Measures windows of work with one sensor on one clock."""

    def __init__(self, sensor: Sensor, clock: Clock, limits: Limits, *, poll_s: float, step_s: float) -> None:
        """Poll every `poll_s`; a window outside `limits` is invalid. `step_s` is the counter's period.

        `started_s` is the clock's time at the start of the session.
        """
        self.sensor, self.clock, self.started_s = sensor, clock, clock.now()
        self._limits, self._poll_s, self._step_s = limits, poll_s, step_s
        self._power_limits_w: set[float] = set()  # power limits seen so far in the session

    @contextmanager
    def polling(self, check: Callable[[], None] | None = None) -> Iterator[list[Sample]]:
        """Poll the sensor in the background into a list while the context is open, and once more as it closes.

        There is no poll before the work, because an idle board shows its idle clock and idle reason. `check` is also
        called, less often. The first SensorError stops the polling but not the work, and is raised at the end.
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

        samples: list[Sample] = []
        sample = guarded(lambda: samples.append(self._sample()))
        checking = self.clock.every(_CHECK_S, guarded(check)) if check else nullcontext()
        with self.clock.every(self._poll_s, sample), checking:
            try:
                yield samples
            except Exception:
                self.sensor.energy_mj()  # raises if the board is lost, which then explains the failed work
                raise
        sample()
        if failures:
            raise failures[0]

    def window(self, work: Callable[[], None]) -> Window:
        """Measure `work`, which must return only when the GPU is done.

        The window opens on a counter step. The work does not end on one, so the GPU is left idle until the counter has
        stepped twice: the first step closes the window, and the second gives the idle power from the same counter at
        the same temperature and clocks. At that power the tail, from the end of the work to the first step, is
        subtracted. It lasts one step at most, so even a 20 % error in it is only about 2 J.

        If a sensor fails during the work, the window is invalid. Raises SensorError if it fails before the work, or if
        the work fails with it.
        """
        strangers: set[int] = set()

        def check() -> None:
            self._power_limits_w.add(self.sensor.power_limit_w())
            strangers.update(self.sensor.strangers())

        check()
        opened = self._next_step()
        start_s, offset_s = self.clock.now(), self.clock.offset_s()
        end_s: float | None = None
        samples: list[Sample] = []
        try:
            with self.polling(check) as samples:
                work()
                end_s = self.clock.now()  # not later: ending the polls joins a thread and calls NVML
            jump_s = self.clock.offset_s() - offset_s
            closed, closed_s = self._next_step(), self.clock.now()
            later, later_s = self._next_step(), self.clock.now()
            check()
        except SensorError as error:
            if end_s is None:
                raise
            edges = Edges(start_s, end_s, opened, seen=(error.reason, *self._seen(strangers)), failed=True)
        else:
            seen = ("clock_jumped",) * (abs(jump_s) > _CLOCK_JUMP_S) + self._seen(strangers)
            edges = Edges(start_s, end_s, opened, closed, closed_s, later, later_s, seen)
        return Window(
            **vars(judge(edges, samples, self._limits)),
            start_s=start_s,
            duration_s=end_s - start_s,
            edge_error=self._step_s / (end_s - start_s),
            temperature_c=fmean(s.temperature_c for s in samples) if samples else None,
            sm_clock_mhz=fmean(s.sm_clock_mhz for s in samples) if samples else None,
            event_reasons=_union(s.event_reasons for s in samples),
            edges=edges,
            samples=tuple(samples),
        )

    def _seen(self, strangers: set[int]) -> tuple[str, ...]:
        return ("other_process",) * bool(strangers) + ("power_limit_changed",) * (len(self._power_limits_w) > 1)

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
        """Wait for the counter to change; returns its new value in mJ, or None on timeout."""
        before, deadline_s = self.sensor.energy_mj(), self.clock.now() + self._limits.counter_timeout_s
        while self.clock.now() < deadline_s:
            self.clock.sleep(STEP_POLL_S)
            if (value := self.sensor.energy_mj()) != before:
                return value
        return None


def judge(edges: Edges, samples: Sequence[Sample], limits: Limits) -> Verdict:
    """The verdict on a window. It depends only on edges and samples, so it can be repeated at any time."""
    duration_s = edges.end_s - edges.start_s
    too_short = ["window_too_short"] * (duration_s < limits.sensor_s)
    if edges.failed:
        return Verdict(None, None, None, None, (edges.seen[0], *too_short, *edges.seen[1:]))
    energy_j = tail_j = None
    energy_instant_j = _integral(edges.start_s, edges.end_s, [(s.at_s, s.instant_w) for s in samples])
    energy_average_j = _integral(edges.start_s, edges.end_s, [(s.at_s, s.average_w) for s in samples])
    opened, closed, later = edges.opened_mj, edges.closed_mj, edges.later_mj
    reasons = []
    if opened is None or closed is None or later is None or _longest_hold_s(samples) > limits.counter_timeout_s:
        reasons.append("counter_stuck")
    elif not opened < closed < later or any(b.energy_mj < a.energy_mj for a, b in pairwise(samples)):
        reasons.append("counter_reset")
    else:
        idle_w = (later - closed) / 1000 / (edges.later_s - edges.closed_s)
        tail_j = idle_w * (edges.closed_s - edges.end_s)
        energy_j = (closed - opened) / 1000 - tail_j
    if energy_instant_j is None:
        reasons.append("instant_power_missing")
    elif energy_j is not None and abs(energy_j - energy_instant_j) > limits.tolerance * max(energy_j, energy_instant_j):
        reasons.append("counter_vs_integral")
    moments = [edges.start_s, *(s.at_s for s in samples)]
    reasons += ["polls_late"] * any(b - a > limits.poll_gap_s for a, b in pairwise(moments))
    return Verdict(energy_j, energy_instant_j, energy_average_j, tail_j, (*reasons, *too_short, *edges.seen))


def regime(event_reasons: int) -> list[str]:
    """Flags for what limited the clocks, from the bits of nvmlDeviceGetCurrentClocksEventReasons."""
    return ["power_capped"] * bool(event_reasons & _POWER_CAP) + ["throttled"] * bool(event_reasons & _THROTTLED)


def uncertainty(window: Window, gain: float) -> dict[str, float]:
    """Bounds on a window's error by cause, relative to its energy; empty if it has no energy.

    `gain`: as given, the same for all rows of a board. `counter_step`: one step of the counter. `tail`: all the
    joules subtracted after the work. `total`: the root sum of squares of the others.
    """
    if window.energy_j is None or window.tail_j is None:
        return {}
    tail = window.tail_j / max(window.energy_j, window.tail_j)
    parts = {"gain": gain, "counter_step": window.edge_error, "tail": tail}
    return {**parts, "total": hypot(*parts.values())}


def _integral(start_s: float, end_s: float, points: list[tuple[float, float | None]]) -> float | None:
    """Integral in J of a polled power in W from `start_s` to `end_s`; None if any poll returned none."""
    total = 0.0
    for (at_s, _), (next_s, power_w) in pairwise([(start_s, None), *points]):
        if power_w is None:
            return None
        # A reading covers the time before it. The last poll comes just after the end.
        total += power_w * (min(next_s, end_s) - min(at_s, end_s))
    return total


def _longest_hold_s(samples: Sequence[Sample]) -> float:
    """The longest time, in s, for which the polled counter did not change."""
    longest_s, since_s = 0.0, samples[0].at_s
    for before, sample in pairwise(samples):
        if sample.energy_mj != before.energy_mj:
            since_s = sample.at_s
        longest_s = max(longest_s, sample.at_s - since_s)
    return longest_s


def _union(bits: Iterable[int]) -> int:
    result = 0
    for value in bits:
        result |= value
    return result
