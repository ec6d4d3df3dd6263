"""What a workload costs in joules, and what other prompts, replies and batches would save. Standard library only."""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.predict import predictor as predictors
from sweetspot.predict.costs import Ask, Cost, Costs, Plan, Saving, saving
from sweetspot.predict.prediction import Prediction
from sweetspot.predict.sweet_spots import SweetSpot
from sweetspot.predict.workload import Workload

_MIX = "not defined: the requests have different lengths"
KINDS = ("truncate", "summarise", "cap", "split", "batches")
_PROBES = 33  # values tried to bracket a break-even point before bisection
# Of each limit: its option, the time's name in `Cost`, what takes it, what a predictor without it lacks, the remedy.
_LATENCY = ("--max-latency", "latency_s", "a request", "durations", "fit a table with duration_s")
_MEASURED = "fit a table with {}, as campaigns measure it"
_TTFT = ("--max-ttft", "ttft_s", "the first token", "time to first token in it", _MEASURED.format("ttft_p95_s"))
_TPOT = ("--max-tpot", "tpot_s", "each further token", "time per token in it", _MEASURED.format("tpot_p95_s"))


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; anything None or empty gets a default or is left out.

    `what_ifs` maps kinds (of KINDS) to numbers: tokens of a prompt (truncate, summarise) or of a reply (cap, split),
    or batches. The default: half and a quarter of the mean prompt, the sweet spot's reply, every measured batch.
    """

    batch: int | None = None
    rate_per_s: float | None = None
    what_ifs: Mapping[str, Sequence[int]] | None = None
    summariser: str | None = None
    max_latency_s: float | None = None
    max_ttft_s: float | None = None
    max_tpot_s: float | None = None
    grid_g_per_kwh: float | None = None

    @property
    def limits(self) -> list["Limit"]:
        """The limits on time that were given."""
        given = ((self.max_latency_s, *_LATENCY), (self.max_ttft_s, *_TTFT), (self.max_tpot_s, *_TPOT))
        return [Limit(most_s, *rest) for most_s, *rest in given if most_s is not None]


@dataclass(frozen=True)
class Limit:
    """A limit on a time: its option, the time's name in `Cost`, what takes it, what is missing if none is known."""

    most_s: float
    option: str
    name: str
    what: str
    missing: str
    remedy: str

    def of(self, cost: Cost) -> float | None:
        """The time, in s; None if unknown."""
        seconds: float | None = getattr(cost, self.name)
        return seconds

    def broken_by(self, cost: Cost) -> str:
        """Why a cost does not meet the limit; "" if it does."""
        seconds = self.of(cost)
        if seconds is None:
            return f"the time that {self.what} takes is unknown"
        return f"{self.what} takes {seconds:.3g} s, more than {self.most_s:g} s" if seconds > self.most_s else ""


@dataclass(frozen=True)
class Option:
    """One what-if: cost and saving (None if they cannot be predicted), and the reason if it is excluded."""

    kind: str
    number: int
    cost: Cost | None
    saving: Saving | None
    excluded: str | None

    @property
    def name(self) -> str:
        """The what-if in words."""
        return {
            "truncate": f"truncate prompts to {self.number:,}",
            "summarise": f"summarise prompts to {self.number:,}",
            "cap": f"cap replies at {self.number:,}",
            "split": f"split replies into at most {self.number:,}",
            "batches": f"batch {self.number:,}",
        }[self.kind]


@dataclass(frozen=True)
class BreakEven:
    """Where a what-if starts or stops paying off along `axis`.

    `where` is from, until, always, never, or why there is no such point; `value` is None unless it is from or until.
    The search was over `tried_from_to`.
    """

    what_if: str
    tokens: int | None
    axis: str
    where: str
    value: int | None
    requests_in_flight: float | None
    tried_from_to: tuple[int, int] | None


