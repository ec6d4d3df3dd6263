"""What a workload costs in joules, and what other prompts, replies and batches would save. Standard library only."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.predict import predictor as predictors
from sweetspot.predict.costs import Ask, Cost, Costs, Plan, Saving
from sweetspot.predict.prediction import check_request
from sweetspot.predict.sweet_spots import SweetSpot
from sweetspot.predict.workload import Workload

_PROBES = 33  # values tried to bracket a break-even point before bisection


@dataclass(frozen=True)
class Change:
    """A what-if: its name with a number, the side of a request that it shortens, and what becomes of a longer one."""

    name: str
    shortens: str
    asks: Callable[[Ask, int], Sequence[Ask]]

    def of(self, plan: Plan, number: int) -> Plan:
        """The plan after the change; requests that are already short enough stay as they are."""
        return [
            (share, [new for ask in asks for new in (self.asks(ask, number) if self.length(ask) > number else [ask])])
            for share, asks in plan
        ]

    def length(self, ask: Ask) -> int:
        """Tokens of what it shortens; 0 for nothing."""
        return {"prompt": ask.input_tokens, "reply": ask.output_tokens}.get(self.shortens, 0)


def _summary(ask: Ask, tokens: int) -> Sequence[Ask]:
    return [Ask(ask.input_tokens, tokens, summary=True), replace(ask, input_tokens=tokens)]


def _parts(ask: Ask, tokens: int) -> Sequence[Ask]:
    parts = math.ceil(ask.output_tokens / tokens)
    return [replace(ask, output_tokens=(ask.output_tokens + part) // parts) for part in reversed(range(parts))]


CHANGES = {
    "truncate": Change("truncate prompts to {:,}", "prompt", lambda ask, tokens: [replace(ask, input_tokens=tokens)]),
    "summarise": Change("summarise prompts to {:,}", "prompt", _summary),
    "cap": Change("cap replies at {:,}", "reply", lambda ask, tokens: [replace(ask, output_tokens=tokens)]),
    "split": Change("split replies into at most {:,}", "reply", _parts),
    "batches": Change("batch {:,}", "", lambda ask, _: [ask]),
}
"""The what-ifs by their option. The number of the last one is how many requests run together."""


@dataclass(frozen=True)
class Limit:
    """A limit on a time of `Cost`: its option, the time, what takes it, and what a predictor without it lacks."""

    option: str
    time: str
    what: str
    missing: str
    columns: str

    def broken_by(self, cost: Cost, most_s: float) -> str:
        """Why a cost does not meet the limit; "" if it does."""
        seconds = getattr(cost, self.time)
        if seconds is None:
            return f"the time that {self.what} takes is unknown"
        return f"{self.what} takes {seconds:.3g} s, more than {most_s:g} s" if seconds > most_s else ""


_LIMITS = {
    "max_latency_s": Limit("--max-latency", "latency_s", "a request", "durations", "duration_s"),
    "max_ttft_s": Limit("--max-ttft", "ttft_p95_s", "the first token", "time to first token", "ttft_p95_s"),
    "max_tpot_s": Limit("--max-tpot", "tpot_p95_s", "each further token", "time per token", "tpot_p95_s"),
}


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; anything None or empty gets a default or is left out.

    `what_ifs` maps kinds (of CHANGES) to numbers: tokens of a prompt (truncate, summarise) or of a reply (cap, split),
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
    def limits(self) -> list[tuple[Limit, float]]:
        """The limits on time that were given, with the most seconds allowed."""
        return [(limit, getattr(self, name)) for name, limit in _LIMITS.items() if getattr(self, name) is not None]


@dataclass(frozen=True)
class Option:
    """One what-if: cost and saving (None if they cannot be predicted), and the reason if it is excluded."""

    kind: str
    number: int
    cost: Cost | None = None
    saving: Saving | None = None
    excluded: str | None = None

    @property
    def name(self) -> str:
        """The what-if in words."""
        return CHANGES[self.kind].name.format(self.number)


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
    """What a workload costs now, the what-ifs, the break-even points and notes."""

    costs: Costs
    workload: Workload
    wishes: Wishes
    now: Cost
    spot: SweetSpot
    options: Sequence[Option]
    break_evens: Sequence[BreakEven]
    notes: Sequence[str]

    @property
    def ranked(self) -> list[Option]:
        """The options that are not excluded, largest saving first."""
        kept = [(option.saving.energy_j.value, option) for option in self.options if option.saving]
        return [option for _, option in sorted(kept, key=lambda pair: -pair[0]) if not option.excluded]

    @property
    def excluded(self) -> list[Option]:
        """The options that cannot be predicted or take too long."""
        return [option for option in self.options if option.excluded]


def advise(
    predictor: Mapping[str, Any], model: str, workload: Workload, wishes: Wishes, **choice: str | None
) -> Advice:
    """The cost of a workload and of its alternatives.

    `choice` is of vocabulary.SELECTORS, as for `predictor.predict`. Raises SweetspotError for what the predictor cannot
    answer, impossible wishes, a request rate that the GPU cannot keep up with, and a latency limit no option meets.
    """
    _check(wishes, workload)
    costs = Costs(predictor, model, wishes.batch, wishes.rate_per_s, wishes.summariser, **choice)
    plan: Plan = [(count / workload.requests, [Ask(n, m)]) for n, m, count in workload.lengths]
    now = costs.cost(plan)
    for limit, _ in wishes.limits:
        if getattr(now, limit.time) is None:
            raise SweetspotError(
                f"{model}: the predictor has no {limit.missing} in it, so {limit.option} cannot be checked; fit a "
                f"table with {limit.columns}, as campaigns measure it"
            )
    notes = list(workload.notes)
    try:
        spot = predictors.sweet_spot(costs.group, workload.input_tokens, max(1.0, now.requests_in_flight))
    except SweetspotError as error:
        spot = SweetSpot("not identified")
        notes.append(f"the sweet spot is unknown: {error}")
    what_ifs = {kind: numbers for kind, numbers in (wishes.what_ifs or {}).items() if numbers}
    if not what_ifs:
        what_ifs = _usual(costs, workload, now, spot)
        if "cap" not in what_ifs and spot.status == "interior":
            notes.append("no reply is longer than the sweet spot, so capping and splitting are not listed")
    if wishes.rate_per_s is not None and now.requests_in_flight < 1:
        notes.append(
            f"at {wishes.rate_per_s:g} requests/s the GPU is busy {100 * now.requests_in_flight:.0f} % of the time; "
            "these joules do not include its idle draw"
        )
    asked = [(kind, number) for kind, numbers in what_ifs.items() for number in dict.fromkeys(numbers)]
    options = [_option(kind, number, plan, costs, now, wishes) for kind, number in asked]
    for limit, most_s in wishes.limits:
        known = [("as it is now", now), *((option.name, option.cost) for option in options if option.cost)]
        fastest, name = min((s, name) for name, cost in known if (s := getattr(cost, limit.time)) is not None)
        if fastest > most_s:
            raise SweetspotError(
                f"{limit.option} {most_s:g}: no option meets it; in the fastest, {name}, {limit.what} takes "
                f"{fastest:.3g} s; allow more, or try other what-ifs (a smaller --batches, a shorter --cap)"
            )
    even = list(_break_evens(costs, workload, plan, asked, now, wishes))
    return Advice(costs, workload, wishes, now, spot, options, even, notes)


def _check(wishes: Wishes, workload: Workload) -> None:
    if (wishes.batch is None) == (wishes.rate_per_s is None):
        raise SweetspotError("give either --batch B, the requests that run together, or --request-rate R in requests/s")
    check_request(1, 1, 1 if wishes.batch is None else wishes.batch)
    numbers = {"--request-rate": wishes.rate_per_s, "--grid-g-per-kwh": wishes.grid_g_per_kwh}
    for name, value in (numbers | {limit.option: most_s for limit, most_s in wishes.limits}).items():
        if value is not None and not 0 < value < math.inf:
            raise SweetspotError(f"{name} {value:g}: give a number above 0")
    for kind, asked in (wishes.what_ifs or {}).items():
        side, longest = CHANGES[kind].shortens, max(CHANGES[kind].length(Ask(n, m)) for n, m, _ in workload.lengths)
        for number in asked:
            if number < 1:
                raise SweetspotError(f"--{kind} {number}: give a whole number of at least 1")
            if side and number >= longest:
                what = f"longest {side}" if workload.is_mix else side
                raise SweetspotError(f"--{kind} {number}: the {what} has {longest} tokens; give fewer")


def _usual(costs: Costs, workload: Workload, now: Cost, spot: SweetSpot) -> dict[str, Sequence[int]]:
    """The default what-ifs."""
    shortest = costs.group["measured_range"]["input_tokens"][0]
    prompts = [k for k in (workload.input_tokens // 2, workload.input_tokens // 4) if k >= shortest]
    usual: dict[str, Sequence[int]] = {"truncate": prompts, "summarise": prompts}
    if spot.status == "interior" and spot.reply < max(m for _, m, _ in workload.lengths):
        usual |= {"cap": [spot.reply], "split": [spot.reply]}
    return usual | {"batches": [batch for batch in costs.group["batches"] if batch != now.requests_in_flight]}


def _option(kind: str, number: int, plan: Plan, costs: Costs, now: Cost, wishes: Wishes) -> Option:
    try:
        cost = costs.cost(CHANGES[kind].of(plan, number), number if kind == "batches" else None)
    except SweetspotError as error:
        return Option(kind, number, excluded=str(error))
    broken = "; ".join(filter(None, (limit.broken_by(cost, most_s) for limit, most_s in wishes.limits)))
    return Option(kind, number, cost, Saving.of(now, cost), broken or None)


def _crossing(gain: Callable[[int], float], low: int, high: int) -> tuple[str, int | None]:
    """Where a gain is positive on [low, high]: from or until a number, always, never, or why no point is known."""
    if low > high:
        return "not defined: nothing was measured there", None
    steps = (low * (high / low) ** (step / (_PROBES - 1)) for step in range(_PROBES))
    probed = sorted({low, high, *map(round, steps)})
    try:
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
    costs: Costs, workload: Workload, plan: Plan, asked: Sequence[tuple[str, int]], now: Cost, wishes: Wishes
) -> Iterator[BreakEven]:
    """How often a summary must be used to pay off, from where a single use does, and from which reply a split does."""
    measured, batches, at = costs.group["measured_range"], costs.group["batches"], now.requests_in_flight
    (_, longest), replies = measured["input_tokens"], tuple(measured["output_tokens"])
    here = {"input_tokens": workload.input_tokens, "output_tokens": workload.output_tokens, "batch": at}

    def even(kind: str, number: int | None, axis: str, span: tuple[int, int]) -> BreakEven:
        def gain(value: int) -> float:
            place = here | {axis: value}
            ask = Ask(int(place["input_tokens"]), int(place["output_tokens"]))
            instead = CHANGES[kind].asks(ask, number or math.ceil(ask.output_tokens / 2))
            return costs.energy_j([(1, [ask])], place["batch"]) - costs.energy_j([(1, instead)], place["batch"])

        mix = "not defined: the requests have different lengths"
        where = (mix, None) if workload.is_mix else _crossing(gain, *span)
        return BreakEven(kind, number or 2, axis, *where, at, span)

    for tokens in (number for kind, number in asked if kind == "summarise"):
        after = CHANGES["summarise"].of(plan, tokens)
        summaries = [(share, [ask for ask in asks if ask.summary]) for share, asks in after]
        summary_j = costs.energy_j(summaries, at)
        saved_j = costs.energy_j(plan, at) + summary_j - costs.energy_j(after, at)
        least = math.floor(summary_j / saved_j) + 1 if saved_j > 0 else None
        yield BreakEven("summarise", tokens, "uses", "from" if least else "never", least, at, None)
        yield even("summarise", tokens, "output_tokens", replies)
        if not workload.is_mix:
            yield even("summarise", tokens, "input_tokens", (tokens + 1, max(longest, workload.input_tokens)))
            yield even("summarise", tokens, "batch", (min(batches), max(batches)))
    if any(kind == "split" for kind, _ in asked):
        yield even("split", None, "output_tokens", (max(2, replies[0]), replies[1]))
    if (most_s := wishes.max_latency_s) is not None and wishes.rate_per_s is None:
        span = (1, max(batches))
        met = _crossing(lambda batch: most_s - (costs.cost(plan, batch).latency_s or math.inf), *span)
        yield BreakEven("latency", None, "batch", *met, None, span)
