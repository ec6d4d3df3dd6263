"""Formats advice as JSON, and that as text."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sweetspot.predict.advise import Advice
from sweetspot.predict.costs import Cost
from sweetspot.predict.prediction import Interval
from sweetspot.vocabulary import LEVEL, SELECTORS, SIMULATED, UNSAID

_KWH_PER_1000 = 1000 / 3.6e6
_ASSUMED = (
    "gross energy of the GPU board: includes idle power, excludes the host and the cooling",
    "every request is assumed to run in a batch of equal ones that start together; latency is that of the whole run, "
    "and of the wait for a full batch at a request rate; limits on time are judged by best estimates",
    "intervals: errors add within a sum and are independent between the two sides of a saving; the sensors' common "
    "gain error cancels in percentages",
    "only joules are counted: check yourself that a truncated prompt, a summary or a shorter reply is good enough",
)
_USED_UP = "idle_power_that_uses_the_saving_up_w"
_TIMES = {"latency_s": "latency", "ttft_p95_s": "first token", "tpot_p95_s": "further token"}
_AXES = {
    "output_tokens": ("replies", "replies", " tokens"),
    "input_tokens": ("prompts", "prompts", " tokens"),
    "batch": ("batches", "a batch", ""),
}
_WHERE = {
    "from": "from {one} of {value:,}{unit} on",
    "until": "up to {one} of {value:,}{unit}",
    "always": "for all {many} of {low:,} to {high:,}{unit}",
    "never": "for none of the {many} of {low:,} to {high:,}{unit}",
}


def as_dict(advice: Advice) -> dict[str, Any]:
    """For JSON, with units in the names. The best options come first, excluded ones last."""
    costs, load, now, wishes = advice.costs, advice.workload, advice.now, advice.wishes
    options = []
    for option in (*advice.ranked, *advice.excluded):
        number = "batch" if option.kind == "batches" else "tokens"
        known: dict[str, Any] = {
            "what_if": option.kind,
            "name": option.name,
            "excluded": option.excluded,
            number: option.number,
        }
        if option.cost is not None and option.saving is not None:
            saved = option.saving.energy_j
            more_s = (option.cost.gpu_idle_per_request_s or 0.0) - (now.gpu_idle_per_request_s or 0.0)
            known |= _cost(advice, option.cost) | saved.named("saving_per_request{}_j")
            known |= option.saving.percent.named("saving{}_percent") | _per_1000(advice, saved, "saving", "saving")
            # None if the GPU idles no more than now, or nothing is saved.
            known[_USED_UP] = saved.value / more_s if more_s > 0 and saved.value > 0 else None
        options.append(known)
    every = [now, *(option.cost for option in advice.options if option.cost is not None)]
    predictions = [part for cost in every for _, part in cost.parts.values()]
    return {
        **{name: costs.group[name] for name in ("model", *SELECTORS, "source")},
        "law": predictions[0].law,
        "summariser": costs.summariser["model"],
        "workload": {
            "requests": load.requests,
            "length_pairs": len(load.lengths),
            "mean_input_tokens": load.input_tokens,
            "mean_output_tokens": load.output_tokens,
            "request_rate_per_s": wishes.rate_per_s,
            **{name: getattr(wishes, name) for name in ("max_latency_s", "max_ttft_s", "max_tpot_s", "grid_g_per_kwh")},
        },
        "now": _cost(advice, now),
        "sweet_spot": _sweet_spot(advice),
        "what_ifs": options,
        "break_evens": [asdict(even) for even in advice.break_evens],
        "warnings": [*_once(warning for part in predictions for warning in part.warnings), *advice.notes],
        "assumptions": _ASSUMED,
    }


def _cost(advice: Advice, cost: Cost) -> dict[str, Any]:
    energy_j = cost.energy_j
    return {
        **energy_j.named("energy_per_request{}_j"),
        **_per_1000(advice, energy_j, "energy", "carbon"),
        "energy_per_output_token_j": energy_j.value / cost.reply_tokens,
        **{name: value for name, value in vars(cost).items() if name != "parts"},
        "extrapolates": extrapolations(cost, advice.workload.is_mix),
    }


def _per_1000(advice: Advice, energy_j: Interval, energy: str, carbon: str) -> dict[str, Any]:
    """Energy per 1,000 requests in kWh and, if the user named a grid, its carbon in grams, by these names."""
    kwh, grid = energy_j.times(_KWH_PER_1000), advice.wishes.grid_g_per_kwh
    numbers = kwh.named(energy + "_per_1000_requests{}_kwh")
    return numbers | (kwh.times(grid).named(carbon + "_per_1000_requests{}_g_co2e") if grid else {})


def _sweet_spot(advice: Advice) -> dict[str, Any]:
    spot, now, least = advice.spot, advice.now, advice.spot.energy_per_output_token_j
    inside, status = least if spot.status == "interior" else None, spot.status
    if status == "not identified":
        status += ": the measured cells do not determine it"
    elif not inside:
        low, high = advice.costs.group["measured_range"]["output_tokens"]
        way = "falls or rises" if spot.output_tokens is None else "falls" if spot.output_tokens > high else "rises"
        status = f"none inside the measured {low:,}-{high:,} output tokens: the energy per token {way} throughout"
    return {
        "input_tokens": advice.workload.input_tokens,
        "requests_in_flight": now.requests_in_flight,
        "output_tokens": spot.reply if inside else None,
        "plateau_output_tokens": spot.plateau if inside else None,
        "energy_per_output_token_j": inside,
        "times_above": now.energy_j.value / now.reply_tokens / inside if inside else None,
        "status": status,
    }


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


def as_text(advice: Advice) -> str:
    """For people, the numbers of `as_dict`: the cost now, a table of the what-ifs, break-even points and caveats."""
    said = as_dict(advice)
    now, ranked = said["now"], [option for option in said["what_ifs"] if not option["excluded"]]
    where = ", ".join(said[name] for name in SELECTORS if said[name] not in UNSAID)
    label = SIMULATED.get(said["source"])
    lines = [f"{label}: every number below comes from a simulated GPU, none from a measurement"] if label else []
    lines += [said["model"] + (f" ({where})" if where else ""), *_now(advice, said)]
    lines += ["", *_verdict(advice, ranked), "", *_table(said, ranked)]
    if advice.excluded:
        lines += ["", "Excluded", *(f"- {option.name}: {option.excluded}" for option in advice.excluded)]
    if advice.break_evens:
        lines += ["", "Break-even points (best estimates)", *_evens(said["break_evens"])]
    every = list(dict.fromkeys(reason for cost in (now, *ranked) for reason in cost["extrapolates"]))
    lines += ["", *(f"* extrapolates: {reason}" for reason in (_once(every) if advice.workload.is_mix else every))]
    if now["extrapolates"]:
        lines.append("* today's workload already extrapolates, so every saving does")
    if any(option[_USED_UP] is not None for option in ranked):
        lines.append("used up at: the idle power of the GPU that would use up the saving, as the GPU then idles more")
    others = [warning for warning in said["warnings"] if not (label and warning.startswith(label))]
    return "\n".join([*lines, *(f"note: {text}" for text in (*others, *_ASSUMED))])


def _now(advice: Advice, said: Mapping[str, Any]) -> list[str]:
    now, load, rate, spot = said["now"], advice.workload, advice.wishes.rate_per_s, said["sweet_spot"]
    asked = f"{load.input_tokens:,} input and {load.output_tokens:,} output tokens"
    if load.is_mix:
        asked = f"{load.requests:,} requests of {len(load.lengths):,} length pairs, on average {asked}"
    running = ("" if rate is None else f"{rate:g} requests/s keep ") + _running(now["requests_in_flight"])
    lines = [f"Now: {asked}; {running}" + " *" * bool(now["extrapolates"])]
    units = ["J per request {}, gross energy of the GPU board", "kWh per 1,000 requests {}"]
    units += (
        [f"g CO2e per 1,000 requests {{}}, at your {grid:g} g/kWh"] if (grid := advice.wishes.grid_g_per_kwh) else []
    )
    names = ("energy_per_request{}_j", "energy_per_1000_requests{}_kwh", "carbon_per_1000_requests{}_g_co2e")
    for unit, (value, ends) in zip(units, (_shown(now, name) for name in names), strict=False):
        lines.append(f"  {value} {unit.format(f'({LEVEL}: {ends})')}")
    if now["latency_s"] is not None:
        faster = " (19 in 20 are faster)" if load.is_mix else ""
        lines.append(f"  {_figures(now['latency_s'], 3)} s from start to end of a request{faster}")
    if now["ttft_p95_s"] is not None:
        each = f" and {_figures(now['tpot_p95_s'], 3)} s for each further one" if now["tpot_p95_s"] else ""
        lines.append(f"  {_figures(now['ttft_p95_s'], 3)} s to the first token{each} (19 in 20 requests are faster)")
    broken = [limit.broken_by(advice.now, most_s) for limit, most_s in advice.wishes.limits]
    lines += [f"  not allowed: {reason}" for reason in broken if reason]
    if advice.costs.apart and any(option.kind == "summarise" for option in advice.options):
        lines.append(f"  summaries below are by {said['summariser']}, on a GPU of its own")
    here = f"  {_figures(now['energy_per_output_token_j'])} J per output token"
    at = f"sweet spot at {'the mean' if load.is_mix else 'this'} prompt of {load.input_tokens:,} tokens"
    if not spot["times_above"]:
        return [*lines, f"{here}; {at}: {spot['status']}"]
    low, high = spot["plateau_output_tokens"]
    each = f"{spot['output_tokens']:,} output tokens, {_figures(spot['energy_per_output_token_j'])} J each"
    lines.append(f"{here}, {_figures(spot['times_above'], 3)} times that of the sweet spot")
    return [*lines, f"  {at}: {each} (within 1 % from {low:,} to {high:,})"]


def _verdict(advice: Advice, ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The best option, and the best that leaves prompts and replies unchanged."""
    good = [option for option in ranked if option["saving_per_request_low_j"] > 0]
    if not good:
        return ["Nothing listed clearly saves energy" + (" within the latency limit." if advice.wishes.limits else ".")]
    same = next((option for option in good if option["what_if"] == "batches"), good[0])
    shown = [("Best", good[0]), ("With prompts and replies unchanged", same)][: 1 if same is good[0] else 2]
    return [
        f"{label}: {option['name']}, saves {_figures(option['saving_percent'], 3)} %, "
        f"{_figures(option['saving_per_1000_requests_kwh'], 3)} kWh per 1,000 requests"
        + ("." if option[_USED_UP] is None else ", idle draw not counted (see the table).")
        for label, option in shown
    ]