@dataclass(frozen=True)
class Advice:
    """What a workload costs now, the what-ifs, the break-even points and every caveat."""

    costs: Costs
    workload: Workload
    wishes: Wishes
    now: Cost
    spot: SweetSpot
    options: Sequence[Option]
    break_evens: Sequence[BreakEven]
    notes: Sequence[str]

    @property
    def first(self) -> Prediction:
        """A prediction for the model itself, for its model, GPU, engine and law."""
        return next(part for (ask, _), (_, part) in self.now.parts.items() if not ask.summary)

    @property
    def ranked(self) -> list[Option]:
        """The options that are not excluded, largest saving first."""
        kept = [(option.saving.energy_j.value, option) for option in self.options if option.saving]
        return [option for _, option in sorted(kept, key=lambda pair: -pair[0]) if not option.excluded]

    @property
    def excluded(self) -> list[Option]:
        """The options that cannot be predicted or take too long."""
        return [option for option in self.options if option.excluded]

    @property
    def warnings(self) -> list[str]:
        """The warnings of all predictions, without repeats, and the notes."""
        costs = [self.now, *(option.cost for option in self.options if option.cost is not None)]
        said = (warning for cost in costs for _, part in cost.parts.values() for warning in part.warnings)
        return [*once(said), *self.notes]

    @property
    def times_above(self) -> float | None:
        """Joules per output token now over those at the sweet spot; None unless it lies inside the measured replies."""
        least = self.spot.energy_per_output_token_j
        if least is None or self.spot.status != "interior":
            return None
        return self.now.energy_j.value / self.now.reply_tokens / least


def advise(
    predictor: Mapping[str, Any], model: str, workload: Workload, wishes: Wishes, **choice: str | None
) -> Advice:
    """The cost of a workload and of its alternatives.

    `choice` is of vocabulary.SELECTORS, as for `predictor.predict`. Raises SweetspotError for what the predictor cannot
    answer, impossible wishes, a request rate that the GPU cannot keep up with, and a latency limit no option meets.
    """
    _check(wishes, workload)
    place = Ask(workload.input_tokens, workload.output_tokens)
    costs = Costs(predictor, model, place, wishes.batch, wishes.rate_per_s, wishes.summariser, **choice)
    plan: Plan = [(count / workload.requests, (Ask(n, m),)) for n, m, count in workload.lengths]
    now = costs.cost(plan)
    for limit in wishes.limits:
        if limit.of(now) is None:
            raise SweetspotError(
                f"{model}: the predictor has no {limit.missing}, so {limit.option} cannot be checked; {limit.remedy}"
            )
    notes = list(workload.notes)
    try:
        spot = predictors.sweet_spot(costs.group, place.input_tokens, max(1.0, now.in_flight))
    except SweetspotError as error:
        spot, notes = SweetSpot("not identified"), [*notes, f"the sweet spot is unknown: {error}"]
    what_ifs = {kind: list(numbers) for kind, numbers in (wishes.what_ifs or {}).items() if numbers}
    if not what_ifs:
        what_ifs = _usual(costs, workload, now, spot)
        if "cap" not in what_ifs and spot.status == "interior":
            notes.append("no reply is longer than the sweet spot, so capping and splitting are not listed")
    options = [
        _option(kind, number, plan, costs, now, wishes)
        for kind, numbers in what_ifs.items()
        for number in dict.fromkeys(numbers)
    ]
    for limit in wishes.limits:
        _check_limit(limit, now, options)
    even = _break_evens(costs, workload, plan, what_ifs, now)
    if wishes.max_latency_s is not None and wishes.rate_per_s is None:
        even.append(_even_latency(costs, plan, wishes.max_latency_s))
    if wishes.rate_per_s is not None and now.in_flight < 1:
        notes.append(
            f"at {wishes.rate_per_s:g} requests/s the GPU is busy {100 * now.in_flight:.0f} % of the time; these "
            "joules do not include its idle draw"
        )
    return Advice(costs, workload, wishes, now, spot, options, even, notes)


