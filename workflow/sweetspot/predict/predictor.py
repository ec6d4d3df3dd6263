"""Predicts energy and time of a request from a fitted predictor.json. Standard library only, so it starts at once."""

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically
from sweetspot.predict.intervals import Place, around, gap, of_distance, of_law, scatter
from sweetspot.predict.latency import LAWS as LATENCY_LAWS
from sweetspot.predict.latency import latencies
from sweetspot.predict.laws import LAWS, Law, per_token
from sweetspot.predict.prediction import Interval, Prediction, check_request, listed, outside, simulated
from sweetspot.predict.sweet_spots import SweetSpot
from sweetspot.predict.sweet_spots import sweet_spot as search
from sweetspot.vocabulary import SELECTORS

KIND, SCHEMA_VERSION = "sweetspot-predictor", 5
_NEXT_TO_NOTHING = 0.05  # share of the energy
UNKNOWN = 0.95  # relative half-width of an interval from which on a request is refused: it all but includes 0
_LARGEST = 1e100  # of a number in a predictor; products of larger ones overflow
_SCHEMA = Path(__file__).with_name("predictor.schema.json")
_AGAIN = "make it again with `sweetspot fit`"


def write(predictor: Mapping[str, Any], path: Path) -> None:
    """Write a predictor atomically, with the digest by which `load` tells that nobody changed it."""
    content = {**predictor, "digest": _digest(predictor)}
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read a predictor. Raises SweetspotError for a file that is missing, cut short, damaged, or not a predictor.

    A file without the digest of its content was changed after `write`. It must obey the published schema, and every
    prediction then says so.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refused, parse_float=_finite)
    except OSError as error:
        raise SweetspotError(f"{path}: cannot be read ({error.strerror}); make it with `sweetspot fit`") from None
    except (ValueError, RecursionError) as error:
        raise SweetspotError(f"{path}: not complete JSON ({error}); {_AGAIN}") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise SweetspotError(f"{path}: not a predictor; give the predictor.json that `sweetspot fit` made")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise SweetspotError(
            f"{path}: schema version {content.get('schema_version')}, but this sweetspot reads {SCHEMA_VERSION}; make "
            "it again from the same rows with `sweetspot fit`, or use the version of sweetspot that made it"
        )
    if content.pop("digest", None) != _digest(content):
        _check(path, content)
        said = content.get("table_warnings", [])
        content["table_warnings"] = [*said, f"{path.name} was changed after `sweetspot fit` wrote it"]
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def _refused(number: str) -> float:
    raise ValueError(f"{number} is no number")


def _finite(text: str) -> float:
    if abs(number := float(text)) > _LARGEST:
        raise ValueError(f"{text} is too large")
    return number


def _check(path: Path, content: Mapping[str, Any]) -> None:
    """Raise SweetspotError unless the content obeys the schema, and its laws are those of this version."""
    try:
        import fastjsonschema  # not needed for a file as `fit` wrote it, nor there in an engine's environment
    except ImportError:
        raise SweetspotError(f"{path}: was changed; to check it, pip install fastjsonschema; or {_AGAIN}") from None
    try:
        fastjsonschema.compile(json.loads(_SCHEMA.read_text()))(content)
    except fastjsonschema.JsonSchemaValueException as error:
        raise SweetspotError(f"{path}: damaged: {error.message}; {_AGAIN}") from None
    laws: dict[str, Law] = {**LAWS, **LATENCY_LAWS}
    for group in content["groups"]:
        fits = [(name, fit) for name, several in group["laws"].items() for fit in several]
        for name, fit in [*fits, *((fit["law"], fit) for fit in group.get("latency", {}).values())]:
            if name not in laws:
                raise SweetspotError(
                    f"{path}: this sweetspot does not know the law {name}; use the version that made it"
                )
            known = {term.name for term in laws[name].terms}
            if "terms" in fit and not (fit["terms"].keys() == known and _is_square(fit["covariance"], len(known))):
                raise SweetspotError(f"{path}: damaged: the terms of {name} do not fit together; {_AGAIN}")


