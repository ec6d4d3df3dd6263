"""The law across models: what a batch run computes and moves, at prices that all models of a GPU and engine share.

Energy (J) and time (s) of a batch run are each a sum of architecture terms times prices, so that a model that was never
measured is predicted from its config.json. shared.py fits the prices. Standard library only, as predictor.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweetspot import gpus
from sweetspot.architecture import Architecture, ElementBytes, load
from sweetspot.errors import SweetspotError
from sweetspot.memory import Memory, element_bytes

TERMS = {
    "prefill_flop": "a FLOP of the prompts",
    "decode_flop": "a FLOP of the replies",
    "weight_byte": "a byte of weights, read once a pass for all requests",
    "kv_byte": "a byte of KV cache read or written",
    "pass": "a pass: host and scheduler",
    "layer_pass": "a layer of a pass: kernel launches and ramps",
    "token": "an output token of a request: sampling and bookkeeping",
}
"""What is priced. Each price is what one of these costs, and none is negative."""

_SENSOR_GAIN = 0.05  # by which all readings of a board may be off: a power at the limit may read that much above it
_UNSPECIFIED = "unspecified"  # as in table.py, which needs the analysis packages


def features(
    architecture: Architecture,
    sizes: ElementBytes,
    input_tokens: int,
    output_tokens: int,
    batch: float,
    waves: float = 1.0,
) -> tuple[float, ...]:
    """How much of each of TERMS one run of a whole batch takes; `sizes` are those of `element_bytes`.

    Waves, where the KV cache is too small for all requests at once, repeat what a pass costs once. Both counts enter
    linearly, so means over repetitions (or a mean running batch) may be given.
    """
    n, m = input_tokens, output_tokens
    prefill = architecture.prefill_flops(n)
    return (
        batch * float(prefill),
        batch * float(architecture.request_flops(n, m) - prefill),
        waves * m * architecture.matmul_weights() * sizes.weight,
        batch * float(architecture.request_batch_bytes(n, m, 1, ElementBytes(0, sizes.cached))),
        waves * m,
        waves * m * architecture.layers,
        batch * m,
    )


def waves(
    architecture: Architecture, gpu: str, precision: str, input_tokens: int, output_tokens: int, batch: int
) -> int:
    """In how many waves the KV cache of one board lets a batch run: 1 where the board is not known.

    Raises SweetspotError when the weights, or a single request beside them, do not fit.
    """
    board = gpus.find(gpu)
    if board is None:
        return 1
    memory = Memory.of(architecture, board, precision)
    together = memory.requests(input_tokens, output_tokens)
    if together < 1:
        raise SweetspotError(
            f"{architecture.name}: {memory.weights_bytes / 1e9:.1f} GB of weights and the KV cache of "
            f"one request of {input_tokens} + {output_tokens} tokens do not fit one {board.name}; the law is of one GPU"
        )
    return -(-batch // together)


def read_architecture(path: Path) -> Architecture:
    """An architecture from a publisher's config.json (or its directory), or as a campaign resolved it from one.

    Raises SweetspotError as `architecture.load`.
    """
    try:
        return Architecture(**json.loads(path.read_text(encoding="utf-8"))["architecture"])
    except (OSError, ValueError, KeyError, TypeError):
        return load(path)


@dataclass(frozen=True)
class SharedPrediction:
    """Energy and time of `batch` equal requests by the law across models, with 95 % prediction intervals.

    `cells`: how many cells of this very model the prices were drawn towards (0: it was never measured). Times and power
    are None where the table has no durations. `extrapolates` and `warnings` as in predictor.Prediction.
    """

    model: str
    gpu: str
    engine: str
    precision: str
    source: str
    law: str
    cells: int
    input_tokens: int
    output_tokens: int
    batch: int
    waves: int
    energy_per_request_j: float
    energy_per_request_low_j: float
    energy_per_request_high_j: float
    energy_per_output_token_j: float
    energy_per_output_token_low_j: float
    energy_per_output_token_high_j: float
    energy_batch_j: float
    duration_s: float | None
    duration_low_s: float | None
    duration_high_s: float | None
    power_w: float | None
    extrapolates: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For people: what was asked, the numbers with their intervals, and every reservation."""
        where = ", ".join(part for part in (self.gpu, self.engine, self.precision) if part != _UNSPECIFIED)
        lines = [
            self.model + (f" ({where})" if where else ""),
            f"{self.input_tokens} input tokens, {self.output_tokens} output tokens, batch {self.batch}; law {self.law}",
            f"  per request       {self.energy_per_request_j:.4g} J  "
            f"(95 %: {self.energy_per_request_low_j:.4g} to {self.energy_per_request_high_j:.4g})",
            f"  per output token  {self.energy_per_output_token_j:.4g} J  "
            f"(95 %: {self.energy_per_output_token_low_j:.4g} to {self.energy_per_output_token_high_j:.4g})",
            f"  whole batch       {self.energy_batch_j:.4g} J",
        ]
        if self.duration_s is not None:
            lines[-1] += (
                f" in {self.duration_s:.4g} s  (95 %: {self.duration_low_s:.4g} to {self.duration_high_s:.4g}), "
                f"{self.power_w:.0f} W"
            )
        lines += [f"extrapolates: {reason}" for reason in self.extrapolates]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def predict(
    predictor: Mapping[str, Any],
    architecture: Architecture,
    input_tokens: int,
    output_tokens: int,
    batch: int | None = None,
    gpu: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
) -> SharedPrediction:
    """Predict a model from its architecture, by the entry of `predictor["shared"]` that the selectors mean.

    Rows of a model of this name in the entry count. Without `batch` the smallest measured one is taken. Raises
    SweetspotError where the predictor has no such law.
    """
    entry = choose(predictor.get("shared", []), gpu, engine, precision)
    batch = entry["measured_range"]["batch"][0] if batch is None else batch
    return predict_shared(entry, architecture, input_tokens, output_tokens, batch, precision=precision)