def plan_for(kind: str, tokens: int, plan: Plan) -> Plan:
    """The plan with its prompts or replies changed; requests that are already short enough stay as they are."""

    def changed(ask: Ask) -> tuple[Ask, ...]:
        n, m = ask.input_tokens, ask.output_tokens
        if kind == "truncate":
            return (Ask(min(n, tokens), m),)
        if kind == "summarise" and n > tokens:
            return Ask(n, tokens, summary=True), Ask(tokens, m)
        if kind == "cap":
            return (Ask(n, min(m, tokens)),)
        if kind == "split" and m > tokens:
            return tuple(Ask(n, part) for part in _shares(m, math.ceil(m / tokens)))
        return (ask,)

    return [(share, tuple(new for ask in asks for new in changed(ask))) for share, asks in plan]


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (number < total % parts) for number in range(parts)]


def _check(wishes: Wishes, workload: Workload) -> None:
    if (wishes.batch is None) == (wishes.rate_per_s is None):
        raise SweetspotError("give either --batch B, the requests that run together, or --request-rate R in requests/s")
    for name, value in (
        ("--request-rate", wishes.rate_per_s),
        *((limit.option, limit.most_s) for limit in wishes.limits),
        ("--grid-g-per-kwh", wishes.grid_g_per_kwh),
    ):
        if value is not None and not 0 < value < math.inf:
            raise SweetspotError(f"{name} {value:g}: give a number above 0")
    prompt, reply = (max(lengths[axis] for lengths in workload.lengths) for axis in (0, 1))
    longest = {"truncate": ("prompt", prompt), "summarise": ("prompt", prompt)}
    longest |= {"cap": ("reply", reply), "split": ("reply", reply)}
    for kind, numbers in (wishes.what_ifs or {}).items():
        for number in numbers:
            if number < 1:
                raise SweetspotError(f"--{kind} {number}: give a whole number of at least 1")
            if kind in longest and number >= longest[kind][1]:
                what, most = longest[kind]
                what = f"longest {what}" if workload.is_mix else what
                raise SweetspotError(f"--{kind} {number}: the {what} has {most} tokens; give fewer")