def _is_square(rows: Sequence[Sequence[float]], size: int) -> bool:
    return len(rows) == size and all(len(row) == size for row in rows)


def predict(
    predictor: Mapping[str, Any],
    model: str,
    input_tokens: int,
    output_tokens: int,
    batch: float | None = None,
    gpu: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    parallelism: str | None = None,
    refuse_unknown: bool = True,
) -> Prediction:
    """The energy of one request to `model`.

    `gpu`, `engine`, `precision` and `parallelism` choose among groups of the same model; part of a name is enough.
    `batch` defaults to the smallest measured one; a mean number of requests in flight need not be whole. Raises
    SweetspotError for an unknown model, an ambiguous choice, lengths or a batch below 1, a batch that no fitted law
    covers, or (if it shall `refuse_unknown`) a request about which the measured cells say next to nothing.
    """
    choice = {"gpu": gpu, "engine": engine, "precision": precision, "parallelism": parallelism}
    group = group_of(predictor["groups"], model, choice)
    warnings = []
    if batch is None:
        batch = min(group["batches"])
        if len(group["batches"]) > 1:
            warnings.append(f"no batch given: assuming {batch}, the smallest of {listed(group['batches'])}")
    check_request(input_tokens, output_tokens, batch, group["limit"])
    if group["law"] is None:
        raise SweetspotError(f"{group['model']}: {group['chosen_because']}{_other_way(predictor, group['model'])}")
    fit = _fit_for(group, batch, warnings)
    warnings += [*simulated(group["source"]), *predictor.get("table_warnings", [])]
    law = LAWS[fit["law"]]
    most, times, fewest = _possible_waves(group["kv_capacity"], input_tokens + output_tokens, batch)
    if times > 1:
        warnings.append(f"the KV cache cannot hold {batch:g} such requests at once: they run in {times} waves")
    place = (input_tokens, output_tokens, batch / times, chosen(group))
    extrapolates = _outside(group, input_tokens, output_tokens, batch, times)
    values = {name: term["value"] for name, term in fit["terms"].items()}
    per_output_token = per_token(law, values, *place)
    if per_output_token <= 0:
        raise SweetspotError(
            f"{law.name} gives no positive energy here ({'; '.join(extrapolates) or 'inside its range'}); "
            "ask for a request closer to the measured cells"
        )
    if silent := _from_prior(law, fit, per_output_token, place):
        warnings.append(silent)
    parts = {
        "law": of_law(law, fit, per_output_token, output_tokens * batch, *place),
        "distance": of_distance(group, fit, input_tokens, output_tokens, batch, place[2]),
    }
    if group["sensor_gain"] is not None:
        parts["sensor_gain"] = group["sensor_gain"]
    half = math.hypot(*parts.values())
    ends = [(*place[:2], batch / number, place[3]) for number in (fewest, most)]
    if fewest < most:  # the interval then extends as far around the energy at the other number
        apart = _apart(law, values, place, ends)
        parts["waves"] = math.sqrt(apart * (apart + 2 * half))
        half += apart
        extrapolates.append(f"the measured cells do not determine this batch's number of waves: {fewest} to {most}")
    energy_batch_j = per_output_token * output_tokens * batch
    if half >= UNKNOWN and refuse_unknown:
        pooled = _other_way(predictor, group["model"]) if is_pooled(predictor, group["model"]) else ""
        raise SweetspotError(
            f"{group['model']}: the measured cells do not determine the energy of {input_tokens} + {output_tokens} "
            f"tokens at batch {batch:g} (its interval is ±{half:.0%}); measure cells closer to it{pooled}"
        )
    again = group["repetition"]
    single = math.hypot(half, again["t_quantile_95"] * scatter(again, energy_batch_j)) if again else half
    return Prediction.of(
        group,
        (input_tokens, output_tokens, batch),
        around(energy_batch_j, half),
        _duration(law, fit, place, ends, batch, parts["distance"]),
        (group["idle_w"], group["power_cap_w"]),
        around(energy_batch_j, single),
        law=law.name,
        cells=group.get("cells", 0),
        waves=times,
        interval_parts=parts,
        extrapolates=extrapolates,
        warnings=warnings,
        latency_s=latencies(group, batch, place, ends),
    )