def choose(
    entries: Sequence[Mapping[str, Any]],
    gpu: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
) -> Mapping[str, Any]:
    """The entry that the selectors mean; a part of a name will do. SweetspotError unless just one can serve."""
    if not entries:
        raise SweetspotError(
            "this predictor has no law across models; make it with `sweetspot fit --architectures DIR`, from rows of "
            "three models or more"
        )
    found = [
        entry
        for entry in entries
        if (gpu or "").casefold() in entry["gpu"].casefold()
        and (engine or "").casefold() in entry["engine"].casefold()
        and (precision is None or precision in entry["precisions"])
    ]
    usable = [entry for entry in found if not entry["reason"]]
    if len(usable) == 1:
        return usable[0]
    there = "\n".join(f"  {_described(entry)}" for entry in usable or found or entries)
    problem = "is fitted for several; choose with --gpu, --engine, --precision" if usable else "cannot serve"
    raise SweetspotError(f"the law across models {problem}:\n{there}")


def predict_shared(
    entry: Mapping[str, Any],
    architecture: Architecture,
    input_tokens: int,
    output_tokens: int,
    batch: int = 1,
    own: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> SharedPrediction:
    """Predict one batch by an entry that has a law.

    `own`: what `shared.pool` learned from rows of this model; by default what the entry holds under its name. Raises
    SweetspotError for lengths or a batch below 1, an entry without law, or a model that does not fit the board.
    """
    if entry["reason"]:
        raise SweetspotError(f"no law across models: {entry['reason']}")
    for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens), ("batch", batch)):
        if not 0 < value < 2**31 or value != int(value):
            raise SweetspotError(f"{name} is {value}: give a whole number of at least 1")
    own = own or entry["models"].get(architecture.name)
    precision = precision or (own or {}).get("precision") or entry["precisions"][0]
    times = waves(architecture, entry["gpu"], precision, input_tokens, output_tokens, batch)
    row = features(architecture, element_bytes(precision), input_tokens, output_tokens, batch, times)
    asked = {"input_tokens": input_tokens, "output_tokens": output_tokens, "batch": batch}
    reach = _reach(entry["measured_range"], asked)
    energy, low, high = evaluate(entry["energy"], own and own["energy"], row, *reach)
    duration: tuple[float | None, ...] = (None, None, None)
    if entry["duration"]:
        duration = evaluate(entry["duration"], own and own["duration"], row, *reach)
    power = energy / duration[0] if duration[0] else None
    tokens = batch * output_tokens
    return SharedPrediction(
        model=architecture.name,
        **{name: entry[name] for name in ("gpu", "engine", "source")},
        precision=precision,
        law="shared",
        cells=own["cells"] if own else 0,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        batch=batch,
        waves=times,
        energy_per_request_j=energy / batch,
        energy_per_request_low_j=low / batch,
        energy_per_request_high_j=high / batch,
        energy_per_output_token_j=energy / tokens,
        energy_per_output_token_low_j=low / tokens,
        energy_per_output_token_high_j=high / tokens,
        energy_batch_j=energy,
        duration_s=duration[0],
        duration_low_s=duration[1],
        duration_high_s=duration[2],
        power_w=power,
        extrapolates=_outside(entry, architecture, own, asked),
        warnings=_warnings(entry, own, times, power),
    )