def _usual(costs: Costs, workload: Workload, now: Cost, spot: SweetSpot) -> dict[str, list[int]]:
    """The default what-ifs."""
    shortest = costs.group["measured_range"]["input_tokens"][0]
    prompts = [k for k in (workload.input_tokens // 2, workload.input_tokens // 4) if k >= shortest]
    usual = {"truncate": prompts, "summarise": prompts}
    if spot.status == "interior" and (best := spot.reply) < max(m for _, m, _ in workload.lengths):
        usual |= {"cap": [best], "split": [best]}
    return usual | {"batches": [batch for batch in costs.group["batches"] if batch != now.in_flight]}


def _option(kind: str, number: int, plan: Plan, costs: Costs, now: Cost, wishes: Wishes) -> Option:
    try:
        cost = costs.cost(plan, batch=number) if kind == "batches" else costs.cost(plan_for(kind, number, plan))
    except SweetspotError as error:
        return Option(kind, number, None, None, str(error))
    excluded = "; ".join(filter(None, (limit.broken_by(cost) for limit in wishes.limits)))
    return Option(kind, number, cost, saving(now, cost), excluded or None)


def _check_limit(limit: Limit, now: Cost, options: Sequence[Option]) -> None:
    """Raise SweetspotError if neither today's requests nor any option meets the limit."""
    costs = [(option.cost, option.name) for option in options if option.cost is not None]
    known = [
        (seconds, name) for cost, name in [(now, "as it is now"), *costs] if (seconds := limit.of(cost)) is not None
    ]
    fastest, name = min(known)
    if fastest > limit.most_s:
        raise SweetspotError(
            f"{limit.option} {limit.most_s:g}: no option meets it; in the fastest, {name}, {limit.what} takes "
            f"{fastest:.3g} s; allow more, or try other what-ifs (a smaller --batches, a shorter --cap)"
        )


def _spread(low: int, high: int) -> list[int]:
    """Whole numbers from `low` to `high`, evenly spaced on a log scale."""
    steps = range(_PROBES)
    return sorted({round(low * (high / low) ** (step / (_PROBES - 1))) for step in steps} | {low, high})


def _crossing(gain: Callable[[int], float], low: int, high: int) -> tuple[str, int | None]:
    """Where a gain is positive on [low, high]: from or until a number, always, never, or why no point is known."""
    try:
        if low > high:
            return "not defined: nothing was measured there", None
        probed = _spread(low, high)
        pays = [gain(number) > 0 for number in probed]
        turns = [index for index in range(1, len(probed)) if pays[index] != pays[index - 1]]
        if not turns:
            return ("always" if pays[0] else "never"), None
        if len(turns) > 1:
            return "not a single point", None
        left, right = probed[turns[0] - 1], probed[turns[0]]
        turn = bisect_left(range(left + 1, right), True, key=lambda number: (gain(number) > 0) != pays[0]) + left + 1
        return ("from", turn) if pays[-1] else ("until", turn - 1)
    except SweetspotError as error:
        return f"not defined: {error}", None


def _break_evens(
    costs: Costs, workload: Workload, plan: Plan, what_ifs: Mapping[str, Sequence[int]], now: Cost
) -> list[BreakEven]:
    """How often a summary must be used to pay off, from where a single use does, and from which reply a split does."""
    measured, batches, at = costs.group["measured_range"], costs.group["batches"], now.in_flight
    n, m = workload.input_tokens, workload.output_tokens

    def even(kind: str, tokens: int, axis: str, span: tuple[int, int], gain: Callable[[int], float]) -> BreakEven:
        where = (_MIX, None) if workload.is_mix else _crossing(gain, *span)
        return BreakEven(kind, tokens, axis, *where, at, span)

    def of_summary(tokens: int) -> list[BreakEven]:
        def gain(prompt: int, reply: int, in_flight: float) -> float:
            instead = [Ask(prompt, tokens, summary=True), Ask(tokens, reply)]
            return costs.energy_j([Ask(prompt, reply)], in_flight) - costs.energy_j(instead, in_flight)

        summary_j = saved_j = 0.0
        for (share, (ask,)), (_, (summary, *rest)) in zip(plan, plan_for("summarise", tokens, plan), strict=True):
            if summary.summary:
                summary_j += share * costs.energy_j([summary], at)
                saved_j += share * (costs.energy_j([ask], at) - costs.energy_j(rest, at))
        least = math.floor(summary_j / saved_j) + 1 if saved_j > 0 else None
        uses = BreakEven("summarise", tokens, "uses", "from" if least else "never", least, at, None)
        axes: list[tuple[str, tuple[int, int], Callable[[int], float]]] = [
            ("output_tokens", measured["output_tokens"], lambda reply: gain(n, reply, at)),
            ("input_tokens", (tokens + 1, max(measured["input_tokens"][1], n)), lambda prompt: gain(prompt, m, at)),
            ("batch", (min(batches), max(batches)), lambda batch: gain(n, m, batch)),
        ]
        return [uses, *(even("summarise", tokens, *axis) for axis in axes[: 1 if workload.is_mix else None])]

    def of_split(reply: int) -> float:
        parts = [Ask(n, part) for part in _shares(reply, 2)]
        return costs.energy_j([Ask(n, reply)], at) - costs.energy_j(parts, at)

    found = [one for tokens in dict.fromkeys(what_ifs.get("summarise", ())) for one in of_summary(tokens)]
    if "split" in what_ifs:
        low, high = measured["output_tokens"]
        found.append(even("split", 2, "output_tokens", (max(2, low), high), of_split))
    return found


def _even_latency(costs: Costs, plan: Plan, most_s: float) -> BreakEven:
    span = (1, max(costs.group["batches"]))

    def spare(batch: int) -> float:
        latency_s = costs.cost(plan, batch=batch).latency_s
        return -1.0 if latency_s is None else most_s - latency_s

    return BreakEven("latency", None, "batch", *_crossing(spare, *span), None, span)


def once(texts: Iterable[str]) -> list[str]:
    """The texts without repeats; of those that differ only in numbers, the first and how many more there are."""
    alike: dict[str, dict[str, None]] = {}
    for text in texts:
        alike.setdefault(re.sub(r"\d[\d.]*", "#", text), {})[text] = None
    return [
        next(iter(group)) + (f" (and {len(group) - 1} more of this kind)" if len(group) > 1 else "")
        for group in alike.values()
    ]
