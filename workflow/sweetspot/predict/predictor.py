"""Predicting energy and time of a request from a fitted predictor.json. Standard library only: it starts at once."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically
from sweetspot.predict.laws import LAWS, Law, per_token

_KIND, _SCHEMA_VERSION = "sweetspot-predictor", 2
_UNSPECIFIED = "unspecified"  # as in table.py, which this module does not import: it needs the analysis packages
_SELECTORS = ("gpu", "engine", "precision")
_GROUP_KEYS = {
    *("model", *_SELECTORS, "source", "batches", "measured_range", "kv_capacity", "experts", "sensor_gain"),
    *("idle_w", "power_cap_w"),
    *("law", "law_any_batch", "chosen_because", "laws"),
}
_Place = tuple[float, float, float, float]  # input tokens, output tokens, requests in flight, share of the experts
_OVER_TDP, _UNDER_IDLE = 1.05, 0.95  # by how much the sensors' gain alone may pass them
_UNDETERMINED = 1.0  # relative error assumed where the cells do not know what the request needs


@dataclass(frozen=True)
class Prediction:
    """Energy of one request among `batch` equal ones, gross and of the whole board, with a 95 % prediction interval.

    `waves`: how often the KV cache is filled to run the whole batch. `duration_s` of the batch and mean `power_w` are
    None where the table had no durations. `interval_parts`: relative half widths of the interval's parts, which add in
    squares: scatter of cells about the law and its coefficients (calibrated on held-out cells), distance from the
    measured cells, the sensors' common gain where the table states it, which cancels between two predictions, and
    another number of waves where the cells do not tell.
    `extrapolates` lists in what the request lies outside the measured cells (empty: it does not). `warnings` says what
    was assumed.
    """

    model: str
    gpu: str
    engine: str
    precision: str
    source: str
    law: str
    input_tokens: int
    output_tokens: int
    batch: int
    energy_per_request_j: float
    energy_per_request_low_j: float
    energy_per_request_high_j: float
    energy_per_output_token_j: float
    energy_per_output_token_low_j: float
    energy_per_output_token_high_j: float
    energy_batch_j: float
    waves: int
    duration_s: float | None
    duration_low_s: float | None
    duration_high_s: float | None
    power_w: float | None
    interval_parts: dict[str, float]
    extrapolates: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For people: what was asked, the energies with their intervals, and every reservation."""
        where = ", ".join(part for part in (self.gpu, self.engine, self.precision) if part != _UNSPECIFIED)
        lines = [
            self.model + (f" ({where})" if where else ""),
            f"{self.input_tokens} input tokens, {self.output_tokens} output tokens, batch {self.batch}; law {self.law}",
            f"  per request       {self.energy_per_request_j:.4g} J  "
            f"(95 %: {self.energy_per_request_low_j:.4g} to {self.energy_per_request_high_j:.4g})",
            f"  per output token  {self.energy_per_output_token_j:.4g} J  "
            f"(95 %: {self.energy_per_output_token_low_j:.4g} to {self.energy_per_output_token_high_j:.4g})",
            f"  whole batch       {self.energy_batch_j:.4g} J"
            + (f" in {self.duration_s:.4g} s, {self.power_w:.0f} W" if self.duration_s and self.power_w else ""),
        ]
        lines += [f"extrapolates: {reason}" for reason in self.extrapolates]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def write(predictor: Mapping[str, Any], path: Path) -> None:
    """Write a predictor whole or not at all."""
    write_atomically(path, json.dumps(predictor, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read a predictor. Raises SweetspotError for a file that is missing, cut short, or not a predictor of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SweetspotError(f"{path}: cannot be read ({error.strerror}); make it with `sweetspot fit`") from None
    except ValueError as error:
        raise SweetspotError(f"{path}: not whole JSON ({error}); make it again with `sweetspot fit`") from None
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise SweetspotError(f"{path}: not a predictor; give the predictor.json that `sweetspot fit` made")
    version = content.get("schema_version")
    if version != _SCHEMA_VERSION:
        raise SweetspotError(
            f"{path}: schema version {version}, and this sweetspot reads {_SCHEMA_VERSION}; "
            "fit again, or use the sweetspot that made it"
        )
    if not isinstance(content.get("groups"), list) or not content["groups"]:
        raise SweetspotError(f"{path}: a predictor without groups; make it again with `sweetspot fit`")
    for number, group in enumerate(content["groups"], 1):
        if not isinstance(group, dict) or not group.keys() >= _GROUP_KEYS:
            raise SweetspotError(f"{path}: group {number} is not whole; make it again with `sweetspot fit`")
    return content


def predict(
    predictor: Mapping[str, Any],
    model: str,
    input_tokens: int,
    output_tokens: int,
    batch: int | None = None,
    gpu: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
) -> Prediction:
    """Energy of one request of `model`.

    `gpu`, `engine` and `precision` choose among groups of the same model; a part of the name will do. Without `batch`
    the smallest measured one is taken. Raises SweetspotError for an unknown model, a choice left open, lengths below 1,
    or a batch that no fitted law covers.
    """
    group = _group(predictor["groups"], model, {"gpu": gpu, "engine": engine, "precision": precision})
    warnings = []
    if batch is None:
        batch = min(group["batches"])
        if len(group["batches"]) > 1:
            warnings.append(f"no batch given: {batch} taken, the smallest of {_listed(group['batches'])}")
    for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens), ("batch", batch)):
        if not 0 < value < 2**31 or value != int(value):
            raise SweetspotError(f"{name} is {value}: give a whole number of at least 1")
    if group["law"] is None:
        raise SweetspotError(f"{group['model']}: {group['chosen_because']}{_other_way(predictor, group['model'])}")
    fit = _fit_for(group, batch, warnings)
    if group["source"] == "simulated":
        warnings.append("SIMULATED: fitted to a simulated GPU, not to measurements")
    law = LAWS[fit["law"]]
    most, times, fewest = _possible_waves(group["kv_capacity"], input_tokens + output_tokens, batch)
    if times > 1:
        warnings.append(f"the KV cache does not hold {batch} such requests: {times} waves")
    place = (input_tokens, output_tokens, batch / times, chosen(group))
    extrapolates = _outside(group, input_tokens, output_tokens, batch, times)
    values = {name: term["value"] for name, term in fit["terms"].items()}
    per_output_token = per_token(law, values, *place)
    if per_output_token <= 0:
        raise SweetspotError(
            f"{law.name} gives no positive energy here ({'; '.join(extrapolates) or 'inside its range'}); "
            "ask nearer to the measured cells"
        )
    parts = {
        "law": _of_law(law, fit, per_output_token, *place),
        "distance": _of_distance(group, fit, input_tokens, output_tokens, batch, place[2]),
    }
    if _undetermined(law, fit, *place):
        parts["distance"] = max(parts["distance"], _UNDETERMINED)
        if not extrapolates:
            extrapolates = ["the measured cells vary the lengths only together, not as this request would need"]
    if group["sensor_gain"] is not None:
        parts["sensor_gain"] = group["sensor_gain"]
    half = math.hypot(*parts.values())
    ends = [(*place[:2], batch / number, place[3]) for number in (fewest, most)]
    if fewest < most:  # then the interval reaches as far around the energy of the other number
        apart = _apart(law, values, place, ends)
        parts["waves"] = math.sqrt(apart * (apart + 2 * half))
        half += apart
        extrapolates.append(f"the measured cells do not tell in how many waves this batch runs: {fewest} to {most}")
    low, high = max(per_output_token * (1 - half), 0.0), per_output_token * (1 + half)
    energy_batch_j = per_output_token * output_tokens * batch
    duration_s = _duration(law, fit, place, batch)
    late = _of_duration(fit, parts["distance"])
    if duration_s:
        late += _apart(law, fit["duration"]["terms"], place, ends)
    power_w = energy_batch_j / duration_s if duration_s else None
    warnings += _impossible(power_w, group["idle_w"], group["power_cap_w"])
    return Prediction(
        **{name: group[name] for name in ("model", *_SELECTORS, "source")},
        law=law.name,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        batch=batch,
        energy_per_request_j=per_output_token * output_tokens,
        energy_per_request_low_j=low * output_tokens,
        energy_per_request_high_j=high * output_tokens,
        energy_per_output_token_j=per_output_token,
        energy_per_output_token_low_j=low,
        energy_per_output_token_high_j=high,
        energy_batch_j=energy_batch_j,
        waves=times,
        duration_s=duration_s,
        duration_low_s=duration_s and max(duration_s * (1 - late), 0.0),
        duration_high_s=duration_s and duration_s * (1 + late),
        power_w=power_w,
        interval_parts=parts,
        extrapolates=extrapolates,
        warnings=warnings,
    )


