"""Real and virtual time. Sensors are polled by a callback of the clock, so the same code runs without a GPU."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """The machine's monotonic clock, in seconds since some fixed moment; `every` calls back from a separate thread."""

    def now(self) -> float:
        """Now, in seconds."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""
        time.sleep(duration_s)

    def offset_s(self) -> float:
        """The time of day minus this clock, in seconds: constant unless a clock is set or the host is suspended."""
        return time.time() - time.monotonic()

    @contextmanager
    def every(self, period_s: float, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` every `period_s` seconds; an exception in it is re-raised when the context ends."""
        stop = threading.Event()
        failure: list[BaseException] = []

        def loop() -> None:
            due = time.monotonic() + period_s
            while not stop.wait(max(0.0, due - time.monotonic())):
                try:
                    callback()
                except BaseException as error:
                    failure.append(error)
                    return
                due = max(due + period_s, time.monotonic())

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failure:
            raise failure[0]


class VirtualClock(Clock):
    """Time that passes only in `sleep`; callbacks fire exactly on time and in order."""

    def __init__(self) -> None:
        """Start at 0 s."""
        self._now = 0.0
        self._timers: list[tuple[list[float], float, Callable[[], None]]] = []

    def now(self) -> float:
        """Now, in seconds."""
        return self._now

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass and fire the callbacks that fall due."""
        end = self._now + duration_s
        while self._timers:
            due, period_s, callback = min(self._timers, key=lambda timer: timer[0][0])
            if due[0] > end:
                break
            self._now = due[0]
            due[0] += period_s
            callback()
        self._now = end

    def offset_s(self) -> float:
        """Always 0: virtual time is never set."""
        return 0.0

    @contextmanager
    def every(self, period_s: float, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` every `period_s` seconds of virtual time."""
        timer = ([self._now + period_s], period_s, callback)
        self._timers.append(timer)
        try:
            yield
        finally:
            self._timers.remove(timer)
