"""What a plan of requests costs in joules and seconds, by a fitted predictor. Standard library only."""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.predict import predictor as predictors
from sweetspot.predict.prediction import Interval, Prediction

_BEYOND = 4  # batches up to this many times the largest measured one are tried for a request rate
_SLOW = 0.95  # the latency of a mix of lengths is that of the request slower than this share of them


@dataclass(frozen=True)
class Ask:
    """One request to the model, or, for a `summary`, to the summariser."""

    input_tokens: int
    output_tokens: int
    summary: bool = False


Plan = Sequence[tuple[float, tuple[Ask, ...]]]
"""For each kind of request of a workload its share (they add to 1) and what is asked for it, one after the other."""

Running = tuple[tuple[int, float], ...]
"""Batches and their weights (they add to 1): one batch, or the two whole ones beside a number in flight."""

_Parts = dict[tuple[Ask, int], tuple[float, Prediction]]


@dataclass(frozen=True)
class Cost:
    """What one request of a plan costs on average.

    `latency_s` runs from the start of a request to the end of its reply, None where the predictor knows no durations.
    `in_flight` is the batch asked for, or what a request rate keeps running. `idle_s` is how long the GPU idles per
    request at that rate, with no joules of it in `energy_j`; None without a rate.
    """

    energy_j: Interval
    latency_s: float | None
    in_flight: float
    summary_in_flight: float
    running: Running
    idle_s: float | None
    parts: _Parts

    @property
    def reply_tokens(self) -> float:
        """Mean output tokens of a request, without summaries."""
        return sum(weight * ask.output_tokens for (ask, _), (weight, _) in self.parts.items() if not ask.summary)

    @property
    def summary_j(self) -> float:
        """Joules of the summaries alone."""
        return sum(weight * part.energy_per_request_j for (ask, _), (weight, part) in self.parts.items() if ask.summary)


@dataclass(frozen=True)
class Saving:
    """What one cost saves over another: joules per request and percent, negative where it costs more."""

    energy_j: Interval
    percent: Interval


