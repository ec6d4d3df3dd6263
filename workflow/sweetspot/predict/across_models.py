"""The law across models: one set of prices, shared by all models on a GPU and engine, for what a batch run does.

Energy (J) and time (s) of a batch run are each a sum of architecture terms times prices, so a model that was never
measured can be predicted from its config.json. fit/across_models.py fits the prices. Standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sweetspot import gpus
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.parallelism import Parallelism
from sweetspot.precision import ElementBytes, element_bytes
from sweetspot.predict.prediction import Interval, Prediction, check_request, outside, simulated
from sweetspot.vocabulary import ONE_GPU, UNSAID

TERMS = {
    "prefill_flop": "a FLOP of prefill",
    "decode_flop": "a FLOP of decode",
    "weight_byte": "a byte of weights, read once per pass for all requests",
    "kv_byte": "a byte of KV cache, read or written",
    "pass": "a forward pass: host and scheduler",
    "layer_pass": "a layer in a pass: kernel launches and ramps",
    "token": "an output token of a request: sampling and bookkeeping",
}
"""The terms and the unit that each one prices. No price is negative."""

EXCHANGED = "exchanged_byte"
"""One more term if the model runs on several GPUs: a byte that a GPU sends to others."""

LAW = "across-models"

_KINDS = {"experts": "experts", "latent": "a latent KV cache", "state_flops": "recurrent layers"}


def features(
    architecture: Architecture,
    sizes: ElementBytes,
    input_tokens: int,
    output_tokens: int,
    batch: float,
    waves: float = 1.0,
    parallelism: str = ONE_GPU,
) -> tuple[float, ...]:
    """The amount of each of TERMS in one run of a whole batch, and on several GPUs of EXCHANGED.

    `sizes` comes from `element_bytes`.

    If the KV cache is too small for all requests at once, they run in waves, and each wave repeats the per-pass terms.
    `batch` and `waves` enter linearly, so they may be means over repetitions (or a mean running batch).
    """
    n, m, spread = input_tokens, output_tokens, Parallelism.parse(parallelism)
    prefill = architecture.prefill_flops(n)
    return (
        batch * float(prefill),
        batch * float(architecture.request_flops(n, m) - prefill),
        waves * architecture.batch_weight_bytes(n, m, batch / waves, sizes),
        batch * architecture.request_cache_bytes(n, m, sizes.cached),
        waves * m,
        waves * m * architecture.layers,
        batch * m,
        *([spread.exchanged(architecture, batch * (n + m - 1))[0]] if spread.gpus > 1 else []),
    )


def waves(
    architecture: Architecture,
    gpu: str,
    precision: str,
    input_tokens: int,
    output_tokens: int,
    batch: int,
    parallelism: str = ONE_GPU,
) -> int:
    """The number of waves a batch needs, given the KV cache of its boards; 1 if they are unknown.

    Raises SweetspotError if the weights do not fit, or leave no room for a single request.
    """
    board = gpus.find(gpu)
    if board is None:
        return 1
    spread = Parallelism.parse(parallelism)
    memory = spread.memory(architecture, board, precision)
    together = memory.requests(input_tokens, output_tokens)
    if together < 1:
        raise SweetspotError(
            f"{architecture.name}: {memory.weights_bytes / 1e9:.1f} GB of weights and the KV cache of one request of "
            f"{input_tokens} + {output_tokens} tokens do not fit on {spread.on(board)}"
        )
    return -(-batch // together)


def predict(
    predictor: Mapping[str, Any],
    architecture: Architecture,
    input_tokens: int,
    output_tokens: int,
    batch: int | None = None,
    **choice: str | None,
) -> Prediction:
    """Predict a model from its architecture, with the entry of `predictor["across_models"]` that `choice` matches.

    `choice` is of vocabulary.SELECTORS. If the entry was fitted to rows of this model too, they are used. `batch`
    defaults to the smallest measured one. Raises SweetspotError if the predictor has no such law.
    """
    entry = choose(predictor.get("across_models", []), **choice)
    batch = entry["measured_range"]["batch"][0] if batch is None else batch
    found = predict_by(entry, architecture, input_tokens, output_tokens, batch, choice.get("precision"))
    return replace(found, warnings=[*found.warnings, *predictor.get("table_warnings", [])])


def choose(entries: Sequence[Mapping[str, Any]], **choice: str | None) -> Mapping[str, Any]:
    """The entry that the selectors match; part of a name is enough. Raises SweetspotError unless one is usable."""
    if not entries:
        raise SweetspotError(
            "this predictor has no law across models; fit one with `sweetspot fit --architectures DIR` from rows of at "
            "least three models"
        )
    found = list(entries)
    for name, text in choice.items():
        if text is not None and name in ("gpu", "engine"):
            found = [entry for entry in found if text.casefold() in entry[name].casefold()]
        elif text is not None:
            found = [entry for entry in found if text in (entry.get(name), *(entry["precisions"]))]
    usable = [entry for entry in found if not entry["reason"]]
    if len(usable) == 1:
        return usable[0]
    problem = "has several fits; choose with --gpu, --engine, --precision, --parallelism"
    if not usable:
        problem = "has no usable fit here"
    if not found:
        problem = "matches nothing of --gpu, --engine, --precision, --parallelism; choose one of"
    there = "\n".join(f"  {_described(entry)}" for entry in usable or found or entries)
    raise SweetspotError(f"the law across models {problem}:\n{there}")


def predict_by(
    entry: Mapping[str, Any],
    architecture: Architecture,
    input_tokens: int,
    output_tokens: int,
    batch: int = 1,
    precision: str | None = None,
) -> Prediction:
    """Predict one batch from an entry; what it learned from rows of this model, it holds under the model's name.

    Raises SweetspotError for lengths or a batch below 1, an entry without a law, or a model that does not fit on the
    board.
    """
    if entry["reason"]:
        raise SweetspotError(f"no law across models: {entry['reason']}")
    check_request(input_tokens, output_tokens, batch, architecture.limit)
    own = entry["models"].get(architecture.name)
    precision = precision or (own or {}).get("precision") or entry["precisions"][0]
    times = waves(architecture, entry["gpu"], precision, input_tokens, output_tokens, batch, entry["parallelism"])
    sizes = element_bytes(precision)
    row = features(architecture, sizes, input_tokens, output_tokens, batch, times, entry["parallelism"])
    asked = {"input_tokens": input_tokens, "output_tokens": output_tokens, "batch": batch}
    reach = _reach(entry["measured_range"], asked)
    energy, parts = evaluate(entry["energy"], own and own["energy"], row, *reach)
    duration = evaluate(entry["duration"], own and own["duration"], row, *reach)[0] if entry["duration"] else None
    return Prediction.of(
        {**entry, "model": architecture.name, "precision": precision},
        (input_tokens, output_tokens, batch),
        energy,
        duration,
        (entry["idle_w"], entry["power_cap_w"]),
        law=LAW,
        cells=own["cells"] if own else 0,
        waves=times,
        interval_parts=parts,
        extrapolates=_outside(entry, architecture, own, asked),
        warnings=_warnings(entry, own, times),
    )


def evaluate(
    law: Mapping[str, Any], own: Mapping[str, Any] | None, row: Sequence[float], beyond: float = 0.0, blind: float = 0.0
) -> tuple[Interval, dict[str, float]]:
    """A law's value with its 95 % interval, and the interval's parts; `own` is what the model's own rows taught.

    The error is relative, so the interval is symmetric on a log scale and its low end stays positive. Each factor of
    two `beyond` the measured range adds the error of a cell; each along an axis on which the rows have only one value
    (`blind`) may double or halve the energy.
    """
    known = own or law
    row = row[: len(known["prices"])]  # a file of an earlier version has no price of what several GPUs exchange
    value = sum(price * amount for price, amount in zip(known["prices"].values(), row, strict=True))
    if value <= 0:
        raise SweetspotError("the law across models gives no positive value here; ask for a request closer to its rows")
    columns = zip(row, known["covariance"], strict=True)
    prices = sum(x * y * entry for x, line in columns for y, entry in zip(row, line, strict=True)) / value**2
    cell, quantile = law["relative_sd"]["cell"], law["quantile"]
    parts = {
        "law": quantile * math.sqrt(max(prices, 0.0) + cell**2),
        "distance": math.hypot(quantile * cell * beyond, blind * math.log(2)),
    }
    spread = math.exp(math.hypot(*parts.values()))
    return Interval(value, value / spread, value * spread), parts


def _described(entry: Mapping[str, Any]) -> str:
    names = (entry["gpu"], entry["engine"], "/".join(entry["precisions"]), entry["parallelism"], entry["source"])
    return ", ".join(name for name in names if name not in UNSAID) + (f": {entry['reason']}" if entry["reason"] else "")


def _reach(ranges: Mapping[str, Any], asked: Mapping[str, int]) -> tuple[float, float]:
    """Factors of two by which a request lies outside the rows: along axes that the rows vary, and along the others."""
    squares = {True: 0.0, False: 0.0}
    for name, value in asked.items():
        low, high = ranges[name]
        squares[low < high] += max(0.0, math.log2(low / value), math.log2(value / high)) ** 2
    return math.sqrt(squares[True]), math.sqrt(squares[False])


def _outside(
    entry: Mapping[str, Any], architecture: Architecture, own: Mapping[str, Any] | None, asked: Mapping[str, int]
) -> list[str]:
    sizes = {} if own else {"parameters": architecture.parameters}
    reasons = []
    for name, value in {**asked, **sizes}.items():
        low, high = entry["measured_range"][name]
        if reason := outside(name, value, low, high):
            only = f", the only {name} in the rows" if low == high and name in asked else ""
            reasons.append(reason + only)
    measured = [model.get("architecture", {}).get("blocks", ()) for model in entry["models"].values()]
    for kind, what in _KINDS.items():
        known = own or any(block[kind] for blocks in measured for block in blocks)
        if not known and any(getattr(block, kind) for block in architecture.blocks):
            reasons.append(f"{architecture.name} has {what}, and no measured model has any")
    return reasons


def _warnings(entry: Mapping[str, Any], own: Mapping[str, Any] | None, times: int) -> list[str]:
    warnings = []
    if not own:
        error = entry["energy"]["leave_one_model_out"]
        warnings.append(
            f"this model was not measured: predicted from the prices of {len(entry['models'])} others, whose held-out "
            f"error (leave one model out) is {error['mape_percent']:.2g} % on average and "
            f"{error['worst_model_mape_percent']:.2g} % for the worst model"
        )
    warnings += [*simulated(entry["source"]), "the law across models knows no time to first token or per token"]
    if times > 1:
        warnings.append(f"the KV cache cannot hold the batch at once: assumed to run in {times} waves")
    return warnings
