"""Reading a GPU's sensors over a window of work.

The energy counter is the primary source. It steps about every 100 ms, so a window starts on a step. Both power readings
are also polled and integrated, because a counter can be plainly wrong and only a second source reveals it.

Work on several boards has one window. Their counters step at different moments, so it starts on the step of the last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Protocol, TypeVar

from sweetspot.errors import SweetspotError
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.window import Edges, Limits, Readings, Sample, Window, window_of

T = TypeVar("T")

STEP_POLL_S = 0.002  # while waiting for a step; an NVML call takes about 1 ms
_CHECK_S = 1.0  # listing processes is slower than reading a sensor, and few processes run for less than this
# A host's clocks agree to 0.05 % (NTP's fastest slew), 10 ms in 20 s; more means a step or a suspended host.
_CLOCK_JUMP_S = 0.05


class SensorError(SweetspotError):
    """A board's sensor did not answer. `reason` is the reason code of the window; `board` counts the meter's boards."""

    reason = "sensor_failed"
    board = 0


class GpuLostError(SensorError):
    """The board has fallen off the bus, or needs a reset."""

    reason = "gpu_lost"


class Sensor(Protocol):
    """The readings of one board. A power that it does not report is None. Any call may raise SensorError."""

    name: str
    """The board's name where there are several: its index on this machine and its UUID, "INDEX:UUID"."""

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
        return ()

    def identity(self) -> dict[str, str | float]:
        """Board and driver for a row: gpu, gpu_uuid, driver_version, power_limit_w and more."""

    def machine(self) -> Mapping[str, Any]:
        """`identity` and everything else that can explain why two sessions differ."""
        return self.identity()

    def has_ours(self) -> bool:
        """Whether a process that we started, or a server, was on the board; True if the board does not tell."""
        return True

    def close(self) -> None:
        """Release the board."""
        return


