"""Reading a GPU's sensors over a window of work.

The energy counter is the primary source. It steps about every 100 ms, so a window starts on a step. Both power readings
are also polled and integrated, because a counter can be plainly wrong and only a second source reveals it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Protocol, TypeVar

from sweetspot.errors import SweetspotError
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.window import Edges, Limits, Sample, Window, judge, mean_of_known, union

T = TypeVar("T")

STEP_POLL_S = 0.002  # while waiting for a step; an NVML call takes about 1 ms
_CHECK_S = 1.0  # listing processes is slower than reading a sensor, and few processes run for less than this
# A host's clocks agree to 0.05 % (NTP's fastest slew), 10 ms in 20 s; more means a step or a suspended host.
_CLOCK_JUMP_S = 0.05


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

    def memory_bytes(self) -> int:
        """The board's memory."""

    def strangers(self) -> tuple[int, ...] | None:
        """Ids of compute processes on the board that are not ours; None if the board lists no processes."""

    def identity(self) -> dict[str, str | float]:
        """Board and driver for a row: gpu, gpu_uuid, driver_version, power_limit_w and more."""

    def machine(self) -> Mapping[str, Any]:
        """`identity` and everything else that can explain why two sessions differ."""

    def environment(self) -> Mapping[str, str]:
        """Environment variables that restrict a process to this board; empty if it can use no other anyway."""

    def close(self) -> None:
        """Release the board."""


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
        called, less often. A poll that the driver refuses is passed over, but not for longer than polls may be apart:
        then, or if the board is lost, polling stops but the work goes on, and the SensorError is raised at the end.
        """
        failures: list[SensorError] = []
        samples: list[Sample] = []
        start_s = self.clock.now()

        def sample() -> None:
            if failures:
                return
            try:
                samples.append(self._sample())
            except GpuLostError as error:
                failures.append(error)
            except SensorError as error:
                last_s = samples[-1].at_s if samples else start_s
                if self.clock.now() - last_s > self._limits.poll_gap_s:
                    failures.append(error)

        def check_quietly() -> None:
            with suppress(SensorError):  # it is checked again after the work
                if check:
                    check()

        checking = self.clock.every(_CHECK_S, check_quietly) if check else nullcontext()
        with self.clock.every(self._poll_s, sample), checking:
            try:
                yield samples
            except Exception:
                self.sensor.energy_mj()  # raises if the board is lost, which then explains the failed work
                raise
        if failures:
            raise failures[0]
        samples.append(self._patiently(self._sample))

    def window(self, work: Callable[[], None], also: Callable[[], tuple[str, ...]] = tuple) -> Window:
        """Measure `work`, which must return only when the GPU is done.

        `also` is asked afterwards for further reasons why the window is invalid.

        The window opens on a counter step. The work does not end on one, so the GPU is left idle until the counter has
        stepped twice: the first step closes the window, and the second gives the idle power from the same counter at
        the same temperature and clocks. At that power the tail, from the end of the work to the first step, is
        subtracted. It lasts one step at most, so even a 20 % error in it is only about 2 J.

        If a sensor fails during the work, the window is invalid. Raises SensorError if it fails before the work, or if
        the work fails with it.
        """
        strangers: set[int] = set()
        checked = True

        def check() -> None:
            nonlocal checked
            self._power_limits_w.add(self.sensor.power_limit_w())
            found = self.sensor.strangers()
            checked = found is not None
            strangers.update(found or ())

        self._patiently(check)
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
            self._patiently(check)
        except SensorError as error:
            if end_s is None:
                raise
            edges = Edges(start_s, end_s, opened, seen=(error.reason, *self._seen(strangers)), failed=True)
        else:
            seen = ("clock_jumped",) * (abs(jump_s) > _CLOCK_JUMP_S) + self._seen(strangers) + also()
            edges = Edges(start_s, end_s, opened, closed, closed_s, later, later_s, seen)
        return Window(
            **vars(judge(edges, samples, self._limits)),
            start_s=start_s,
            duration_s=end_s - start_s,
            edge_error=self._step_s / (end_s - start_s),
            temperature_c=mean_of_known(s.temperature_c for s in samples),
            sm_clock_mhz=mean_of_known(s.sm_clock_mhz for s in samples),
            event_reasons=union(s.event_reasons or 0 for s in samples),
            processes_checked=checked,
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
            _if_known(sensor.temperature_c),
            _if_known(sensor.sm_clock_mhz),
            _if_known(sensor.event_reasons),
        )

    def _next_step(self) -> int | None:
        """Wait for the counter to change; returns its new value in mJ, or None on timeout."""
        before = self._patiently(self.sensor.energy_mj)
        deadline_s = self.clock.now() + self._limits.counter_timeout_s
        while self.clock.now() < deadline_s:
            self.clock.sleep(STEP_POLL_S)
            if (value := self._patiently(self.sensor.energy_mj)) != before:
                return value
        return None

    def _patiently(self, read: Callable[[], T]) -> T:
        """Read, and again if the driver refuses, for as long as polls may be apart. Raises SensorError after that."""
        deadline_s = self.clock.now() + self._limits.poll_gap_s
        while True:
            try:
                return read()
            except GpuLostError:
                raise
            except SensorError:
                if self.clock.now() >= deadline_s:
                    raise
            self.clock.sleep(STEP_POLL_S)


def _if_known(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except GpuLostError:
        raise
    except SensorError:
        return None