def _group(groups: list[dict[str, Any]], model: str, wanted: Mapping[str, str | None]) -> dict[str, Any]:
    found = [group for group in groups if group["model"].casefold() == model.casefold()]
    if not found:
        raise SweetspotError(f"no model {model!r} in this predictor{_suggest(model, {g['model'] for g in groups})}")
    for name, value in wanted.items():
        if value is not None:
            exact = [group for group in found if group[name].casefold() == value.casefold()]
            partial = [group for group in found if value.casefold() in group[name].casefold()]
            if not exact and not partial:
                there = sorted({group[name] for group in found})
                raise SweetspotError(f"{model}: no {name} {value!r} in this predictor; there is {_listed(there)}")
            found = exact or partial
    if len(found) > 1:
        names = [name for name in _SELECTORS if len({group[name] for group in found}) > 1]
        choices = "\n".join("  " + " ".join(f"--{name} {group[name]!r}" for name in names) for group in found)
        raise SweetspotError(f"{model} was measured in several ways; choose one:\n{choices}")
    return found[0]


def is_pooled(predictor: Mapping[str, Any], model: str) -> bool:
    """Whether the law across models was fitted to cells of the model."""
    return any(model in entry.get("models", {}) for entry in predictor.get("shared", []) if not entry["reason"])


