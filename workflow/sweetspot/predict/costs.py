"""What a plan of requests costs in joules and seconds, from a fitted predictor. Standard library only."""

import bisect
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.predict import predictor as predictors
from sweetspot.predict.prediction import Interval, Prediction
from sweetspot.vocabulary import SELECTORS

_BEYOND = 4  # for a request rate, batches up to this many times the largest measured one are tried
_SLOW = 0.95  # the latency of a mix of lengths is this quantile of its requests' latencies


@dataclass(frozen=True)
class Ask:
    """One request to the model, or, for a `summary`, to the summariser."""

    input_tokens: int
    output_tokens: int
    summary: bool = False


Plan = Sequence[tuple[float, tuple[Ask, ...]]]
"""For each kind of request in a workload: its share (shares add to 1) and its asks, run one after another."""

_Parts = dict[tuple[Ask, float], tuple[float, Prediction]]


@dataclass(frozen=True)
class Cost:
    """What one request of a plan costs on average.

    `latency_s` runs from the start of a request to the end of its reply; None if the predictor has no durations.
    `ttft_s` is the time to the first token and `tpot_s` the time per further one, of the 95th of 100 requests; None if
    the predictor has no latencies.
    `in_flight` is the given batch, or the number of requests that a request rate keeps running. `idle_s` is how long
    the GPU idles per request at that rate (`energy_j` excludes its idle energy); None without a rate.
    """

    energy_j: Interval
    latency_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    in_flight: float
    summary_in_flight: float
    idle_s: float | None
    parts: _Parts

    @property
    def reply_tokens(self) -> float:
        """Mean output tokens of a request, without summaries."""
        return sum(weight * ask.output_tokens for (ask, _), (weight, _) in self.parts.items() if not ask.summary)


@dataclass(frozen=True)
class Saving:
    """What one cost saves over another: joules per request and percent, negative if it costs more."""

    energy_j: Interval
    percent: Interval