def sweet_spot(group: Mapping[str, Any], input_tokens: int, batch: float) -> SweetSpot:
    """The sweet spot by the chosen law of a group, after a prompt of `input_tokens` with `batch` requests in flight.

    "not identified" if the nearest of the fit's entries is. Raises SweetspotError if no fitted law covers the batch.
    """
    entries = group.get("sweet_spots", [])

    def distance(entry: Mapping[str, Any]) -> tuple[float, float]:
        return abs(math.log(entry["batch"] / batch)), abs(math.log(entry["input_tokens"] / input_tokens))

    if not entries or min(entries, key=distance)["status"] == "not identified":
        return SweetSpot("not identified")
    fit, capacity = _fit_for(group, math.ceil(batch), []), group["kv_capacity"]
    values = {name: term["value"] for name, term in fit["terms"].items()}
    low, high = group["measured_range"]["output_tokens"]

    def waves_of(output_tokens: int) -> int:
        return waves(capacity, input_tokens + output_tokens, math.ceil(batch))

    law, share = LAWS[fit["law"]], chosen(group)
    return search(law, values, input_tokens, batch, (low, high), waves_of if capacity else None, share)


def group_of(groups: Sequence[dict[str, Any]], model: str, wanted: Mapping[str, str | None]) -> dict[str, Any]:
    """The group of a model. Raises SweetspotError unless exactly one has what is `wanted`, by vocabulary.SELECTORS."""
    found = [group for group in groups if group["model"].casefold() == model.casefold()]
    if not found:
        raise SweetspotError(f"no model {model!r} in this predictor{_suggest(model, {g['model'] for g in groups})}")
    for name, value in wanted.items():
        if value is not None:
            exact = [group for group in found if group[name].casefold() == value.casefold()]
            partial = [group for group in found if value.casefold() in group[name].casefold()]
            if not exact and not partial:
                there = sorted({group[name] for group in found})
                raise SweetspotError(f"{model}: no {name} {value!r} in this predictor; there is {listed(there)}")
            found = exact or partial
    if len(found) > 1:
        names = [name for name in SELECTORS if len({group[name] for group in found}) > 1]
        choices = "\n".join("  " + " ".join(f"--{name} {group[name]!r}" for name in names) for group in found)
        raise SweetspotError(f"{model} was measured in several ways; choose one:\n{choices}")
    return found[0]


def is_pooled(predictor: Mapping[str, Any], model: str) -> bool:
    """Whether the law across models was fitted to cells of the model."""
    return any(model in entry.get("models", {}) for entry in predictor.get("across_models", []) if not entry["reason"])


def _other_way(predictor: Mapping[str, Any], model: str) -> str:
    """How the law across models can predict a model that has too few cells of its own."""
    if is_pooled(predictor, model):
        return "; the law across models uses its cells and predicts it: give its config.json with --architecture FILE"
    return "; `sweetspot fit --architectures DIR` fits a law across models, which needs fewer cells"


def _fit_for(group: Mapping[str, Any], batch: float, warnings: list[str]) -> dict[str, Any]:
    """The fit that covers `batch`: that of the chosen law, otherwise that of the law for every batch."""
    for name in (group["law"], group["law_any_batch"]):
        for fit in group["laws"].get(name, ()):
            chosen = name == group["law"] and fit["batch"] == batch
            if "skipped" not in fit and (chosen or fit["batch"] is None):
                if batch not in group["batches"]:
                    warnings.append(
                        f"batch {batch:g} was not measured: predicted by {name} from {listed(group['batches'])}"
                    )
                elif name != group["law"]:
                    warnings.append(f"{group['law']} was not fitted for batch {batch:g}: predicted by {name}")
                return dict(fit)
    raise SweetspotError(
        f"{group['model']}: nothing fitted for batch {batch:g}; measured: {listed(group['batches'])} "
        "(a batch between them needs a law fitted to two batches or more)"
    )


