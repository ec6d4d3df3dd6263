"""Formats advice as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sweetspot.predict.advise import Advice, BreakEven, Option, once
from sweetspot.predict.costs import Cost
from sweetspot.predict.prediction import Interval
from sweetspot.vocabulary import LEVEL, SELECTORS, SIMULATED, UNSAID

_J_PER_KWH = 3.6e6
_ASSUMED = (
    "gross energy of the GPU board: includes idle power, excludes the host and the cooling",
    "every request is assumed to run in a batch of equal ones that start together; latency is that of the whole run, "
    "and of the wait for a full batch at a request rate; limits on time are judged by best estimates",
    "intervals: errors add within a sum and are independent between the two sides of a saving; the sensors' common "
    "gain error cancels in percentages",
    "only joules are counted: check yourself that a truncated prompt, a summary or a shorter reply is good enough",
)


def as_dict(advice: Advice) -> dict[str, Any]:
    """For JSON, with units in the names. The best options come first, excluded ones last."""
    first = advice.first
    return {
        **{name: getattr(first, name) for name in ("model", *SELECTORS, "source", "law")},
        "summariser": advice.costs.summariser,
        "workload": {
            "requests": advice.workload.requests,
            "length_pairs": len(advice.workload.lengths),
            "mean_input_tokens": advice.workload.input_tokens,
            "mean_output_tokens": advice.workload.output_tokens,
            "request_rate_per_s": advice.costs.rate_per_s,
            **{name: getattr(advice.wishes, name) for name in ("max_latency_s", "max_ttft_s", "max_tpot_s")},
            "grid_g_per_kwh": advice.wishes.grid_g_per_kwh,
        },
        "now": _cost_dict(advice, advice.now),
        "sweet_spot": {
            "input_tokens": advice.workload.input_tokens,
            "requests_in_flight": advice.now.in_flight,
            "output_tokens": advice.spot.reply if advice.times_above else None,
            "plateau_output_tokens": advice.spot.plateau if advice.times_above else None,
            "energy_per_output_token_j": advice.spot.energy_per_output_token_j if advice.times_above else None,
            "times_above": advice.times_above,
            "status": advice.spot.status if advice.times_above else _no_spot(advice),
        },
        "what_ifs": [_option_dict(advice, option) for option in (*advice.ranked, *advice.excluded)],
        "break_evens": [asdict(even) for even in advice.break_evens],
        "warnings": advice.warnings,
        "assumptions": _ASSUMED,
    }


def as_text(advice: Advice) -> str:
    """For people: the cost now, a table of the what-ifs, break-even points and caveats."""
    first = advice.first
    where = ", ".join(part for part in (getattr(first, name) for name in SELECTORS) if part not in UNSAID)
    label = SIMULATED.get(first.source)
    others = [warning for warning in advice.warnings if not (label and warning.startswith(label))]
    lines = [f"{label}: every number below comes from a simulated GPU, none from a measurement"] if label else []
    lines += [first.model + (f" ({where})" if where else ""), *_now_lines(advice)]
    lines += ["", *_verdict(advice), "", *_table(advice)]
    if advice.excluded:
        lines += ["", "Excluded"]
        lines += [f"- {option.name}: {option.excluded}" for option in advice.excluded]
    if advice.break_evens:
        lines += ["", "Break-even points (best estimates)"]
        lines += [f"- {sentence}." for sentence in _even_sentences(advice.break_evens)]
    marked = [advice.now, *(option.cost for option in advice.ranked if option.cost is not None)]
    every = dict.fromkeys(reason for cost in marked for reason in extrapolations(cost, advice.workload.is_mix))
    reasons = once(every) if advice.workload.is_mix else list(every)
    lines += ["", *(f"* extrapolates: {reason}" for reason in reasons)] if reasons else [""]
    if extrapolations(advice.now, advice.workload.is_mix):
        lines.append("* today's workload already extrapolates, so every saving does")
    if any(_break_even_idle_w(advice, option) is not None for option in advice.ranked):
        lines.append("used up at: the idle power of the GPU that would use up the saving, as the GPU then idles more")
    return "\n".join([*lines, *(f"note: {text}" for text in (*others, *_ASSUMED))])


def _cost_dict(advice: Advice, cost: Cost) -> dict[str, Any]:
    per_kilo = 1000 / _J_PER_KWH
    energy = cost.energy_j
    numbers: dict[str, Any] = {
        **energy.named("energy_per_request{}_j"),
        **_scaled(energy, per_kilo).named("energy_per_1000_requests{}_kwh"),
        "energy_per_output_token_j": energy.value / cost.reply_tokens,
    }
    if advice.wishes.grid_g_per_kwh is not None:
        grams = _scaled(energy, per_kilo * advice.wishes.grid_g_per_kwh)
        numbers |= grams.named("carbon_per_1000_requests{}_g_co2e")
    return numbers | {
        "latency_s": cost.latency_s,
        "ttft_p95_s": cost.ttft_s,
        "tpot_p95_s": cost.tpot_s,
        "requests_in_flight": cost.in_flight,
        "summaries_in_flight": cost.summary_in_flight if advice.costs.apart else None,
        "gpu_idle_per_request_s": cost.idle_s,
        "extrapolates": extrapolations(cost, advice.workload.is_mix),
    }


def _option_dict(advice: Advice, option: Option) -> dict[str, Any]:
    numbers: dict[str, Any] = {"what_if": option.kind, "name": option.name, "excluded": option.excluded}
    numbers["batch" if option.kind == "batches" else "tokens"] = option.number
    if option.cost is not None and option.saving is not None:
        saved = option.saving.energy_j
        numbers |= _cost_dict(advice, option.cost)
        numbers |= saved.named("saving_per_request{}_j")
        numbers |= option.saving.percent.named("saving{}_percent")
        numbers |= _scaled(saved, 1000 / _J_PER_KWH).named("saving_per_1000_requests{}_kwh")
        if advice.wishes.grid_g_per_kwh is not None:
            grams = _scaled(saved, 1000 / _J_PER_KWH * advice.wishes.grid_g_per_kwh)
            numbers |= grams.named("saving_per_1000_requests{}_g_co2e")
        numbers["idle_power_that_uses_the_saving_up_w"] = _break_even_idle_w(advice, option)
    return numbers


def _now_lines(advice: Advice) -> list[str]:
    now, load = advice.now, advice.workload
    if load.is_mix:
        asked = (
            f"{load.requests:,} requests of {len(load.lengths):,} length pairs, on average {load.input_tokens:,} "
            f"input and {load.output_tokens:,} output tokens"
        )
    else:
        asked = f"{load.input_tokens:,} input and {load.output_tokens:,} output tokens"
    rate = advice.costs.rate_per_s
    running = _running(now.in_flight) if rate is None else f"{rate:g} requests/s keep {_running(now.in_flight)}"
    mark = " *" if extrapolations(now, load.is_mix) else ""
    kilo = _scaled(now.energy_j, 1000 / _J_PER_KWH)
    lines = [
        f"Now: {asked}; {running}{mark}",
        f"  {{}} J per request ({LEVEL}: {{}}), gross energy of the GPU board".format(*_shown(now.energy_j)),
        f"  {{}} kWh per 1,000 requests ({LEVEL}: {{}})".format(*_shown(kilo)),
    ]
    if advice.wishes.grid_g_per_kwh is not None:
        grams = _scaled(kilo, advice.wishes.grid_g_per_kwh)
        lines.append(
            f"  {{}} g CO2e per 1,000 requests ({LEVEL}: {{}}), ".format(*_shown(grams))
            + f"at your {advice.wishes.grid_g_per_kwh:g} g/kWh"
        )
    if now.latency_s is not None:
        lines.append(
            f"  {_figures(now.latency_s, 3)} s from start to end of a request"
            + (" (19 in 20 are faster)" if load.is_mix else "")
        )
    if now.ttft_s is not None:
        each = f" and {_figures(now.tpot_s, 3)} s for each further one" if now.tpot_s else ""
        lines.append(f"  {_figures(now.ttft_s, 3)} s to the first token{each} (19 in 20 requests are faster)")
    lines += [f"  not allowed: {broken}" for limit in advice.wishes.limits if (broken := limit.broken_by(now))]
    if advice.costs.apart and any(option.kind == "summarise" for option in advice.options):
        lines.append(f"  summaries below are by {advice.costs.summariser}, on a GPU of its own")
    return [*lines, *_spot_lines(advice)]


def _spot_lines(advice: Advice) -> list[str]:
    spot, above = advice.spot, advice.times_above
    prompt = f"{'the mean' if advice.workload.is_mix else 'this'} prompt of {advice.workload.input_tokens:,} tokens"
    plateau = spot.plateau
    if spot.energy_per_output_token_j is None or above is None or plateau is None:
        return [f"  {_figures(advice.per_token_j)} J per output token; sweet spot at {prompt}: {_no_spot(advice)}"]
    return [
        f"  {_figures(advice.per_token_j)} J per output token, {_figures(above, 3)} times that of the sweet spot",
        f"  sweet spot at {prompt}: {spot.reply:,} output tokens, {_figures(spot.energy_per_output_token_j)} J each "
        f"(within 1 % from {plateau[0]:,} to {plateau[1]:,})",
    ]


def _no_spot(advice: Advice) -> str:
    """Why no sweet spot can be given."""
    if advice.spot.status == "not identified":
        return "not identified: the measured cells do not determine it"
    low, high = advice.costs.group["measured_range"]["output_tokens"]
    way = "falls or rises"
    if advice.spot.output_tokens is not None:
        way = "falls" if advice.spot.output_tokens > high else "rises"
    return f"none inside the measured {low:,}-{high:,} output tokens: the energy per token {way} throughout"


def _verdict(advice: Advice) -> list[str]:
    """The best option, and the best that leaves prompts and replies unchanged."""
    good = [option for option in advice.ranked if option.saving and option.saving.energy_j.low > 0]
    if not good:
        return ["Nothing listed clearly saves energy" + (" within the latency limit." if advice.wishes.limits else ".")]
    same = [option for option in good if option.kind == "batches"]
    shown = {"Best": good[0]} | (
        {"With prompts and replies unchanged": same[0]} if same[:1] != good[:1] and same else {}
    )
    lines = []
    for label, option in shown.items():
        assert option.saving is not None
        percent, saved = option.saving.percent.value, option.saving.energy_j.value
        text = f"{label}: {option.name}, saves {_figures(percent, 3)} %, "
        text += f"{_figures(saved * 1000 / _J_PER_KWH, 3)} kWh per 1,000 requests"
        idle = _break_even_idle_w(advice, option) is not None
        lines.append(text + (", idle draw not counted (see the table)." if idle else "."))
    return lines


def _break_even_idle_w(advice: Advice, option: Option) -> float | None:
    """Idle power in watts that would use up a saving. None if the GPU idles no more than now, or nothing is saved."""
    assert option.cost is not None
    assert option.saving is not None
    if option.cost.idle_s is None or advice.now.idle_s is None:
        return None
    more_s, saved_j = option.cost.idle_s - advice.now.idle_s, option.saving.energy_j.value
    return saved_j / more_s if more_s > 0 and saved_j > 0 else None


def _table(advice: Advice) -> list[str]:
    timed = advice.now.latency_s is not None
    by_rate = advice.costs.rate_per_s is not None
    header = ["what if", "J/request", "J/token", "saves J", f"({LEVEL})", "saves", f"({LEVEL})"]
    limited = {limit.name for limit in advice.wishes.limits}
    more = {"ttft_s": "first token", "tpot_s": "further token"}
    columns = {"latency_s": "latency"} if timed else {}
    columns |= {name: words for name, words in more.items() if name in limited}
    rows = [header + list(columns.values()) + ["in flight", "GPU idle", "used up at"] * by_rate]
    for option in advice.ranked:
        cost, saved = option.cost, option.saving
        assert cost is not None
        assert saved is not None
        mark = " *" if extrapolations(cost, advice.workload.is_mix) else ""
        percent, percents = _shown(saved.percent, 3)
        row = [option.name + mark, _figures(cost.energy_j.value), _figures(cost.energy_j.value / cost.reply_tokens)]
        row += [*_shown(saved.energy_j), f"{percent} %", percents]
        times = [getattr(cost, name) for name in columns]
        row += ["-" if seconds is None else f"{_figures(seconds, 3)} s" for seconds in times]
        if advice.costs.rate_per_s is not None:
            idle, watts = 100 * (cost.idle_s or 0.0) * advice.costs.rate_per_s, _break_even_idle_w(advice, option)
            row += [_figures(cost.in_flight, 3), f"{idle:.0f} %", "-" if watts is None else f"{watts:.0f} W"]
        rows.append(row)
    if len(rows) == 1:
        return ["There are no what-ifs to list."]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _even_sentences(evens: Sequence[BreakEven]) -> list[str]:
    """One sentence for each what-if with break-even points."""
    together: dict[tuple[str, int], list[BreakEven]] = {}
    for even in evens:
        together.setdefault((even.what_if, even.tokens or 0), []).append(even)
    sentences = []
    for (kind, number), group in together.items():
        places = [_place(even) for even in group if even.axis != "uses"]
        known = ", ".join(place for place, defined in places if defined)
        unknown = "".join(f"; {place}" for place, defined in places if not defined)
        if kind == "summarise":
            uses = group[0]
            often = f"if a summary is used {uses.value or 0:,} times or more"
            pays = {None: "never pays off", 1: "pays off at its first use"}.get(uses.value, f"pays off {often}")
            once_ = f"; used once, it pays off {known}" if known and uses.value != 1 else ""
            sentences.append(
                f"Summarising to {number:,} tokens ({_running(uses.requests_in_flight)}) {pays}{once_}{unknown}"
            )
        elif kind == "split":
            pays = f" pays off {known}" if known else ""
            sentences.append(f"Splitting a reply in two ({_running(group[0].requests_in_flight)}){pays}{unknown}")
        else:
            met = f"The latency limit is met {known}" if known else "Latency limit"
            sentences.append(f"{met}{unknown}")
    return sentences


def _running(in_flight: float | None) -> str:
    assert in_flight is not None
    return f"batch {in_flight:,.0f}" if in_flight == int(in_flight) else f"{_figures(in_flight, 3)} in flight"


def _place(even: BreakEven) -> tuple[str, bool]:
    """Where a what-if pays off, and whether that is defined."""
    many, one, unit = {
        "output_tokens": ("replies", "replies", " tokens"),
        "input_tokens": ("prompts", "prompts", " tokens"),
        "batch": ("batches", "a batch", ""),
    }[even.axis]
    span = even.tried_from_to
    tried = f"{many} of {span[0]:,} to {span[1]:,}{unit}" if span else many
    at = "" if even.value is None else f"{one} of {even.value:,}{unit}"
    known = {
        "from": f"from {at} on",
        "until": f"up to {at}",
        "always": f"for all {tried}",
        "never": f"for none of the {tried}",
    }
    return known.get(even.where, f"its break-even point in {many} is {even.where}"), even.where in known


def extrapolations(cost: Cost, is_mix: bool) -> list[str]:
    """Why a cost extrapolates, without repeats; for a mix of lengths, the share of requests and an example."""
    outside = [(weight, ask, part) for (ask, _), (weight, part) in cost.parts.items() if part.extrapolates]
    if not is_mix or not outside:
        return list(dict.fromkeys(reason for _, _, part in outside for reason in part.extrapolates))
    share = sum(weight for weight, _, _ in outside) / sum(weight for weight, _ in cost.parts.values())
    _, ask, part = max(outside, key=lambda item: item[0])
    return [
        f"{100 * share:.2g} % of the predicted requests lie outside the measured cells, for example "
        f"{ask.input_tokens:,} input and {ask.output_tokens:,} output tokens: {'; '.join(part.extrapolates)}"
    ]


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor)


def _shown(interval: Interval, digits: int = 4) -> tuple[str, str]:
    """The value and its interval, rounded to the same decimal place."""
    places = _places(max(abs(interval.value), abs(interval.low), abs(interval.high)), digits)
    value, low, high = (_rounded(number, places) for number in (interval.value, interval.low, interval.high))
    return value, f"{low} to {high}"


def _figures(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits, never with an exponent."""
    return _rounded(value, _places(value, digits))


def _places(value: float, digits: int) -> int:
    return digits - 1 - int(f"{value:e}".split("e")[1])


def _rounded(value: float, places: int) -> str:
    return f"{round(value, places) + 0.0:,.{max(places, 0)}f}"  # + 0.0 turns -0.0 into 0.0