class Costs:
    """Costs at a fixed batch, or at a request rate from which the batch follows.

    `group` is the predictor's group that answers. The laws know batches of equal requests only: each kind of request
    is taken to run in a batch of its like. A summariser other than the model runs apart, on the same kind of GPU.
    Raises SweetspotError where the predictor cannot answer.
    """

    def __init__(
        self,
        predictor: Mapping[str, Any],
        model: str,
        place: Ask,
        batch: int | None = None,
        rate_per_s: float | None = None,
        summariser: str | None = None,
        **choice: str | None,
    ) -> None:
        """`place`: typical lengths, with which the group is looked up; `choice`: gpu, engine, precision."""
        first = predictors.predict(predictor, model, place.input_tokens, place.output_tokens, batch, **choice)
        self._predictor, self._batch, self.rate_per_s = predictor, batch, rate_per_s
        self._model = {"model": first.model, **self._where(first)}
        self.group = next(
            group for group in predictor["groups"] if all(group[name] == value for name, value in self._model.items())
        )
        self._summariser = self._model
        if summariser is not None and summariser.casefold() != first.model.casefold():
            where = {"gpu": first.gpu, "engine": first.engine}
            same = [g for g in predictor["groups"] if g["model"].casefold() == summariser.casefold()]
            if any(g["precision"] == first.precision for g in same):
                where["precision"] = first.precision
            found = predictors.predict(predictor, summariser, place.input_tokens, place.output_tokens, batch, **where)
            self._summariser = {"model": found.model, **self._where(found)}
        if rate_per_s is not None and first.duration_s is None:
            raise SweetspotError(
                f"{first.model}: the predictor knows no durations, so no batch follows from --request-rate; "
                "give --batch, or fit a table with duration_s"
            )
        self.at = functools.cache(self._at)

    @staticmethod
    def _where(prediction: Prediction) -> dict[str, str]:
        return {name: getattr(prediction, name) for name in ("gpu", "engine", "precision")}

    @property
    def summariser(self) -> str:
        """Name of the model that makes summaries."""
        return self._summariser["model"]

    @property
    def apart(self) -> bool:
        """Whether summaries are made by another model."""
        return self._summariser is not self._model

    def _at(self, ask: Ask, batch: int) -> Prediction:
        who = self._summariser if ask.summary else self._model
        model, where = who["model"], {name: who[name] for name in ("gpu", "engine", "precision")}
        return predictors.predict(self._predictor, model, ask.input_tokens, ask.output_tokens, batch=batch, **where)

    def energy_j(self, asks: Sequence[Ask], running: Running) -> float:
        """Joules of requests at a batch, nothing else considered."""
        return sum(weight * self.at(ask, batch).energy_per_request_j for ask in asks for batch, weight in running)

    def cost(self, plan: Plan, batch: int | None = None) -> Cost:
        """Cost of a plan, at another `batch` where one is given.

        Under a request rate another batch means that requests wait until so many have come. Raises SweetspotError
        where the GPU cannot keep up with the rate.
        """
        idle_s, waiting_s = None, 0.0
        if batch is not None or self.rate_per_s is None:
            chosen = float(batch or self._batch or 1)
            in_flight = {False: chosen, True: chosen}
            if batch is not None and self.rate_per_s is not None:
                idle_s = self._idle_s(plan, batch)
                waiting_s = (batch - 1) / self.rate_per_s
        elif self.apart:
            in_flight = {pool: self._in_flight(plan, pool, self.rate_per_s) for pool in (False, True)}
        else:
            in_flight = dict.fromkeys((False, True), self._in_flight(plan, None, self.rate_per_s))
        if self.rate_per_s is not None and idle_s is None:
            idle_s = max(0.0, 1 - in_flight[False]) / self.rate_per_s
        running = {pool: _running(number) for pool, number in in_flight.items()}
        weights: defaultdict[tuple[Ask, int], float] = defaultdict(float)
        for share, asks in plan:
            for ask in asks:
                for size, weight in running[ask.summary]:
                    weights[ask, size] += share * weight
        parts = {key: (weight, self.at(*key)) for key, weight in weights.items()}
        return Cost(
            energy_j=_level(parts),
            latency_s=_slow([(self._latency_s(asks, in_flight), share) for share, asks in plan], waiting_s),
            in_flight=in_flight[False],
            summary_in_flight=in_flight[True],
            running=running[False],
            idle_s=idle_s,
            parts=parts,
        )

    def _latency_s(self, asks: Sequence[Ask], in_flight: Mapping[bool, float]) -> float | None:
        """Seconds for all asks in turn, linear between whole batches, or None if not known."""
        total = 0.0
        for ask in asks:
            number = max(1.0, in_flight[ask.summary])
            below = int(number)
            for batch, weight in ((below, below + 1 - number), (below + 1, number - below)):
                if weight > 0:
                    seconds = self._seconds([ask], batch)
                    if seconds is None:
                        return None
                    total += weight * seconds
        return total

    def _seconds(self, asks: Sequence[Ask], batch: int) -> float | None:
        total = 0.0
        for ask in asks:
            seconds = self.at(ask, batch).duration_s
            if seconds is None:
                return None
            total += seconds
        return total

    def _busy_s(self, plan: Plan, pool: bool | None, batch: int) -> float:
        """Mean seconds that a request of the plan spends at one model (`pool` None: there is only one)."""
        total = 0.0
        for share, asks in plan:
            seconds = self._seconds([ask for ask in asks if pool in (None, ask.summary)], batch)
            if seconds is None:
                raise SweetspotError(f"no duration is known for batch {batch}; give --batch")
            total += share * seconds
        return total

    def _in_flight(self, plan: Plan, pool: bool | None, rate_per_s: float) -> float:
        """Requests in flight by Little's law, in flight = rate × seconds at that batch, whose seconds grow with it.

        The least batch that keeps up is found by bisection, then interpolated between it and the one below.
        """
        if self._busy_s(plan, pool, 1) == 0:
            return 0.0  # nothing to summarise

        def behind(batch: int) -> float:
            return rate_per_s * self._busy_s(plan, pool, batch) - batch

        try:
            low, high, most = 0, 1, _BEYOND * max(self.group["batches"])
            while behind(high) > 0:
                if high >= most:
                    raise SweetspotError(self._too_fast(plan, pool, rate_per_s))
                low, high = high, min(2 * high, most)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if behind(middle) > 0 else (low, middle)
        except SweetspotError as error:
            if "nothing fitted for batch" in str(error):
                raise SweetspotError(f"--request-rate needs a law for every batch, or give --batch: {error}") from None
            raise
        if low == 0:
            return rate_per_s * self._busy_s(plan, pool, 1)
        above, below = behind(low), -behind(high)
        return low + above / (above + below)

    def _too_fast(self, plan: Plan, pool: bool | None, rate_per_s: float) -> str:
        pace = max(batch / self._busy_s(plan, pool, batch) for batch in self.group["batches"])
        return (
            f"the GPU cannot keep up with {rate_per_s:g} requests/s: at the measured batches it finishes at most "
            f"{pace:.3g} requests/s; spread the load over {math.ceil(rate_per_s / pace)} GPUs or more and give the "
            "rate of one"
        )

    def _idle_s(self, plan: Plan, batch: int) -> float:
        """Idle seconds per request where batches start only when they are full."""
        assert self.rate_per_s is not None
        busy_s = self._busy_s(plan, None, batch) / batch
        if busy_s * self.rate_per_s > 1:
            raise SweetspotError(
                f"the GPU cannot keep up with {self.rate_per_s:g} requests/s: it finishes {1 / busy_s:.3g} requests/s"
            )
        return 1 / self.rate_per_s - busy_s


