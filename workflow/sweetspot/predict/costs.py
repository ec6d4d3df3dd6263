"""What requests cost in joules and seconds, from a fitted predictor. Standard library only."""

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
_TOO_FAST = "the GPU cannot keep up with {:g} requests/s: "


@dataclass(frozen=True)
class Ask:
    """One request to the model, or, for a `summary`, to the summariser."""

    input_tokens: int
    output_tokens: int
    summary: bool = False


Plan = Sequence[tuple[float, Sequence[Ask]]]
"""For each kind of request in a workload: its share (shares add to 1) and its asks, run one after another."""

_Parts = Mapping[tuple[Ask, float], tuple[float, Prediction]]


@dataclass(frozen=True)
class Cost:
    """What one request of a plan costs on average.

    `parts`: by ask and requests in flight, how many a request makes, and the prediction. `latency_s` runs from the
    start of a request to the end of its reply, `ttft_p95_s` to the first token; `tpot_p95_s` is the time per further
    token: of the 95th of 100 requests, None if the predictor does not know them. In flight is the given batch, or what
    a request rate keeps running; `summaries_in_flight` is None if the same model makes them. At a rate the GPU idles
    for `gpu_idle_per_request_s` (`energy_j` excludes its idle energy).
    """

    parts: _Parts
    latency_s: float | None
    ttft_p95_s: float | None
    tpot_p95_s: float | None
    requests_in_flight: float
    summaries_in_flight: float | None
    gpu_idle_per_request_s: float | None

    @property
    def energy_j(self) -> Interval:
        """Joules of a request."""
        value = sum(weight * part.energy_per_request_j for weight, part in self.parts.values())
        half = math.hypot(*_halves(self.parts))
        return Interval(value, max(value - half, 0.0), value + half)

    @property
    def reply_tokens(self) -> float:
        """Mean output tokens of a request, without summaries."""
        return sum(weight * ask.output_tokens for (ask, _), (weight, _) in self.parts.items() if not ask.summary)


@dataclass(frozen=True)
class Saving:
    """What one cost saves over another: joules per request and percent, negative if it costs more."""

    energy_j: Interval
    percent: Interval

    @classmethod
    def of(cls, now: Cost, then: Cost) -> "Saving":
        """What `then` saves over `now`.

        What both plans share cancels. Errors within a sum are treated as common, so half-widths add; errors of the two
        sides of the difference as independent, so they add in squares. The sensors' gain error is the same on both
        sides: it scales the joules and cancels in percentages. Nothing saves more than everything.
        """
        (all_before, gain_before), (_, gain_after) = _halves(now.parts), _halves(then.parts)
        before, after = _halves(now.parts, then.parts)[0], _halves(then.parts, now.parts)[0]
        energy_j = now.energy_j
        ratio = then.energy_j.value / energy_j.value
        saved, half = energy_j.value - then.energy_j.value, math.hypot(before, after, gain_before - gain_after)
        relative = math.hypot(before * ratio, after, (all_before - before) * (1 - ratio)) / energy_j.value
        return cls(
            Interval(saved, saved - half, min(saved + half, energy_j.high)),
            Interval(1 - ratio, 1 - ratio - relative, min(1 - ratio + relative, 1.0)).times(100),
        )


def _halves(parts: _Parts, shared: _Parts | None = None) -> tuple[float, float]:
    """Sums of half-widths in joules: without the sensors' gain and what is `shared` with another cost; of the gain."""
    own = gains = 0.0
    for place, (weight, part) in parts.items():
        half = part.energy_per_request_high_j - part.energy_per_request_j
        gain = part.interval_parts.get("sensor_gain", 0.0) * part.energy_per_request_j
        alone = max(weight - (shared or {}).get(place, (0.0, part))[0], 0.0)
        own += alone * math.sqrt(max(half**2 - gain**2, 0.0))
        gains += weight * gain
    return own, gains


