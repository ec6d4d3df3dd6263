"""Formats advice as text and as JSON."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sweetspot.predict.advise import Advice, BreakEven, once
from sweetspot.predict.costs import Cost, Saving
from sweetspot.predict.prediction import Interval
from sweetspot.vocabulary import LEVEL, SELECTORS, SIMULATED, UNSAID

_J_PER_KWH = 3.6e6
_USED_UP = "idle_power_that_uses_the_saving_up_w"
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
    first, load, spot, above = advice.first, advice.workload, advice.spot, advice.times_above
    options = []
    for option in (*advice.ranked, *advice.excluded):
        number = "batch" if option.kind == "batches" else "tokens"
        known = {"what_if": option.kind, "name": option.name, "excluded": option.excluded, number: option.number}
        if option.cost is not None and option.saving is not None:
            known |= _cost_dict(advice, option.cost) | _saving_dict(advice, option.cost, option.saving)
        options.append(known)
    return {
        **{name: getattr(first, name) for name in ("model", *SELECTORS, "source", "law")},
        "summariser": advice.costs.summariser,
        "workload": {
            "requests": load.requests,
            "length_pairs": len(load.lengths),
            "mean_input_tokens": load.input_tokens,
            "mean_output_tokens": load.output_tokens,
            "request_rate_per_s": advice.costs.rate_per_s,
            **{name: getattr(advice.wishes, name) for name in ("max_latency_s", "max_ttft_s", "max_tpot_s")},
            "grid_g_per_kwh": advice.wishes.grid_g_per_kwh,
        },
        "now": _cost_dict(advice, advice.now),
        "sweet_spot": {
            "input_tokens": load.input_tokens,
            "requests_in_flight": advice.now.in_flight,
            "output_tokens": spot.reply if above else None,
            "plateau_output_tokens": spot.plateau if above else None,
            "energy_per_output_token_j": spot.energy_per_output_token_j if above else None,
            "times_above": above,
            "status": spot.status if above else _no_spot(advice),
        },
        "what_ifs": options,
        "break_evens": [asdict(even) for even in advice.break_evens],
        "warnings": advice.warnings,
        "assumptions": _ASSUMED,
    }


def as_text(advice: Advice) -> str:
    """For people, the numbers of `as_dict`: the cost now, a table of the what-ifs, break-even points and caveats."""
    said, is_mix = as_dict(advice), advice.workload.is_mix
    now, ranked = said["now"], [option for option in said["what_ifs"] if not option["excluded"]]
    where = ", ".join(said[name] for name in SELECTORS if said[name] not in UNSAID)
    label = SIMULATED.get(said["source"])
    lines = [f"{label}: every number below comes from a simulated GPU, none from a measurement"] if label else []
    lines += [said["model"] + (f" ({where})" if where else ""), *_now_lines(advice, said)]
    lines += ["", *_verdict(advice, ranked), "", *_table(said, ranked)]
    if advice.excluded:
        lines += ["", "Excluded", *(f"- {option.name}: {option.excluded}" for option in advice.excluded)]
    if advice.break_evens:
        lines += ["", "Break-even points (best estimates)"]
        lines += [f"- {sentence}." for sentence in _even_sentences(advice.break_evens)]
    every = dict.fromkeys(reason for cost in (now, *ranked) for reason in cost["extrapolates"])
    lines += ["", *(f"* extrapolates: {reason}" for reason in (once(every) if is_mix else every))]
    if now["extrapolates"]:
        lines.append("* today's workload already extrapolates, so every saving does")
    if any(option[_USED_UP] is not None for option in ranked):
        lines.append("used up at: the idle power of the GPU that would use up the saving, as the GPU then idles more")
    others = [warning for warning in said["warnings"] if not (label and warning.startswith(label))]
    return "\n".join([*lines, *(f"note: {text}" for text in (*others, *_ASSUMED))])


def _cost_dict(advice: Advice, cost: Cost) -> dict[str, Any]:
    return {
        **cost.energy_j.named("energy_per_request{}_j"),
        **_per_1000(advice, cost.energy_j, "energy", "carbon"),
        "energy_per_output_token_j": cost.energy_j.value / cost.reply_tokens,
        "latency_s": cost.latency_s,
        "ttft_p95_s": cost.ttft_s,
        "tpot_p95_s": cost.tpot_s,
        "requests_in_flight": cost.in_flight,
        "summaries_in_flight": cost.summary_in_flight if advice.costs.apart else None,
        "gpu_idle_per_request_s": cost.idle_s,
        "extrapolates": extrapolations(cost, advice.workload.is_mix),
    }


def _saving_dict(advice: Advice, cost: Cost, saving: Saving) -> dict[str, Any]:
    """The idle power that would use up the saving is None if the GPU idles no more than now, or nothing is saved."""
    more_s, saved_j = (cost.idle_s or 0.0) - (advice.now.idle_s or 0.0), saving.energy_j.value
    return {
        **saving.energy_j.named("saving_per_request{}_j"),
        **saving.percent.named("saving{}_percent"),
        **_per_1000(advice, saving.energy_j, "saving", "saving"),
        _USED_UP: saved_j / more_s if more_s > 0 and saved_j > 0 else None,
    }


def _per_1000(advice: Advice, energy_j: Interval, energy: str, carbon: str) -> dict[str, Any]:
    """Energy per 1,000 requests in kWh and, if the user named a grid, its carbon in grams, by these names."""
    grid, kilo = advice.wishes.grid_g_per_kwh, 1000 / _J_PER_KWH
    numbers = _scaled(energy_j, kilo).named(energy + "_per_1000_requests{}_kwh")
    return numbers | (_scaled(energy_j, kilo * grid).named(carbon + "_per_1000_requests{}_g_co2e") if grid else {})


def _now_lines(advice: Advice, said: Mapping[str, Any]) -> list[str]:
    now, load, rate = said["now"], advice.workload, advice.costs.rate_per_s
    asked = f"{load.input_tokens:,} input and {load.output_tokens:,} output tokens"
    if load.is_mix:
        asked = f"{load.requests:,} requests of {len(load.lengths):,} length pairs, on average {asked}"
    running = _running(now["requests_in_flight"])
    running = running if rate is None else f"{rate:g} requests/s keep {running}"
    interval = f"({LEVEL}: {{}})"
    lines = [
        f"Now: {asked}; {running}" + " *" * bool(now["extrapolates"]),
        f"  {{}} J per request {interval}, gross energy of the GPU board".format(
            *_shown(now, "energy_per_request{}_j")
        ),
        f"  {{}} kWh per 1,000 requests {interval}".format(*_shown(now, "energy_per_1000_requests{}_kwh")),
    ]
    if grid := advice.wishes.grid_g_per_kwh:
        grams = _shown(now, "carbon_per_1000_requests{}_g_co2e")
        lines.append(f"  {{}} g CO2e per 1,000 requests {interval}, at your {grid:g} g/kWh".format(*grams))
    if now["latency_s"] is not None:
        faster = " (19 in 20 are faster)" if load.is_mix else ""
        lines.append(f"  {_figures(now['latency_s'], 3)} s from start to end of a request{faster}")
    if now["ttft_p95_s"] is not None:
        each = f" and {_figures(now['tpot_p95_s'], 3)} s for each further one" if now["tpot_p95_s"] else ""
        lines.append(f"  {_figures(now['ttft_p95_s'], 3)} s to the first token{each} (19 in 20 requests are faster)")
    lines += [f"  not allowed: {broken}" for limit in advice.wishes.limits if (broken := limit.broken_by(advice.now))]
    if advice.costs.apart and any(option.kind == "summarise" for option in advice.options):
        lines.append(f"  summaries below are by {said['summariser']}, on a GPU of its own")
    spot, here = said["sweet_spot"], f"  {_figures(now['energy_per_output_token_j'])} J per output token"
    at = f"sweet spot at {'the mean' if load.is_mix else 'this'} prompt of {load.input_tokens:,} tokens"
    if not spot["times_above"]:
        return [*lines, f"{here}; {at}: {spot['status']}"]
    low, high = spot["plateau_output_tokens"]
    each = f"{spot['output_tokens']:,} output tokens, {_figures(spot['energy_per_output_token_j'])} J each"
    lines.append(f"{here}, {_figures(spot['times_above'], 3)} times that of the sweet spot")
    return [*lines, f"  {at}: {each} (within 1 % from {low:,} to {high:,})"]


def _no_spot(advice: Advice) -> str:
    """Why no sweet spot can be given."""
    if advice.spot.status == "not identified":
        return "not identified: the measured cells do not determine it"
    low, high = advice.costs.group["measured_range"]["output_tokens"]
    way = "falls or rises"
    if advice.spot.output_tokens is not None:
        way = "falls" if advice.spot.output_tokens > high else "rises"
    return f"none inside the measured {low:,}-{high:,} output tokens: the energy per token {way} throughout"


def _verdict(advice: Advice, ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The best option, and the best that leaves prompts and replies unchanged."""
    good = [option for option in ranked if option["saving_per_request_low_j"] > 0]
    if not good:
        return ["Nothing listed clearly saves energy" + (" within the latency limit." if advice.wishes.limits else ".")]
    shown = {"Best": good[0]}
    same = next((option for option in good if option["what_if"] == "batches"), good[0])
    if same is not good[0]:
        shown["With prompts and replies unchanged"] = same
    lines = []
    for label, option in shown.items():
        saved = f"saves {_figures(option['saving_percent'], 3)} %"
        kilo = f"{_figures(option['saving_per_1000_requests_kwh'], 3)} kWh per 1,000 requests"
        idle = "" if option[_USED_UP] is None else ", idle draw not counted (see the table)"
        lines.append(f"{label}: {option['name']}, {saved}, {kilo}{idle}.")
    return lines