class Costs:
    """Costs at a fixed batch, or at a request rate that determines the batch.

    `group` is the predictor's group for the model. The laws describe only batches of equal requests, so each
    request is assumed to run in a batch of its own kind. A summariser other than the model runs on a separate GPU of
    the same kind. Raises SweetspotError if the predictor cannot answer.
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
        """`place`: typical lengths, used to look up the group; `choice`: of vocabulary.SELECTORS."""
        first = predictors.predict(predictor, model, place.input_tokens, place.output_tokens, batch, **choice)
        self._predictor, self._batch, self.rate_per_s = predictor, batch, rate_per_s
        self._model = _group_of(first)
        self.group = next(
            group for group in predictor["groups"] if all(group[name] == value for name, value in self._model.items())
        )
        self._summariser = self._model
        if summariser is not None and summariser.casefold() != first.model.casefold():
            where = {"gpu": first.gpu, "engine": first.engine}
            same = [g for g in predictor["groups"] if g["model"].casefold() == summariser.casefold()]
            for name in ("precision", "parallelism"):
                if any(g[name] == getattr(first, name) for g in same):
                    where[name] = getattr(first, name)
            found = predictors.predict(predictor, summariser, place.input_tokens, place.output_tokens, batch, **where)
            self._summariser = _group_of(found)
        if rate_per_s is not None and first.duration_s is None:
            raise SweetspotError(
                f"{first.model}: the predictor has no durations, so --request-rate cannot determine the "
                "batch; give --batch, or fit a table with duration_s"
            )
        self.at = functools.cache(self._at)

    @property
    def summariser(self) -> str:
        """Name of the model that makes summaries."""
        return self._summariser["model"]

    @property
    def apart(self) -> bool:
        """Whether summaries are made by another model."""
        return self._summariser is not self._model

    def _at(self, ask: Ask, in_flight: float) -> Prediction:
        who = self._summariser if ask.summary else self._model
        model, where = who["model"], {name: who[name] for name in SELECTORS}
        batch = max(1.0, in_flight)
        return predictors.predict(self._predictor, model, ask.input_tokens, ask.output_tokens, batch=batch, **where)

    def energy_j(self, asks: Iterable[Ask], in_flight: float) -> float:
        """Joules of requests that each run with so many in flight."""
        return sum(self.at(ask, in_flight).energy_per_request_j for ask in asks)

    def cost(self, plan: Plan, batch: int | None = None) -> Cost:
        """The cost of a plan, at another `batch` if one is given.

        With a request rate, another batch means that requests wait until the batch is full. Raises SweetspotError if
        the GPU cannot keep up with the rate.
        """
        idle_s, waiting_s, rate_per_s = None, 0.0, self.rate_per_s
        if rate_per_s is None or batch is not None:
            own = summaries = float(batch or self._batch or 1)
            if rate_per_s is not None:
                idle_s, waiting_s = self._idle_s(plan, own, rate_per_s), (own - 1) / rate_per_s
        else:
            own = self._in_flight(plan, False if self.apart else None, rate_per_s)
            summaries = self._in_flight(plan, True, rate_per_s) if self.apart else own
            idle_s = max(0.0, 1 - own) / rate_per_s
        weights: defaultdict[tuple[Ask, float], float] = defaultdict(float)
        latencies, ttfts, tpots = [], [], []
        for share, asks in plan:
            places = [(ask, max(1.0, summaries if ask.summary else own)) for ask in asks]
            for place in places:
                weights[place] += share
            found = [self.at(*place) for place in places]
            first = next(index for index, ask in enumerate(asks) if not ask.summary)
            before_s = sum(_seconds(part, "duration_s") for part in found[:first])
            latencies.append((sum(_seconds(part, "duration_s") for part in found), share))
            ttfts.append((before_s + _seconds(found[first], "ttft_p95_s"), share))
            if each := [_seconds(part, "tpot_p95_s") for part in found[first:] if part.output_tokens > 1]:
                tpots.append((max(each), share))
        parts = {place: (weight, self.at(*place)) for place, weight in weights.items()}
        return Cost(
            energy_j=_level(parts),
            latency_s=_slow(latencies, waiting_s),
            ttft_s=_slow(ttfts, waiting_s),
            tpot_s=_slow(tpots, 0.0),
            in_flight=own,
            summary_in_flight=summaries,
            idle_s=idle_s,
            parts=parts,
        )

    def _busy_s(self, plan: Plan, pool: bool | None, batch: float) -> float:
        """Mean seconds of a request at the summariser (`pool` True), at the model (False) or at both (None)."""
        asked = [(share, ask) for share, asks in plan for ask in asks if pool in (None, ask.summary)]
        total = sum(share * _seconds(self.at(ask, batch), "duration_s") for share, ask in asked)
        if math.isinf(total):
            raise SweetspotError(f"the duration at batch {batch:g} is unknown; give --batch")
        return total

    def _in_flight(self, plan: Plan, pool: bool | None, rate_per_s: float) -> float:
        """Requests in flight by Little's law: in flight = rate × seconds of a request, which grow with the batch.

        Bisection finds the smallest whole batch that keeps up; the result lies between it and the one below, where both
        sides of the law are taken as linear. A mix of lengths is thus only computed at few batches.
        """

        def behind(batch: int) -> float:
            return rate_per_s * self._busy_s(plan, pool, batch) - batch

        if (alone := 1 + behind(1)) <= 1:
            return alone
        try:
            low, high, most = 1, 2, _BEYOND * max(self.group["batches"])
            while behind(high) > 0:
                if high >= most:
                    raise SweetspotError(self._too_fast(plan, pool, rate_per_s))
                low, high = high, min(2 * high, most)
            low += bisect.bisect_left(range(low + 1, high), True, key=lambda batch: behind(batch) <= 0)
            above, below = behind(low), -behind(low + 1)
        except SweetspotError as error:
            if "nothing fitted for batch" in str(error):
                raise SweetspotError(f"--request-rate needs a law for every batch; or give --batch: {error}") from None
            raise
        return low + above / (above + below)

    def _too_fast(self, plan: Plan, pool: bool | None, rate_per_s: float) -> str:
        pace = max(batch / self._busy_s(plan, pool, batch) for batch in self.group["batches"])
        return (
            f"the GPU cannot keep up with {rate_per_s:g} requests/s: at the measured batches it finishes at most "
            f"{pace:.3g} requests/s; spread the load over {math.ceil(rate_per_s / pace)} GPUs or more and give the "
            "rate per GPU"
        )

    def _idle_s(self, plan: Plan, batch: float, rate_per_s: float) -> float:
        """Idle seconds per request if batches start only when they are full."""
        busy_s = self._busy_s(plan, None, batch) / batch
        if busy_s * rate_per_s > 1:
            raise SweetspotError(
                f"the GPU cannot keep up with {rate_per_s:g} requests/s: it finishes {1 / busy_s:.3g} requests/s"
            )
        return 1 / rate_per_s - busy_s


def _group_of(prediction: Prediction) -> dict[str, str]:
    return {name: getattr(prediction, name) for name in ("model", *SELECTORS)}


def saving(now: Cost, then: Cost) -> Saving:
    """What `then` saves over `now`.

    What both plans share cancels. Errors within a sum are treated as common, so half-widths add; errors of the two
    sides of the difference as independent, so they add in squares. The sensors' gain error is the same on both sides:
    it scales the joules and cancels in percentages. Nothing saves more than everything.
    """
    own_before, own_after = _own(now.parts, then.parts), _own(then.parts, now.parts)
    shared = _own(now.parts) - own_before
    saved, ratio = now.energy_j.value - then.energy_j.value, then.energy_j.value / now.energy_j.value
    half = math.hypot(own_before, own_after, _gain(now.parts) - _gain(then.parts))
    relative = math.hypot(own_before * ratio, own_after, shared * (1 - ratio)) / now.energy_j.value
    return Saving(
        Interval(saved, saved - half, min(saved + half, now.energy_j.high)),
        Interval(100 * (1 - ratio), 100 * (1 - ratio - relative), min(100 * (1 - ratio + relative), 100.0)),
    )


def _level(parts: _Parts) -> Interval:
    value = sum(weight * part.energy_per_request_j for weight, part in parts.values())
    half = math.hypot(_own(parts), _gain(parts))
    return Interval(value, max(value - half, 0.0), value + half)


def _own(parts: _Parts, shared: _Parts | None = None) -> float:
    """Sum of half-widths in joules, without the sensors' gain and without what is `shared` with another cost."""
    total = 0.0
    for place, (weight, part) in parts.items():
        half = part.energy_per_request_high_j - part.energy_per_request_j
        own = weight - (shared or {}).get(place, (0.0, part))[0]
        total += max(own, 0.0) * math.sqrt(max(half**2 - _gain_of(part) ** 2, 0.0))
    return total


def _gain(parts: _Parts) -> float:
    return sum(weight * _gain_of(part) for weight, part in parts.values())


def _gain_of(part: Prediction) -> float:
    """Half-width in joules that the sensors' gain error contributes to a prediction's interval."""
    return part.interval_parts.get("sensor_gain", 0.0) * part.energy_per_request_j


def _seconds(prediction: Prediction, name: str) -> float:
    """Its duration, or one of its latencies; infinite if unknown."""
    if name == "duration_s":
        return math.inf if prediction.duration_s is None else prediction.duration_s
    return prediction.latency_s[name].value if name in prediction.latency_s else math.inf


def _slow(latencies: Sequence[tuple[float, float]], waiting_s: float) -> float | None:
    """What 19 in 20 of (seconds, share) do not exceed, after waiting: 0 without any, None if one is unknown."""
    if not latencies:
        return 0.0
    if any(math.isinf(seconds) for seconds, _ in latencies):
        return None
    ordered = sorted(latencies)
    *_, everything = reached = list(itertools.accumulate(share for _, share in ordered))
    slow = next(index for index, share in enumerate(reached) if share >= _SLOW * everything - 1e-9)
    return ordered[slow][0] + waiting_s