def evaluate(
    law: Mapping[str, Any], own: Mapping[str, Any] | None, row: Sequence[float], beyond: float = 0.0, blind: float = 0.0
) -> tuple[float, float, float]:
    """Value, low and high end of its 95 % interval, by a law and what rows of the model itself taught.

    The error is relative, so the interval is symmetric in the logarithm and its low end stays positive. Each factor of
    two `beyond` the measured range adds the error of a cell; each along an axis of which the rows show one value only
    (`blind`) may double or halve the energy.
    """
    known = own or law
    value = sum(price * amount for price, amount in zip(known["prices"].values(), row, strict=True))
    if value <= 0:
        raise SweetspotError("the law across models has no price for anything here; ask nearer to its rows")
    columns = zip(row, known["covariance"], strict=True)
    prices = sum(x * y * entry for x, line in columns for y, entry in zip(row, line, strict=True)) / value**2
    cell = law["relative_sd"]["cell"] ** 2 * (1 + beyond**2)
    spread = math.exp(math.hypot(law["quantile"] * math.sqrt(max(prices, 0.0) + cell), blind * math.log(2)))
    return value, value / spread, value * spread


def _described(entry: Mapping[str, Any]) -> str:
    names = (entry["gpu"], entry["engine"], "/".join(entry["precisions"]), entry["source"])
    return ", ".join(name for name in names if name != _UNSPECIFIED) + (
        f": {entry['reason']}" if entry["reason"] else ""
    )


def _reach(ranges: Mapping[str, Any], asked: Mapping[str, int]) -> tuple[float, float]:
    """How many factors of two a request lies beyond the rows: along what they vary, and along what they do not."""
    squares = {True: 0.0, False: 0.0}
    for name, value in asked.items():
        low, high = ranges[name]
        squares[low < high] += max(0.0, math.log2(low / value), math.log2(value / high)) ** 2
    return math.sqrt(squares[True]), math.sqrt(squares[False])


def _outside(
    entry: Mapping[str, Any], architecture: Architecture, own: Mapping[str, Any] | None, asked: Mapping[str, int]
) -> list[str]:
    sizes = {} if own else {"parameters": architecture.parameters()}
    reasons = []
    for name, value in {**asked, **sizes}.items():
        low, high = entry["measured_range"][name]
        if not low <= value <= high:
            side = "below" if value < low else "above"
            reasons.append(f"{name} {value} is {side} the measured {f'{low}-{high}' if low != high else low}")
            if low == high and name in asked:
                reasons[-1] += f", and no row shows what another {name} does"
    if (total := asked["input_tokens"] + asked["output_tokens"]) > architecture.max_positions:
        reasons.append(f"{total} tokens exceed the {architecture.max_positions} positions of {architecture.name}")
    return reasons


def _warnings(entry: Mapping[str, Any], own: Mapping[str, Any] | None, times: int, power: float | None) -> list[str]:
    warnings = []
    if not own:
        error = entry["energy"]["leave_one_model_out"]
        warnings.append(
            f"this model was not measured: by prices of {len(entry['models'])} others, which predict each other within "
            f"{error['mape_percent']:.2g} % on average, {error['worst_model_mape_percent']:.2g} % at worst"
        )
    if entry["source"] == "simulated":
        warnings.append("SIMULATED: fitted to a simulated GPU, not to measurements")
    if times > 1:
        warnings.append(f"the KV cache does not hold the batch: taken to run in {times} waves")
    cap, idle = entry["power_cap_w"], entry["idle_w"]
    if power and cap and power > cap * (1 + _SENSOR_GAIN):
        warnings.append(f"{power:.0f} W exceed the board's {cap:.0f} W: energy and time contradict each other here")
    if power and idle and power < idle * (1 - _SENSOR_GAIN):
        warnings.append(
            f"{power:.0f} W are less than the idle {idle:.0f} W: energy and time contradict each other here"
        )
    return warnings