def _other_way(predictor: Mapping[str, Any], model: str) -> str:
    """How the law across models predicts a model whose own cells do not suffice."""
    if is_pooled(predictor, model):
        return "; the law across models predicts it, its cells counted: give its config.json with --architecture FILE"
    return "; with --architectures DIR, `sweetspot fit` makes a law across models, which needs fewer cells"


def _fit_for(group: Mapping[str, Any], batch: int, warnings: list[str]) -> dict[str, Any]:
    """The fit that covers `batch`: the chosen law's, or else that of the law for every batch."""
    for name in (group["law"], group["law_any_batch"]):
        for fit in group["laws"].get(name, ()):
            chosen = name == group["law"] and fit["batch"] == batch
            if "skipped" not in fit and (chosen or fit["batch"] is None):
                if batch not in group["batches"]:
                    warnings.append(
                        f"batch {batch} was not measured: {name} carries over from {_listed(group['batches'])}"
                    )
                elif name != group["law"]:
                    warnings.append(f"{group['law']} was not fitted for batch {batch}: predicted by {name}")
                return dict(fit)
    raise SweetspotError(
        f"{group['model']}: nothing fitted for batch {batch}; measured: {_listed(group['batches'])} "
        "(a batch between them needs a law fitted to two batches or more)"
    )


def waves(full: Sequence[Mapping[str, Any]], total_tokens: int, batch: int) -> int:
    """How often the KV cache has to be filled, by where it was seen full (`kv_capacity` of a group)."""
    return _possible_waves(full, total_tokens, batch)[1]


def _possible_waves(full: Sequence[Mapping[str, Any]], total_tokens: int, batch: int) -> tuple[int, int, int]:
    """The most waves that the cells leave possible, the likely number, and the fewest."""
    if not full:
        return 1, 1, 1
    # Between two lengths the capacity is interpolated, because a sliding window makes a long request's cache smaller
    # than its tokens.
    points = [(entry["total_tokens"], entry["tokens"]) for entry in full]
    after = next((point for point in points if point[0] > total_tokens), points[-1])
    before = next((point for point in reversed(points) if point[0] <= total_tokens), after)
    share = (total_tokens - before[0]) / (after[0] - before[0]) if after[0] > before[0] else 0.0
    least, likely, below = (x + (y - x) * share for x, y in zip(before[1], after[1], strict=True))
    held = int(least / total_tokens), int(likely / total_tokens), math.ceil(below / total_tokens) - 1
    most, times, fewest = (math.ceil(batch / max(1, together)) for together in held)
    return most, times, fewest


def _outside(group: Mapping[str, Any], n: int, m: int, batch: int, times: int) -> list[str]:
    asked = {
        **{"input_tokens": n, "output_tokens": m, "batch": batch, "total_tokens": n + m},
        "tokens_in_flight": batch / times * (n + m),
    }
    reasons: dict[str, str] = {}
    for name, value in asked.items():
        low, high = group["measured_range"][name]
        if not low <= value <= high:
            measured = f"{low}-{high}" if low != high else f"{low}"
            reasons[name] = f"{name} {value:.0f} is {'below' if value < low else 'above'} the measured {measured}"
    if reasons.keys() & {"input_tokens", "output_tokens"}:
        reasons.pop("total_tokens", None)  # it says nothing new
    if reasons.keys() & {"input_tokens", "output_tokens", "batch", "total_tokens"}:
        reasons.pop("tokens_in_flight", None)
    if not reasons and (gap := _gap(group, n, m, batch)):
        reasons["cells"] = f"no measured cell combines such lengths and batch: the nearest is {2**gap:.0f} times away"
    return list(reasons.values())