def _running(in_flight: float) -> Running:
    """The whole batches beside a number in flight, weighted so that what a batch shares, as 1/B, is exact."""
    below = int(max(1.0, in_flight))
    if in_flight <= below:
        return ((below, 1.0),)
    weight = below * ((below + 1) / in_flight - 1)
    return ((below, weight), (below + 1, 1 - weight))


def saving(now: Cost, then: Cost) -> Saving:
    """What `then` saves.

    What both plans ask alike cancels. Errors within a sum are taken as common, so half widths add; errors of the two
    sides of the difference as independent, so they add in squares; the sensors' gain is one, so it scales the joules
    and cancels in percent.
    """
    before = {key: (weight - then.parts.get(key, (0.0, None))[0], part) for key, (weight, part) in now.parts.items()}
    after = {key: (weight - now.parts.get(key, (0.0, None))[0], part) for key, (weight, part) in then.parts.items()}
    own_before, own_after = _own(before), _own(after)
    shared = _own(now.parts) - own_before
    saved, ratio = now.energy_j.value - then.energy_j.value, then.energy_j.value / now.energy_j.value
    half = math.hypot(own_before, own_after, _gain(now.parts) - _gain(then.parts))
    relative = math.hypot(own_before * ratio, own_after, shared * (1 - ratio)) / now.energy_j.value
    return Saving(
        Interval(saved, saved - half, saved + half),
        Interval(100 * (1 - ratio), 100 * (1 - ratio - relative), 100 * (1 - ratio + relative)),
    )


def _level(parts: _Parts) -> Interval:
    value = sum(weight * part.energy_per_request_j for weight, part in parts.values())
    half = math.hypot(_own(parts), _gain(parts))
    return Interval(value, max(value - half, 0.0), value + half)


def _own(parts: _Parts) -> float:
    """Sum of half widths in joules, without the sensors' gain; parts of negative weight belong to the other side."""
    total = 0.0
    for weight, part in parts.values():
        half = part.energy_per_request_high_j - part.energy_per_request_j
        total += max(weight, 0.0) * math.sqrt(max(half**2 - _gain_of(part) ** 2, 0.0))
    return total


def _gain(parts: _Parts) -> float:
    return sum(weight * _gain_of(part) for weight, part in parts.values())


def _gain_of(part: Prediction) -> float:
    """Half width in joules that the sensors' gain has in a prediction's interval."""
    return part.interval_parts.get("sensor_gain", 0.0) * part.energy_per_request_j


def _slow(latencies: Sequence[tuple[float | None, float]], waiting_s: float) -> float | None:
    known = sorted((seconds, share) for seconds, share in latencies if seconds is not None)
    if len(known) < len(latencies):
        return None
    reached = 0.0
    for seconds, share in known:
        reached += share
        if reached >= _SLOW - 1e-9:
            return seconds + waiting_s
    return known[-1][0] + waiting_s
