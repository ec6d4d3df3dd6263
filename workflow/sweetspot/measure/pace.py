"""How much time is left, and how long a visit to a cell will take, estimated from earlier visits."""

from collections.abc import Iterable, Mapping, Sequence
from math import log
from statistics import fmean, median
from typing import Any

from sweetspot.engines import BatchRun, Engine
from sweetspot.measure.protocol import Protocol, planned_repetitions
from sweetspot.sensors.clock import Clock

_STEPS_S = 0.5  # waiting for the counter's steps around a window


class OutOfTime(Exception):
    """Time is up in the middle of a visit."""


class Stopwatch:
    """A time budget of `seconds`. Sessions use their own clock, so a simulated hour counts as an hour."""

    def __init__(self, seconds: float) -> None:
        """Start now, by the machine's clock."""
        self._seconds = seconds
        self._passed_s = 0.0
        self._clock: Clock = Clock()
        self._since_s = self._clock.now()

    def use(self, clock: Clock) -> None:
        """Measure time by `clock` from now on."""
        self._passed_s = self.passed_s()
        self._clock, self._since_s = clock, clock.now()

    def skip(self, seconds: float) -> None:
        """Count time that passed in another process."""
        self._passed_s += seconds

    def passed_s(self) -> float:
        """Seconds since the start."""
        return self._passed_s + self._clock.now() - self._since_s

    def left_s(self) -> float:
        """Seconds left; negative once time is up."""
        return self._seconds - self.passed_s()


def timed(engine: Engine, watch: Stopwatch) -> Engine:
    """The engine, which from now on raises OutOfTime instead of starting a run when time is up."""
    run = engine.run

    def in_time(input_tokens: int, output_tokens: int) -> BatchRun:
        if watch.left_s() <= 0:
            raise OutOfTime
        return run(input_tokens, output_tokens)

    engine.run = in_time  # type: ignore[method-assign]
    return engine


def load_s(records: Iterable[Mapping[str, Any]]) -> float:
    """How long loading an engine and measuring idle power will take, in s; 0 if unknown."""
    known = [record["load_s"] for record in records if "load_s" in record]
    return median(known) if known else 0.0


def visit_s(
    records: Sequence[Mapping[str, Any]], cell: Mapping[str, Any], visit: int | None, protocol: Protocol
) -> float:
    """How long a visit to `cell` will take in s, estimated from the visits in `records`; without any, a lower bound.

    The duration of a batch run is that of the nearest cell, scaled by tokens; the protocol gives the number of runs.
    If earlier visits took longer than planned, for example to warm up, the estimate grows by the same factor.
    """
    visits = [record for record in records if any(row["duration_s"] for row in record.get("rows", ()))]
    beyond = [
        record["took_s"] / _planned_s(_run_s(record), len(record["rows"]), protocol)
        for record in visits
        if record["took_s"]
    ]
    run_s = 0.0
    if visits:
        nearest = min(visits, key=lambda record: _distance(record, cell))
        run_s = _run_s(nearest) * max(
            1.0,
            cell["output_tokens"] / nearest["output_tokens"],
            (cell["input_tokens"] + cell["output_tokens"]) / (nearest["input_tokens"] + nearest["output_tokens"]),
        )
    return planned_visit_s(run_s, visit, protocol) * max(1.0, fmean(beyond) if beyond else 1.0)


def planned_visit_s(run_s: float, visit: int | None, protocol: Protocol) -> float:
    """How long a visit takes in s if a batch run takes `run_s` and nothing has to be repeated."""
    repetitions = 1
    if visit is not None:
        repetitions = planned_repetitions(visit, protocol) - (planned_repetitions(visit - 1, protocol) if visit else 0)
    return _planned_s(run_s, repetitions, protocol)


def _run_s(record: Mapping[str, Any]) -> float:
    return fmean(row["duration_s"] for row in record["rows"] if row["duration_s"])


def _planned_s(run_s: float, repetitions: int, protocol: Protocol) -> float:
    """Time of a visit in s if a batch run takes `run_s` and nothing has to be repeated."""
    window_s = max(protocol.window_s, min(protocol.window_runs * run_s, protocol.window_max_s)) + run_s / 2
    warmup_s = max(protocol.warmup_s, protocol.warmup_runs * run_s, 2 * run_s) + run_s
    return warmup_s + repetitions * (window_s + _STEPS_S)


def _distance(record: Mapping[str, Any], cell: Mapping[str, Any]) -> float:
    return sum(abs(log(record[name] / cell[name])) for name in ("input_tokens", "output_tokens"))