class Meter:
    """Measures windows of work on one clock, with a sensor for each board."""

    def __init__(
        self, sensors: Sequence[Sensor], clock: Clock, limits: Limits, *, poll_s: float, step_s: float
    ) -> None:
        """Poll every `poll_s`; windows outside `limits` are invalid. `step_s`: the counter's period. Starts now."""
        self.clock, self.started_s, self._sensors = clock, clock.now(), sensors
        self._limits, self._poll_s, self._step_s = limits, poll_s, step_s
        # Of each board: the power limits seen so far in the session.
        self._power_limits_w: list[set[float]] = [set() for _ in sensors]

    def identity(self) -> dict[str, Any]:
        """The columns of a row that name boards and driver; see `_joined`."""
        return _joined([sensor.identity() for sensor in self._sensors])

    def machine(self) -> dict[str, Any]:
        """`identity` and everything else that can explain why two sessions differ."""
        return _joined([sensor.machine() for sensor in self._sensors])

    @contextmanager
    def polling(self, check: Callable[[], None] | None = None) -> Iterator[list[Sample]]:
        """Poll the sensors in the background into a list while the context is open, and once more as it closes.

        Each poll adds one sample of every board, in their order.
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
                samples.extend(self._samples())
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
                self._counters()  # raises if a board is lost, which then explains the failed work
                raise
        if failures:
            raise failures[0]
        samples.extend(self._patiently(self._samples))

    def window(self, work: Callable[[], None], also: Callable[[], tuple[str, ...]] = tuple) -> Window:
        """Measure `work`, which must return only when the GPU is done.

        `also` is asked afterwards for further reasons why the window is invalid.

        The window opens on a counter step. The work does not end on one, so the GPU is left idle until the counter has
        stepped twice: the first step closes the window, and the second gives the idle power from the same counter at
        the same temperature and clocks. At that power the tail, from the end of the work to the first step, is
        subtracted. It lasts one step at most, so even a 20 % error in it is only about 2 J. Of several boards, all but
        the last have stepped a little before the window opens; that time is subtracted in the same way.

        If a sensor fails during the work, the window is invalid. Raises SensorError if it fails before the work, or if
        the work fails with it.
        """
        boards = len(self._sensors)
        shared, unchecked = set[int](), set[int]()  # boards that others use, and that list no processes

        def check() -> None:
            now = self._of_each(lambda sensor: (sensor.power_limit_w(), sensor.strangers()))
            for index, (limit_w, strangers) in enumerate(now):
                self._power_limits_w[index].add(limit_w)
                shared.update([index] if strangers else ())
            unchecked.clear()
            unchecked.update(index for index, (_, strangers) in enumerate(now) if strangers is None)

        self._patiently(check)
        opened = self._next_steps()
        start_s, offset_s = self.clock.now(), self.clock.offset_s()
        end_s: float | None = None
        samples: list[Sample] = []
        last: tuple[str, ...] = ()
        try:
            with self.polling(check) as samples:
                work()
                end_s = self.clock.now()  # not later: ending the polls joins a thread and calls NVML
            jump_s = self.clock.offset_s() - offset_s
            closed, later = self._next_steps(), self._next_steps()
            self._patiently(check)
        except SensorError as error:
            if end_s is None:
                raise
            first = [(error.reason,) * (index == error.board) for index in range(boards)]
            closed, later, failed = [(None, 0.0)] * boards, [(None, 0.0)] * boards, True
        else:
            first, last, failed = [("clock_jumped",) * (abs(jump_s) > _CLOCK_JUMP_S)] * boards, also(), False
        names = [sensor.name for sensor in self._sensors] if boards > 1 else [""]
        readings = []
        for index, (counter, at_s) in enumerate(opened):
            changed = len(self._power_limits_w[index]) > 1
            seen = ("other_process",) * (index in shared) + ("power_limit_changed",) * changed
            seen = (*first[index], *seen, *last)
            edges = Edges(start_s, end_s, counter, *closed[index], *later[index], seen, failed, at_s)
            readings.append(Readings(edges, tuple(samples[index::boards]), names[index]))
        return window_of(readings, self._limits, self._step_s, {names[index] for index in unchecked})

    def _samples(self) -> list[Sample]:
        for known, limit_w in zip(
            self._power_limits_w, self._of_each(lambda s: _if_known(s.power_limit_w)), strict=True
        ):
            known.update(() if limit_w is None else (limit_w,))  # it may be changed for less than `_CHECK_S`
        return self._of_each(
            lambda sensor: Sample(
                self.clock.now(),
                sensor.energy_mj(),
                sensor.power_instant_w(),
                sensor.power_average_w(),
                _if_known(sensor.temperature_c),
                _if_known(sensor.sm_clock_mhz),
                _if_known(sensor.event_reasons),
            )
        )

    def _counters(self) -> list[tuple[int, float]]:
        """The counter of each board in mJ, and when it was read: one right after another."""
        return self._of_each(lambda sensor: (sensor.energy_mj(), self.clock.now()))

    def _of_each(self, read: Callable[[Sensor], T]) -> list[T]:
        """What `read` finds for each board; a SensorError says whose it is."""
        found: list[T] = []
        for sensor in self._sensors:
            try:
                found.append(read(sensor))
            except SensorError as error:
                error.board = len(found)
                raise
        return found

    def _next_steps(self) -> list[tuple[int | None, float]]:
        """Wait until every counter has changed: each one's new value in mJ, or None on timeout, and when it changed."""
        before = self._patiently(self._counters)
        steps: list[tuple[int | None, float]] = [(None, at_s) for _, at_s in before]
        deadline_s = self.clock.now() + self._limits.counter_timeout_s
        while self.clock.now() < deadline_s and any(value is None for value, _ in steps):
            self.clock.sleep(STEP_POLL_S)
            for index, (value, at_s) in enumerate(self._patiently(self._counters)):
                if steps[index][0] is None and value != before[index][0]:
                    steps[index] = value, at_s
        return steps

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


def _joined(boards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What boards have in common; where they differ, the value of each, joined by ";". Power limits are added up."""
    first, limits_w = boards[0], [board["power_limit_w"] for board in boards]
    differ = {name for name, value in first.items() if any(board[name] != value for board in boards)}
    joined = {name: ";".join(str(board[name]) for board in boards) for name in first if name in differ}
    return {**first, **joined, "power_limit_w": sum(limits_w)}