def waves(full: Sequence[Mapping[str, Any]], total_tokens: int, batch: float) -> int:
    """How many times the KV cache is filled, from the lengths at which it was full (`kv_capacity` of a group)."""
    return _possible_waves(full, total_tokens, batch)[1]


def _possible_waves(full: Sequence[Mapping[str, Any]], total_tokens: int, batch: float) -> tuple[int, int, int]:
    """The most waves that the cells allow, the likely number, and the fewest."""
    if not full:
        return 1, 1, 1
    # The capacity is interpolated between lengths, because with a sliding window a long request caches fewer tokens
    # than it has.
    points = [(entry["total_tokens"], entry["tokens"]) for entry in full]
    after = next((point for point in points if point[0] > total_tokens), points[-1])
    before = next((point for point in reversed(points) if point[0] <= total_tokens), after)
    share = (total_tokens - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    least, likely, below = (x + (y - x) * share for x, y in zip(before[1], after[1], strict=True))
    held = int(least / total_tokens), int(likely / total_tokens), math.ceil(below / total_tokens) - 1
    most, times, fewest = (math.ceil(batch / max(1, together)) for together in held)
    return most, times, fewest


def _outside(group: Mapping[str, Any], n: int, m: int, batch: float, times: int) -> list[str]:
    asked = {
        **{"input_tokens": n, "output_tokens": m, "batch": batch, "total_tokens": n + m},
        "tokens_in_flight": batch / times * (n + m),
    }
    reasons: dict[str, str] = {}
    for name, value in asked.items():
        if reason := outside(name, value, *group["measured_range"][name]):
            reasons[name] = reason
    if reasons.keys() & {"input_tokens", "output_tokens"}:
        reasons.pop("total_tokens", None)  # redundant
    if reasons.keys() & {"input_tokens", "output_tokens", "batch", "total_tokens"}:
        reasons.pop("tokens_in_flight", None)
    if not reasons and (octaves := gap(group, n, m, batch)):
        reasons["cells"] = f"no cell combines such lengths and batch: the nearest is a factor of {2**octaves:.0f} away"
    return list(reasons.values())


def _from_prior(law: Law, fit: Mapping[str, Any], energy: float, place: Place) -> str:
    """What part of a prediction rests on coefficients that the cells do not determine; "" if next to nothing does."""
    shares = {
        term.name: fit["terms"][term.name]["value"] * term.value(*place) / energy
        for term in law.terms
        if fit["terms"][term.name]["from_prior"]
    }
    if (total := sum(shares.values())) < _NEXT_TO_NOTHING:
        return ""
    names = listed([name for name, share in shares.items() if share > 0])
    return f"{total:.0%} of the energy ({names}) is not determined by the cells: it is what such GPUs make likely"


def chosen(group: Mapping[str, Any]) -> float:
    """The share of a mixture's experts that one token activates; 1 for a dense model."""
    mixture = group["experts"]
    return float(mixture["per_token"] / mixture["experts"]) if mixture else 1.0


def _duration(
    law: Law, fit: Mapping[str, Any], place: Place, ends: Sequence[Place], batch: float, distance: float
) -> Interval | None:
    """The time of a batch run; its interval is the scatter of the cells' durations, widened like that of the energy."""
    timed = fit["duration"]
    seconds = per_token(law, timed["terms"], *place) * place[1] * batch if timed else 0.0
    if seconds <= 0:
        return None
    own = timed["t_quantile_95"] * scatter(timed, seconds) * fit["interval_scale"]
    return around(seconds, math.hypot(own, distance) + _apart(law, timed["terms"], place, ends))


def _apart(law: Law, values: Mapping[str, float], place: Place, ends: Sequence[Place]) -> float:
    """The largest relative difference between the law's values at `ends` and at `place`."""
    return max(abs(per_token(law, values, *end) / per_token(law, values, *place) - 1) for end in ends)


def _suggest(name: str, known: set[str]) -> str:
    plain = {model.casefold(): model for model in sorted(known)}
    close = [model for key, model in plain.items() if name.casefold() in key]
    close = close or [plain[key] for key in difflib.get_close_matches(name.casefold(), plain, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(close[:3])}?" if close else f"; there is {listed(sorted(known))}"