def _table(said: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    if not ranked:
        return ["There are no what-ifs to list."]
    load, rate = said["workload"], said["workload"]["request_rate_per_s"]
    times = {"latency_s": "latency"} if said["now"]["latency_s"] is not None else {}
    times |= {"ttft_p95_s": "first token"} if load["max_ttft_s"] is not None else {}
    times |= {"tpot_p95_s": "further token"} if load["max_tpot_s"] is not None else {}
    head = ["what if", "J/request", "J/token", "saves J", f"({LEVEL})", "saves", f"({LEVEL})", *times.values()]
    rows = [head + ["in flight", "GPU idle", "used up at"] * (rate is not None)]
    for option in ranked:
        percent, percents = _shown(option, "saving{}_percent", 3)
        row = [option["name"] + " *" * bool(option["extrapolates"]), _figures(option["energy_per_request_j"])]
        row += [_figures(option["energy_per_output_token_j"]), *_shown(option, "saving_per_request{}_j")]
        row += [f"{percent} %", percents]
        row += ["-" if option[name] is None else f"{_figures(option[name], 3)} s" for name in times]
        if rate is not None:
            idle, watts = 100 * (option["gpu_idle_per_request_s"] or 0.0) * rate, option[_USED_UP]
            row += [_figures(option["requests_in_flight"], 3), f"{idle:.0f} %"]
            row += ["-" if watts is None else f"{watts:.0f} W"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _even_sentences(evens: Sequence[BreakEven]) -> list[str]:
    """One sentence for each what-if with break-even points, which stand together."""
    sentences = []
    for (kind, number), found in itertools.groupby(evens, key=lambda even: (even.what_if, even.tokens)):
        first, *others = group = list(found)
        places = [_place(even) for even in (others if kind == "summarise" else group)]
        known = ", ".join(place for place, defined in places if defined)
        unknown = "".join(f"; {place}" for place, defined in places if not defined)
        if kind == "latency":
            sentences.append((f"The latency limit is met {known}" if known else "Latency limit") + unknown)
            continue
        at = f"({_running(first.requests_in_flight)})"
        if kind == "split":
            sentences.append(f"Splitting a reply in two {at}{f' pays off {known}' if known else ''}{unknown}")
            continue
        often = f"pays off if a summary is used {first.value or 0:,} times or more"
        pays = {None: "never pays off", 1: "pays off at its first use"}.get(first.value, often)
        used_once = f"; used once, it pays off {known}" if known and first.value != 1 else ""
        sentences.append(f"Summarising to {number:,} tokens {at} {pays}{used_once}{unknown}")
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


def _shown(numbers: Mapping[str, Any], name: str, digits: int = 4) -> tuple[str, str]:
    """A number and its interval, named as by `Interval.named`, rounded to the same decimal place."""
    found = [numbers[name.format(part)] for part in ("", "_low", "_high")]
    places = _places(max(map(abs, found)), digits)
    value, low, high = (_rounded(number, places) for number in found)
    return value, f"{low} to {high}"


def _figures(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits, never with an exponent."""
    return _rounded(value, _places(value, digits))


def _places(value: float, digits: int) -> int:
    return digits - 1 - int(f"{value:e}".split("e")[1])


def _rounded(value: float, places: int) -> str:
    return f"{round(value, places) + 0.0:,.{max(places, 0)}f}"  # + 0.0 turns -0.0 into 0.0