def _gap(group: Mapping[str, Any], n: int, m: int, batch: int) -> float:
    """How far, in octaves, measured cells are from a corner that none reaches; 0 for less than one octave.

    A grid has a cell that is at least as large on every axis, and one that is at least as small. Where there is none,
    that of the outermost cells counts which lacks least on its worst axis. What lies outside of the ranges counts as
    lying at their ends.
    """
    measured = group["measured_range"]
    asked = {"batch": batch, "input_tokens": n, "output_tokens": m}
    place = [min(max(value, measured[name][0]), measured[name][1]) for name, value in asked.items()]
    gaps = [0.0]
    for sign, corners in ((1, "largest"), (-1, "smallest")):
        cells = group.get("measured_corners", {}).get(corners, [])  # of older files not known
        lacks = [max(sign * math.log2(value / own) for value, own in zip(place, cell, strict=True)) for cell in cells]
        gaps.append(min(lacks, default=0.0))
    return max(gaps) if max(gaps) > 1 else 0.0


def _of_distance(
    group: Mapping[str, Any], fit: Mapping[str, Any], n: int, m: int, batch: int, requests: float
) -> float:
    """Relative half width for what lies outside the measured cells: the error that an octave cost held-out cells."""
    measured = group["measured_range"]
    lengths = max(_octaves(n, *measured["input_tokens"]), _octaves(m, *measured["output_tokens"]))
    beyond = {
        "lengths": lengths + _gap(group, n, m, batch),
        "batch": _octaves(requests, *measured["requests_in_flight"]),
    }
    parts = [fit["relative_error_per_octave"][axis] * octaves for axis, octaves in beyond.items()]
    return float(fit["t_quantile_95"]) * math.hypot(*parts)


def _impossible(power_w: float | None, idle_w: float | None, cap_w: float | None) -> list[str]:
    """What is said where energy and duration contradict each other."""
    if power_w and cap_w and power_w > cap_w * _OVER_TDP:
        return [f"energy over duration is {power_w:.0f} W, above the {cap_w:.0f} W of the board"]
    if power_w and idle_w and power_w < idle_w * _UNDER_IDLE:
        return [f"energy over duration is {power_w:.0f} W, below the {idle_w:.0f} W of the idle board"]
    return []


def _octaves(value: float, low: float, high: float) -> float:
    return max(0.0, math.log2(low / value), math.log2(value / high))


def chosen(group: Mapping[str, Any]) -> float:
    """The share of a mixture's experts that one token activates; 1 for a dense model."""
    mixture = group["experts"]
    return float(mixture["per_token"] / mixture["experts"]) if mixture else 1.0


def _duration(law: Law, fit: Mapping[str, Any], place: _Place, batch: int) -> float | None:
    if fit["duration"] is None:
        return None
    seconds = per_token(law, fit["duration"]["terms"], *place) * place[1] * batch
    return seconds if seconds > 0 else None


def _of_duration(fit: Mapping[str, Any], distance: float) -> float:
    """Relative half width of the interval of the time: scatter of the cells' times, widened as that of the energy."""
    if fit["duration"] is None:
        return 0.0
    scatter = fit["duration"]["t_quantile_95"] * fit["duration"]["relative_residual_sd"] * fit["interval_scale"]
    return math.hypot(scatter, distance)


def _apart(law: Law, values: Mapping[str, float], place: _Place, ends: Sequence[_Place]) -> float:
    """By which share the law's value at these places is away from that at `place`."""
    return max(abs(per_token(law, values, *end) / per_token(law, values, *place) - 1) for end in ends)


def _undetermined(law: Law, fit: Mapping[str, Any], *place: float) -> bool:
    """Whether the request needs coefficients apart that the cells only know together."""
    features = {term.name: term.value(*place) for term in law.terms}
    for dropped, weights in fit["merged"].items():
        parts = [weight * features[name] for name, weight in weights.items()]
        size = sum(map(abs, parts)) + abs(features[dropped])
        if abs(features[dropped] - sum(parts)) > 1e-6 * size:
            return True
    return False


def _of_law(law: Law, fit: Mapping[str, Any], energy: float, *place: float) -> float:
    """Relative half width for the scatter of cells about the law and its coefficients, as held-out cells scaled it."""
    features = [term.value(*place) for term in law.terms if term.name in fit["terms"]]
    rows = zip(features, fit["covariance"], strict=True)
    coefficients = sum(x * y * entry for x, row in rows for y, entry in zip(features, row, strict=True))
    variance = fit["relative_residual_sd"] ** 2 + max(coefficients, 0.0) / energy**2
    return float(fit["t_quantile_95"] * fit["interval_scale"]) * math.sqrt(variance)


def _suggest(name: str, known: set[str]) -> str:
    plain = {model.casefold(): model for model in sorted(known)}
    close = [model for key, model in plain.items() if name.casefold() in key]
    close = close or [plain[key] for key in difflib.get_close_matches(name.casefold(), plain, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(close[:3])}?" if close else f"; there is {_listed(sorted(known))}"


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))
