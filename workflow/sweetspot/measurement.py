"""The protocol: how one cell (model, batch, input_tokens, output_tokens) becomes rows of measured energy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any, NamedTuple

from sweetspot.engines import BatchRun, Engine, EngineSpec
from sweetspot.journal import key
from sweetspot.meter import Limits, Meter, Sample, Window, regime, uncertainty

SCHEMA_VERSION = 2  # 2: visits, anchors, raw samples, uncertainties

_RECOMMENDED_WINDOW_S = 10.0

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (any statistics textbook)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


def _number(default: float, description: str, **bounds: float) -> Any:
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True)
class Protocol:
    """The numbers of the procedure, with their reasons. A change of any of them measures again."""

    version: int = _number(1, "Version of the procedure; raise it by hand when the procedure changes meaning.", ge=1)
    # The counter steps every 100 ms: 10 s keep what a step can cost under 1 % even without alignment.
    window_s: float = _number(10.0, "Shortest window of one repetition, in s.", gt=0)
    # Short batches jitter one by one; 32 of them average it out. Above window_max_s fewer do.
    window_runs: int = _number(32, "Batch runs of a window, while it is shorter than `window_max_s`.", ge=1)
    window_max_s: float = _number(20.0, "A window of this length, in s, needs no further batch runs.", gt=0)
    # Clocks and temperature settle over seconds; energy drifts with them.
    warmup_s: float = _number(10.0, "Shortest warm-up at the cell's shape, in s; discarded.", ge=0)
    warmup_runs: int = _number(3, "Fewest batch runs of the warm-up.", ge=1)
    warmup_drift: float = _number(0.01, "Relative change of power and SM clock below which the GPU is steady.", gt=0)
    warmup_max_s: float = _number(60.0, "The warm-up ends here, in s, also when the GPU is not steady (flagged).", gt=0)
    repetitions: int = _number(5, "Most valid repetitions of a cell, over all visits.", ge=1)
    min_repetitions: int = _number(3, "Fewest valid repetitions of a cell, over all visits.", ge=1)
    stop_interval: float = _number(
        0.01, "Stop repeating when the 95 % t-interval of the mean is within this relative half-width.", ge=0
    )
    # What a cell costs depends on when it is measured: heat, clocks, what ran before. One visit cannot show that.
    visits: int = _number(
        2,
        "Visits of a cell, each with its own warm-up and at least one repetition. Every cell of a block is visited "
        "once before any is again, in another order; one loaded engine may serve all visits.",
        ge=1,
    )
    # A stalled host or a passing process spoils one window; what spoils three in a row is there to stay.
    retries: int = _number(
        2,
        "How often invalid repetitions of a visit are measured again. A visit without a valid one is also tried again "
        "by this many later runs of its job.",
        ge=0,
    )
    anchor_every: int = _number(
        10, "One cell of a block, the anchor, is measured again after this many visits; 0: never.", ge=0
    )
    anchor_drift: float = _number(
        0.02, "Relative change of the anchor that flags the rows measured meanwhile as `drifted`.", gt=0
    )
    # Twice per update of the instant sensor (100 ms; Yang et al., SC24, arXiv 2312.02741).
    poll_s: float = _number(0.05, "Period of polling the power sensors, in s.", gt=0)
    # Five updates of the instant sensor unseen: a busy interpreter delays a poll by less, a host that stalls by more.
    poll_gap_s: float = _number(0.5, "Polls further apart than this, in s, invalidate a row.", gt=0)
    # Good practice reaches 4.9 % (Yang et al.); two sources further apart than that contradict each other.
    energy_tolerance: float = _number(
        0.05, "Relative difference of counter and integrated power that invalidates a row.", gt=0
    )
    # Both as Yang et al. found them on an H100; `sweetspot probe` finds those of a board.
    counter_step_s: float = _number(0.1, "Period of the energy counter, in s.", gt=0)
    sensor_s: float = _number(
        1.0, "Time that the slowest power sensor averages over, in s; a shorter window is invalid.", gt=0
    )
    # What Yang et al. found as the largest systematic error of a board, and NVIDIA states.
    sensor_gain: float = _number(0.05, "Relative systematic error of a board's sensors, for the error budget.", ge=0)
    counter_timeout_s: float = _number(2.0, "A counter that does not step for so long, in s, is stuck.", gt=0)
    idle_s: float = _number(10.0, "Length of the measurement of idle power before a block, in s.", gt=0)


def limits(protocol: Protocol) -> Limits:
    """The protocol's numbers that a window is judged by."""
    return Limits(protocol.energy_tolerance, protocol.poll_gap_s, protocol.counter_timeout_s, protocol.sensor_s)


