"""The prediction type, the same for every law. Standard library only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.vocabulary import LEVEL, SELECTORS, SIMULATED, UNSAID

_OVER_CAP, _UNDER_IDLE = 1.05, 0.95  # how far the sensors' gain error alone may push a power past these limits


@dataclass(frozen=True)
class Interval:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, Any]:
        """Its numbers by their names for JSON: "energy{}_j" gives energy_j, energy_low_j and energy_high_j."""
        return {name.format(""): self.value, name.format("_low"): self.low, name.format("_high"): self.high}

    def times(self, factor: float) -> "Interval":
        """The interval of a multiple."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Prediction:
    """Energy of one request among `batch` equal ones, gross and of whole boards.

    Intervals hold the mean over measurements of such a cell; the `single` ones hold one new measurement, which also
    scatters as the repetitions of the cells did (the same interval if no cell was repeated).
    `cells`: measured cells of this model behind the prediction (0: it was never measured). `waves`: how many times
    the KV cache is filled to run the whole batch. `duration_s` of the batch and mean `power_w` are None if the table
    had no durations. `interval_parts`: relative half-widths of the interval's parts, which add in squares: "law"
    (scatter of cells about the law, and error of its coefficients), "distance" (from the measured cells), "sensor_gain"
    (common to all rows of a board; it cancels between two predictions) and "waves" (if the cells do not determine their
    number). `extrapolates` lists how the request lies outside the measured cells (empty: it does not). `warnings` lists
    what was assumed. `latency_s`: the latencies of `vocabulary.LATENCIES` by name, if the table had them; intervals are
    those of a cell's value, as for the energy.
    """

    model: str
    gpu: str
    engine: str
    precision: str
    parallelism: str
    source: str
    law: str
    cells: int
    input_tokens: int
    output_tokens: int
    batch: float
    energy_per_request_j: float
    energy_per_request_low_j: float
    energy_per_request_high_j: float
    energy_per_request_single_low_j: float
    energy_per_request_single_high_j: float
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
    latency_s: dict[str, Interval] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        origin: Mapping[str, Any],
        request: tuple[int, int, float],
        energy_batch_j: Interval,
        duration_s: Interval | None,
        limits_w: tuple[float | None, float | None],
        single_j: Interval | None = None,
        **rest: Any,
    ) -> "Prediction":
        """A prediction from the energy and the time of a batch run.

        `origin` names the group and its source; `request` is input tokens, output tokens and batch; `limits_w` are the
        idle power and the power cap of the boards, None if unknown; `single_j` is the energy with the interval of one
        measurement.
        """
        input_tokens, output_tokens, batch = request
        per_request, per_token = (energy_batch_j.times(1 / by) for by in (batch, batch * output_tokens))
        single = (single_j or energy_batch_j).times(1 / batch)
        unknown = dict.fromkeys(("duration_s", "duration_low_s", "duration_high_s"))
        durations: dict[str, Any] = duration_s.named("duration{}_s") if duration_s else unknown
        power_w = energy_batch_j.value / duration_s.value if duration_s else None
        rest["warnings"] = [*rest["warnings"], *_impossible(power_w, *limits_w)]
        return cls(
            **{name: origin[name] for name in ("model", *SELECTORS, "source")},
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            batch=batch,
            **per_request.named("energy_per_request{}_j"),
            energy_per_request_single_low_j=single.low,
            energy_per_request_single_high_j=single.high,
            **per_token.named("energy_per_output_token{}_j"),
            energy_batch_j=energy_batch_j.value,
            **durations,
            power_w=power_w,
            **rest,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For people: the request, its energies with intervals, and every caveat."""
        where = ", ".join(part for part in (getattr(self, name) for name in SELECTORS) if part not in UNSAID)
        lines = [
            self.model + (f" ({where})" if where else ""),
            f"{self.input_tokens} input tokens, {self.output_tokens} output tokens, batch {self.batch}; law {self.law}",
            f"  per request       {self.energy_per_request_j:.4g} J  "
            f"({LEVEL}: {self.energy_per_request_low_j:.4g} to {self.energy_per_request_high_j:.4g})",
            f"  per output token  {self.energy_per_output_token_j:.4g} J  "
            f"({LEVEL}: {self.energy_per_output_token_low_j:.4g} to {self.energy_per_output_token_high_j:.4g})",
            f"  whole batch       {self.energy_batch_j:.4g} J",
        ]
        if self.duration_s is not None:
            lines[-1] += (
                f" in {self.duration_s:.4g} s  ({LEVEL}: {self.duration_low_s:.4g} to {self.duration_high_s:.4g}), "
                f"{self.power_w:.0f} W"
            )
        mean, single = self.energy_per_request_high_j, self.energy_per_request_single_high_j
        if single - mean > 0.1 * (mean - self.energy_per_request_j):
            ends = f"{self.energy_per_request_single_low_j:.4g} to {self.energy_per_request_single_high_j:.4g} J"
            lines.insert(3, f"  one measurement   {ends} per request  ({LEVEL}; those above and below are of means)")
        lines += _latency_lines(self.latency_s)
        lines += [f"extrapolates: {reason}" for reason in self.extrapolates]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def _latency_lines(latency_s: Mapping[str, Interval]) -> Iterator[str]:
    for what, words in (("ttft", "first token     "), ("tpot", "further tokens  ")):
        shown = [
            f"{found.value:.3g} s{' each' * (what == 'tpot')} {meaning}  ({LEVEL}: {found.low:.3g} to {found.high:.3g})"
            for statistic, meaning in (("mean", "on average"), ("p95", "at the 95th percentile of requests"))
            if (found := latency_s.get(f"{what}_{statistic}_s"))
        ]
        if shown:
            yield f"  {words}  {', '.join(shown)}"


def simulated(source: str) -> list[str]:
    """The warning that a prediction from rows of this source needs, if they are simulated."""
    return [f"{SIMULATED[source]}: fitted to a simulated GPU, not to measurements"] if source in SIMULATED else []


def check_request(input_tokens: int, output_tokens: int, batch: float, limit: Mapping[str, Any] | None = None) -> None:
    """Raise SweetspotError unless lengths are whole and all at least 1, and within a `limit` (see `Memory.limit`)."""
    for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens), ("batch", batch)):
        if not 1 <= value < 2**31 or (name != "batch" and value != int(value)):
            raise SweetspotError(f"{name} is {value}: give a whole number of at least 1")
    if limit and input_tokens + output_tokens > limit["tokens"]:
        raise SweetspotError(
            f"a request of {input_tokens} + {output_tokens} tokens cannot run: more than {limit['tokens']} exceed "
            f"{limit['because']}"
        )


def listed(values: Sequence[Any]) -> str:
    """Values separated by commas."""
    return ", ".join(map(str, values))


def outside(name: str, value: float, low: float, high: float) -> str:
    """How a value lies outside a measured range, in words; "" if it does not."""
    if low <= value <= high:
        return ""
    measured = f"{low}-{high}" if low != high else f"{low}"
    return f"{name} {value:.0f} is {'below' if value < low else 'above'} the measured {measured}"


def _impossible(power_w: float | None, idle_w: float | None, cap_w: float | None) -> list[str]:
    """A warning if energy and duration contradict each other."""
    if power_w and cap_w and power_w > cap_w * _OVER_CAP:
        return [f"energy over duration is {power_w:.0f} W, above the board's power cap of {cap_w:.0f} W"]
    if power_w and idle_w and power_w < idle_w * _UNDER_IDLE:
        return [f"energy over duration is {power_w:.0f} W, below the board's idle power of {idle_w:.0f} W"]
    return []
