"""The protocol: how one cell (model, batch, input_tokens, output_tokens) becomes rows of measured energy."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sweetspot import engines
from sweetspot.engines import BatchRun, Engine, EngineSpec
from sweetspot.measure import latency
from sweetspot.measure.protocol import Protocol, planned_repetitions, relative_interval
from sweetspot.sensors.meter import Meter
from sweetspot.sensors.window import Sample, Window, mean_of_known, uncertainty

SCHEMA_VERSION = 2  # 2: visits, anchors, raw samples, uncertainties

_RECOMMENDED_WINDOW_S = Protocol.window_s  # the default
_START_SHARE = 0.05  # of a run: if a batch's requests start further apart, its energy is not that of a whole batch


class Repetition(NamedTuple):
    """A row and the window that it was made from."""

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
    """Warm up, then repeat the measurement as often as this visit needs. A `visit` of None measures the anchor.

    `cell` has input_tokens, output_tokens and the flags of the plan (";"-joined). `earlier` holds the cell's rows so
    far. Energy and duration of a row are per run of the whole batch. An invalid repetition is kept with its reasons.
    Each repetition is yielded as it ends, so an error of sensor or engine loses only the repetition it happened in.
    """
    n, m = cell["input_tokens"], cell["output_tokens"]
    tries = sum(row["visit"] == visit for row in earlier)
    getattr(engine, "begin", str)(f"{n}/{m}/{visit}/{tries}")  # a simulation has to know
    steady, ran = _warm_up(engine, meter, n, m, protocol)
    flags = [*_flags(spec, cell), *ran.flags]
    flags += ["kv_limited"] * (ran.waves > 1 and "kv_limited" not in flags) + ["not_steady"] * (not steady)
    common = {**_common(spec, cell, ran, engine.version), "idle_w": idle_w, **meter.identity()}
    common |= {"visit": visit, "anchor": visit is None}
    done: list[Repetition] = []
    batches: list[BatchRun] = []

    def work() -> None:
        batches.clear()
        start_s = meter.clock.now()
        while True:
            batches.append(engine.run(n, m))
            elapsed_s = meter.clock.now() - start_s
            many = len(batches) >= protocol.window_runs or elapsed_s >= protocol.window_max_s
            if many and elapsed_s >= protocol.window_s:
                return

    while not _enough([*earlier, *(repetition.row for repetition in done)], len(earlier), visit, protocol):
        engine.reasons()  # of what went before
        window = meter.window(work, also=engine.reasons)
        late = latency.columns(batches, m)
        apart = (late["start_spread_s"] or 0.0) * len(batches) > _START_SHARE * window.duration_s
        row = {**common, "repetition": len(earlier) + len(done)}
        row |= _row(window, len(batches), [*flags, *["staggered_start"] * apart], protocol) | late
        done.append(Repetition({**row, "time_s": window.start_s - meter.started_s}, window))
        yield done[-1]
        if any(reason.startswith("power_limit_changed") for reason in window.reasons):
            return  # all later windows of this session would be invalid for the same reason


def unmeasured_cell(spec: EngineSpec, cell: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The one row of a cell that could not be measured: invalid because of `reason`, without energies."""
    nothing = dict.fromkeys(
        ("energy_j", "energy_j_per_gpu", "energy_instant_j", "energy_average_j", "duration_s", "power_w", "idle_w")
    )
    nothing |= latency.columns((), cell["output_tokens"])
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


def _common(spec: EngineSpec, cell: Mapping[str, Any], ran: BatchRun, engine_version: str) -> dict[str, Any]:
    mixture = next((block for block in spec.architecture.blocks if block.experts), None)
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
        "parallelism": spec.parallelism.label,
        "gpus": spec.gpus,
        "weights": spec.weights,
        "architecture": spec.architecture.digest,
        "source": engines.source(spec),
        **{name: getattr(mixture, name) for name in ("experts", "experts_per_token") if mixture},
    }


def _flags(spec: EngineSpec, cell: Mapping[str, Any]) -> list[str]:
    flags = [flag for flag in cell["flags"].split(";") if flag]
    flags += ["random_weights"] * (spec.weights in ("dummy", "gaussian"))
    return flags + ["no_cuda_graphs"] * (not spec.cuda_graphs) + ["static_batches"] * (not spec.in_flight_batching)


def _warm_up(engine: Engine, meter: Meter, n: int, m: int, protocol: Protocol) -> tuple[bool, BatchRun]:
    """Run until power and SM clock are steady from one block of runs to the next; returns (steady, last run)."""
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
            changes = zip(means[-2], means[-1], strict=True)
            steady = all(abs(new - old) <= protocol.warmup_drift * old for old, new in changes)
            if steady or elapsed_s >= protocol.warmup_max_s:
                return steady, ran


def _means(samples: list[Sample]) -> tuple[float, float]:
    """Mean power in W and mean SM clock in MHz of a board in a block of whole batch runs.

    Uses the one-second average, which misses no time, or else the instant sensor. Not the counter: two of its 100 ms
    steps are 4 % of a block of 5 s, so a steady GPU would look unsteady.
    """
    powers_w = [s.instant_w if s.average_w is None else s.average_w for s in samples]
    return mean_of_known(powers_w) or 0.0, mean_of_known(s.sm_clock_mhz for s in samples) or 0.0


def _row(window: Window, runs: int, flags: list[str], protocol: Protocol) -> dict[str, Any]:
    def per_run(energy_j: float | None) -> float | None:
        return None if energy_j is None else energy_j / runs

    parts = uncertainty(window, protocol.sensor_gain)
    regimes = [*window.flags, *["short_window"] * (window.duration_s < _RECOMMENDED_WINDOW_S)]
    return {
        "energy_j": per_run(window.energy_j),
        "energy_j_per_gpu": None if set(window.shares_j) == {None} else list(map(per_run, window.shares_j)),
        "energy_instant_j": per_run(window.energy_instant_j),
        "energy_average_j": per_run(window.energy_average_j),
        "duration_s": window.duration_s / runs,
        "batch_runs": runs,
        "window_s": window.duration_s,
        **{f"uncertainty_{cause}": parts.get(cause) for cause in ("gain", "counter_step", "tail")},
        "power_w": window.power_w,
        "temperature_c": window.temperature_c,
        "sm_clock_mhz": window.sm_clock_mhz,
        "event_reasons": window.event_reasons,
        "power_capped_share": window.power_capped_share,
        "valid": not window.reasons,
        "reasons": ";".join(window.reasons),
        "flags": ";".join([*flags, *regimes]),
    }


def _enough(rows: Sequence[Mapping[str, Any]], earlier: int, visit: int | None, protocol: Protocol) -> bool:
    """Whether a visit may end. `rows` are all rows of the cell; the first `earlier` are from previous visits."""
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