def _table(said: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    if not ranked:
        return ["There are no what-ifs to list."]
    load, rate = said["workload"], said["workload"]["request_rate_per_s"]
    shown = (said["now"]["latency_s"], load["max_ttft_s"], load["max_tpot_s"])
    times = [name for name, known in zip(_TIMES, shown, strict=True) if known is not None]
    rows = [["what if", "J/request", "J/token", "saves J", f"({LEVEL})", "saves", f"({LEVEL})"]]
    rows[0] += [_TIMES[name] for name in times] + ["in flight", "GPU idle", "used up at"] * (rate is not None)
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


def _evens(evens: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """One sentence for each what-if with break-even points, which stand together."""
    for (kind, tokens), found in itertools.groupby(evens, key=lambda even: (even["what_if"], even["tokens"])):
        known, unknown, uses = [], "", None
        for even in found:
            if even["axis"] == "uses":
                uses = even["value"]
                continue
            many, one, unit = _AXES[even["axis"]]
            low, high = even["tried_from_to"]
            if even["where"] in _WHERE:
                words = {"many": many, "one": one, "unit": unit, "low": low, "high": high, "value": even["value"]}
                known.append(_WHERE[even["where"]].format(**words))
            else:
                unknown += f"; its break-even point in {many} is {even['where']}"
            running = even["requests_in_flight"]
        where = ", ".join(known)
        if kind == "latency":
            text = f"The latency limit is met {where}" if known else "Latency limit"
        elif kind == "split":
            text = f"Splitting a reply in two ({_running(running)})" + (f" pays off {where}" if known else "")
        else:
            often = f"pays off if a summary is used {uses or 0:,} times or more"
            often = {None: "never pays off", 1: "pays off at its first use"}.get(uses, often)
            text = f"Summarising to {tokens:,} tokens ({_running(running)}) {often}"
            text += f"; used once, it pays off {where}" if known and uses != 1 else ""
        yield f"- {text}{unknown}."


def _once(texts: Iterable[str]) -> list[str]:
    """The texts without repeats; of those that differ only in numbers, the first and how many more there are."""
    alike: dict[str, dict[str, None]] = {}
    for text in texts:
        alike.setdefault(re.sub(r"\d[\d.]*", "#", text), {})[text] = None
    return [
        next(iter(group)) + (f" (and {len(group) - 1} more of this kind)" if len(group) > 1 else "")
        for group in alike.values()
    ]


def _running(in_flight: float) -> str:
    return f"batch {in_flight:,.0f}" if in_flight == int(in_flight) else f"{_figures(in_flight, 3)} in flight"


def _shown(numbers: Mapping[str, Any], name: str, digits: int = 4) -> tuple[str, str]:
    """A number and its interval, named as by `Interval.named`, rounded to the same decimal place."""
    found = [numbers[name.format(part)] for part in ("", "_low", "_high")]
    value, low, high = (_figures(number, digits, max(map(abs, found))) for number in found)
    return value, f"{low} to {high}"


def _figures(value: float, digits: int = 4, like: float | None = None) -> str:
    """A number with the decimal places that give `like` (or itself) these significant digits, never an exponent."""
    places = digits - 1 - int(f"{value if like is None else like:e}".split("e")[1])
    return f"{round(value, places) + 0.0:,.{max(places, 0)}f}"  # + 0.0 turns -0.0 into 0.0