def open_meter(sensor: Any, clock: Any, protocol: Protocol) -> Meter:
    """A meter with the protocol's numbers."""
    return Meter(sensor, clock, limits(protocol), poll_s=protocol.poll_s, step_s=protocol.counter_step_s)


def measure_idle(meter: Meter, protocol: Protocol) -> tuple[float | None, tuple[str, ...]]:
    """Power in W with context and weights resident and no work, and the reasons why it is not known.

    Measured again, at most `retries` times, while the window is not to be believed; then the power is None.
    """
    for _ in range(1 + protocol.retries):
        window = meter.window(lambda: meter.clock.sleep(protocol.idle_s))
        if window.counter_j is not None and not window.reasons:
            return window.counter_j / window.duration_s, ()
    return None, window.reasons


class Repetition(NamedTuple):
    """A row, and the window it was made from."""

    row: dict[str, Any]
    window: Window


def visit_cell(
    engine: Engine,
    meter: Meter,
    spec: EngineSpec,
    cell: Mapping[str, Any],
    protocol: Protocol,
    idle_w: float | None,
    visit: int | None,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> Iterator[Repetition]:
    """Warm up, then repeat the measurement as often as this visit of the cell needs; None is a visit as the anchor.

    `cell` has input_tokens, output_tokens and the flags of the plan (";"-joined). `earlier` are all rows of the cell so
    far. Energies and durations of a row are those of one run of the whole batch. An invalid repetition stays, with its
    reasons. Each is given as it ends, so that a SensorError, or what the engine raises, costs the one it happened in.
    """
    n, m = cell["input_tokens"], cell["output_tokens"]
    steady, ran = _warm_up(engine, meter, n, m, protocol)
    flags = _flags(spec, cell)
    flags += ["kv_limited"] * (ran.in_flight < spec.batch and "kv_limited" not in flags)
    flags += ["not_steady"] * (not steady)
    common = {**_common(spec, cell, ran, engine.version), "idle_w": idle_w, **meter.sensor.identity()}
    numbers = {"visit": visit, "anchor": visit is None}
    done: list[Repetition] = []
    while not _enough([*earlier, *(repetition.row for repetition in done)], len(earlier), visit, protocol):
        runs = 0

        def work() -> None:
            nonlocal runs
            start_s = meter.clock.now()
            while not _long_enough(runs, meter.clock.now() - start_s, protocol):
                engine.run(n, m)
                runs += 1

        window = meter.window(work)
        row = {**common, **numbers, "repetition": len(earlier) + len(done), **_row(window, runs, flags, protocol)}
        done.append(Repetition({**row, "time_s": window.start_s - meter.started_s}, window))
        yield done[-1]
        if "power_limit_changed" in window.reasons:
            return  # so it will be said of every window of this session


def unmeasured_cell(spec: EngineSpec, cell: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The one row of a cell that could not be measured: invalid for `reason`, without energies."""
    nothing = dict.fromkeys(("energy_j", "energy_instant_j", "energy_average_j", "duration_s", "power_w", "idle_w"))
    return {
        **_common(spec, cell, BatchRun(0, 0), ""),
        **nothing,
        "gpu": spec.gpu,
        "repetition": 0,
        "visit": None,
        "anchor": False,
        "batch_runs": 0,
        "valid": False,
        "reasons": reason,
        "flags": ";".join(_flags(spec, cell)),
    }


def relative_interval(energies: Sequence[float]) -> float | None:
    """Half-width of the 95 % t-interval of the mean, relative to it; None with fewer than two."""
    count = len(energies)
    if count < 2:
        return None
    return _T[min(count - 1, len(_T)) - 1] * stdev(energies) / sqrt(count) / fmean(energies)


def planned_repetitions(visit: int, protocol: Protocol) -> int:
    """The fewest valid repetitions of a cell when its visit number `visit` (from 0) ends."""
    return max(visit + 1, -(-protocol.min_repetitions * (visit + 1) // protocol.visits))


def _dimensions(spec: EngineSpec) -> str:
    """Digest of what a model computes, whatever it is called: models of one digest differ in their weights alone."""
    dimensions = {name: value for name, value in asdict(spec.architecture).items() if name not in ("name", "source")}
    return key(dimensions)


def _common(spec: EngineSpec, cell: Mapping[str, Any], ran: BatchRun, engine_version: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": spec.architecture.name,
        "batch": spec.batch,
        "input_tokens": cell["input_tokens"],
        "output_tokens": cell["output_tokens"],
        "in_flight": ran.in_flight,
        "waves": ran.waves,
        "engine": spec.name,
        "engine_version": engine_version,
        "precision": spec.precision,
        "weights": spec.weights,
        "architecture": _dimensions(spec),
        "source": "simulated" if spec.name == "simulated" else "measured",
    }


def _flags(spec: EngineSpec, cell: Mapping[str, Any]) -> list[str]:
    flags = [flag for flag in cell["flags"].split(";") if flag]
    flags += ["random_weights"] * (spec.weights in ("dummy", "gaussian"))
    return flags + ["no_cuda_graphs"] * (not spec.cuda_graphs) + ["static_batches"] * (not spec.in_flight_batching)


def _warm_up(engine: Engine, meter: Meter, n: int, m: int, protocol: Protocol) -> tuple[bool, BatchRun]:
    """Run until power and SM clock stay within the drift from one block of runs to the next; (steady, last run)."""
    start_s, runs = meter.clock.now(), 0
    means: list[tuple[float, float]] = []
    block_s = protocol.warmup_s / 2
    while True:
        with meter.polling() as samples:
            block_start_s = meter.clock.now()
            while True:
                ran = engine.run(n, m)
                runs += 1
                if meter.clock.now() - block_start_s >= block_s:
                    break
        means.append(_means(samples))
        elapsed_s = meter.clock.now() - start_s
        if runs >= protocol.warmup_runs and elapsed_s >= protocol.warmup_s and len(means) > 1:
            steady = all(
                abs(new - old) <= protocol.warmup_drift * old for old, new in zip(means[-2], means[-1], strict=True)
            )
            if steady or elapsed_s >= protocol.warmup_max_s:
                return steady, ran


def _means(samples: list[Sample]) -> tuple[float, float]:
    """Mean power in W and mean SM clock in MHz of a block of whole batch runs.

    By the one-second average, which leaves no time unseen; the instant sensor only stands in for it. Not by the
    counter: two of its 100 ms steps are 4 % of a block of 5 s, so a steady GPU would look unsteady.
    """
    powers_w = [s.instant_w if s.average_w is None else s.average_w for s in samples]
    known_w = [power_w for power_w in powers_w if power_w is not None]
    return fmean(known_w or [0.0]), fmean(s.sm_clock_mhz for s in samples)


def _long_enough(runs: int, elapsed_s: float, protocol: Protocol) -> bool:
    if runs == 0 or elapsed_s < protocol.window_s:
        return False
    return runs >= protocol.window_runs or elapsed_s >= protocol.window_max_s


def _row(window: Window, runs: int, flags: list[str], protocol: Protocol) -> dict[str, Any]:
    def per_run(energy_j: float | None) -> float | None:
        return None if energy_j is None else energy_j / runs

    parts = uncertainty(window, protocol.sensor_gain)
    regimes = regime(window.event_reasons) + ["short_window"] * (window.duration_s < _RECOMMENDED_WINDOW_S)
    return {
        "energy_j": per_run(window.counter_j),
        "energy_instant_j": per_run(window.instant_j),
        "energy_average_j": per_run(window.average_j),
        "duration_s": window.duration_s / runs,
        "batch_runs": runs,
        "window_s": window.duration_s,
        **{f"uncertainty_{cause}": parts.get(cause) for cause in ("gain", "counter_step", "tail")},
        "power_w": None if window.counter_j is None else window.counter_j / window.duration_s,
        "temperature_c": window.temperature_c,
        "sm_clock_mhz": window.sm_clock_mhz,
        "event_reasons": window.event_reasons,
        "valid": not window.reasons,
        "reasons": ";".join(window.reasons),
        "flags": ";".join([*flags, *regimes]),
    }


def _enough(rows: Sequence[Mapping[str, Any]], earlier: int, visit: int | None, protocol: Protocol) -> bool:
    """Whether a visit may end. `rows` are those of the cell, the first `earlier` of them from before this visit."""
    new = [row["valid"] for row in rows[earlier:]]
    if not all(new) and new.count(False) > protocol.retries:
        return True
    if not any(new) or visit is None:
        return any(new)
    energies = [row["energy_j"] for row in rows if row["valid"] and not row["anchor"]]
    if visit < protocol.visits - 1:
        return len(energies) >= planned_repetitions(visit, protocol)
    if len(energies) >= protocol.repetitions:
        return True
    interval = relative_interval(energies)
    return interval is not None and len(energies) >= protocol.min_repetitions and interval <= protocol.stop_interval