class Costs:
    """Costs at a fixed batch, or at a request rate that determines the batch.

    `group` is the predictor's group for the model. The laws describe only batches of equal requests, so each
    request is assumed to run in a batch of its own kind. A summariser other than the model runs on a separate GPU of
    the same kind. Raises SweetspotError if the predictor does not know a model, or not which group is meant.
    """

    def __init__(
        self,
        predictor: Mapping[str, Any],
        model: str,
        batch: int | None = None,
        rate_per_s: float | None = None,
        summariser: str | None = None,
        **choice: str | None,
    ) -> None:
        """`choice`: of vocabulary.SELECTORS."""
        groups = predictor["groups"]
        self._predictor, self._batch, self.rate_per_s = predictor, batch, rate_per_s
        self.group = self.summariser = predictors.group_of(groups, model, choice)
        if summariser is not None and summariser.casefold() != self.group["model"].casefold():
            same = [group for group in groups if group["model"].casefold() == summariser.casefold()]
            where = {
                name: self.group[name]
                for name in SELECTORS
                if name in ("gpu", "engine") or any(group[name] == self.group[name] for group in same)
            }
            self.summariser = predictors.group_of(groups, summariser, where)
        self.apart = self.summariser is not self.group
        if rate_per_s is not None and self.group["law_any_batch"] is None:
            raise SweetspotError("--request-rate needs a law for every batch, from rows of two or more; give --batch")
        self.at = functools.cache(self._at)

    def _at(self, ask: Ask, in_flight: float) -> Prediction:
        return self._predict(ask, in_flight, refuse_unknown=False)

    def _predict(self, ask: Ask, in_flight: float, refuse_unknown: bool) -> Prediction:
        who = self.summariser if ask.summary else self.group
        asked = who["model"], ask.input_tokens, ask.output_tokens, max(1.0, in_flight)
        where = {name: who[name] for name in SELECTORS}
        return predictors.predict(self._predictor, *asked, refuse_unknown=refuse_unknown, **where)

    def energy_j(self, plan: Plan, in_flight: float) -> float:
        """Joules of a request of the plan, with so many in flight."""
        return sum(share * self.at(ask, in_flight).energy_per_request_j for share, asks in plan for ask in asks)

    def cost(self, plan: Plan, batch: int | None = None) -> Cost:
        """The cost of a plan, at another `batch` if one is given.

        With a request rate, another batch means that requests wait until the batch is full. Raises SweetspotError if
        the GPU cannot keep up with the rate, or if the measured cells do not determine the energy of the whole.
        """
        idle_s, waiting_s, rate = None, 0.0, self.rate_per_s
        if rate is None or batch is not None:
            own = summaries = float(batch or self._batch or 1)
            if rate is not None:
                idle_s, waiting_s = self._idle_s(plan, own, rate), (own - 1) / rate
        else:
            own = self._in_flight(plan, False if self.apart else None, rate)
            summaries = self._in_flight(plan, True, rate) if self.apart else own
            idle_s = max(0.0, 1 - own) / rate
        weights: defaultdict[tuple[Ask, float], float] = defaultdict(float)
        latencies, ttfts, tpots = [], [], []
        for share, asks in plan:
            places = [(ask, max(1.0, summaries if ask.summary else own)) for ask in asks]
            for place in places:
                weights[place] += share
            found = [self.at(*place) for place in places]
            first = next(index for index, ask in enumerate(asks) if not ask.summary)
            latencies.append((sum(map(_seconds, found)), share))
            ttfts.append((sum(map(_seconds, found[:first])) + _seconds(found[first], "ttft_p95_s"), share))
            if each := [_seconds(part, "tpot_p95_s") for part in found[first:] if part.output_tokens > 1]:
                tpots.append((max(each), share))
        parts = {place: (weight, self.at(*place)) for place, weight in weights.items()}
        times = _slow(latencies, waiting_s), _slow(ttfts, waiting_s), _slow(tpots, 0.0)
        cost = Cost(parts, *times, own, summaries if self.apart else None, idle_s)
        if cost.energy_j.high >= (1 + predictors.UNKNOWN) * cost.energy_j.value:
            for place in sorted(parts, key=lambda place: -parts[place][0]):
                self._predict(*place, refuse_unknown=True)  # one of them is refused, with the reason
        return cost

    def _busy_s(self, plan: Plan, pool: bool | None, batch: float) -> float:
        """Mean seconds of a request at the summariser (`pool` True), at the model (False) or at both (None)."""
        asked = [(share, ask) for share, asks in plan for ask in asks if pool in (None, ask.summary)]
        total = sum(share * _seconds(self.at(ask, batch)) for share, ask in asked)
        if math.isinf(total):
            raise SweetspotError(
                f"{self.group['model']}: the predictor has no durations, so --request-rate cannot determine the batch; "
                "give --batch, or fit a table with duration_s"
            )
        return total

    def _in_flight(self, plan: Plan, pool: bool | None, rate_per_s: float) -> float:
        """Requests in flight by Little's law: in flight = rate × seconds of a request, which grow with the batch.

        Bisection finds the smallest whole batch that keeps up; the result lies between it and the one below, where both
        sides of the law are taken as linear. A mix of lengths is thus only computed at few batches.
        """

        def behind(batch: int) -> float:
            return rate_per_s * self._busy_s(plan, pool, batch) - batch

        batches = self.group["batches"]
        if (alone := 1 + behind(1)) <= 1:
            return alone
        low, high, most = 1, 2, _BEYOND * max(batches)
        while behind(high) > 0:
            if high >= most:
                pace = max(batch / self._busy_s(plan, pool, batch) for batch in batches)
                raise SweetspotError(
                    f"{_TOO_FAST.format(rate_per_s)}at the measured batches it finishes at most {pace:.3g} requests/s; "
                    f"spread the load over {math.ceil(rate_per_s / pace)} GPUs or more and give the rate per GPU"
                )
            low, high = high, min(2 * high, most)
        low += bisect.bisect_left(range(low + 1, high), True, key=lambda batch: behind(batch) <= 0)
        above, below = behind(low), -behind(low + 1)
        return low + above / (above + below)

    def _idle_s(self, plan: Plan, batch: float, rate_per_s: float) -> float:
        """Idle seconds per request if batches start only when they are full."""
        busy_s = self._busy_s(plan, None, batch) / batch
        if busy_s * rate_per_s > 1:
            raise SweetspotError(f"{_TOO_FAST.format(rate_per_s)}it finishes {1 / busy_s:.3g} requests/s")
        return 1 / rate_per_s - busy_s


def _seconds(prediction: Prediction, name: str = "duration_s") -> float:
    """Its duration, or one of its latencies; infinite if unknown."""
    if name == "duration_s":
        return math.inf if prediction.duration_s is None else prediction.duration_s
    return prediction.latency_s[name].value if name in prediction.latency_s else math.inf


def _slow(latencies: Iterable[tuple[float, float]], waiting_s: float) -> float | None:
    """What 19 in 20 of (seconds, share) do not exceed, after waiting: 0 without any, None if one is unknown."""
    ordered = sorted(latencies)
    if not ordered:
        return 0.0
    reached = list(itertools.accumulate(share for _, share in ordered))
    slow = next(index for index, share in enumerate(reached) if share >= _SLOW * reached[-1] - 1e-9)
    return None if math.isinf(ordered[-1][0]) else ordered[slow][0] + waiting_s
