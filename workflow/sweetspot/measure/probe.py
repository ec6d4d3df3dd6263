"""`sweetspot probe`: how a board's sensors really behave, which its vendor does not document.

Without a load it finds the update periods of the counter and the power sensors, and idle power from three sources. With
a load it also finds how far the sensors lag, and whether the counter integrates continuously: a square wave with the
sensors' own period looks constant to them, so the reading of a counter that sampled only part of each period would
depend on the phase.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from sweetspot import __version__
from sweetspot.errors import SweetspotError
from sweetspot.files import read_object
from sweetspot.measure.protocol import Protocol as Numbers
from sweetspot.measure.protocol import open_meter
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import STEP_POLL_S, Meter, Sensor

SCHEMA_VERSION = 1

_WAVES_S = (0.01, 0.03, 0.07, 0.13)  # shorter and longer than the sensors' period of 0.1 s
_PHASES = 4
_CONTINUOUS = 0.1  # of the mean power: a counter with less spread over the phases integrates continuously


Load = Callable[[float], None]
"""Keeps the board busy for so many s, and returns when it is idle again."""


def probe(
    sensor: Sensor, machine: Mapping[str, Any], clock: Clock, seconds: float, load: Callable[[], Load] | None
) -> dict[str, Any]:
    """The machine record, from about `seconds`; `load` is called after idle power. Raises SensorError."""
    meter = open_meter([sensor], clock, Numbers())
    sources: dict[str, Callable[[], float | None]] = {
        "counter": sensor.energy_mj,
        "instant": sensor.power_instant_w,
        "average": sensor.power_average_w,
    }
    part_s = seconds / (22 if load else 5)
    steps = {name: _steps(read, clock, part_s) for name, read in sources.items()}
    idle = {"bare": _powers(meter, lambda: clock.sleep(2 * part_s))}
    loaded = None
    if load is not None:
        running = load()
        clock.sleep(part_s)
        idle["with_context"] = _powers(meter, lambda: clock.sleep(2 * part_s))
        loaded = _loaded(meter, running, part_s, (steps["counter"] or {}).get("period_s", Numbers().counter_step_s))
    return {
        "schema_version": SCHEMA_VERSION,
        "sweetspot_version": __version__,
        "probed": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "sensors": steps,
        "idle": idle,
        "load": loaded,
        "note": "" if load else "no load: PyTorch with CUDA is not installed here",
        "protocol": _suggested(steps, loaded),
    }


def numbers(path: Path, gpu: str | None = None) -> dict[str, Any]:
    """The protocol's numbers in a machine record. Raises SweetspotError if it is none, or not of a `gpu` (if given)."""
    try:
        record = read_object(path)
        found, name = dict(record["protocol"]), record["machine"]["gpu"]
        Numbers(**found)
    except (OSError, ValueError, TypeError, KeyError):
        raise SweetspotError(f"{path}: not a machine record; make one with `sweetspot probe --out {path}`") from None
    if gpu not in (None, name):
        raise SweetspotError(f"{path}: the record of a {name}, but the GPU is {gpu!r}; probe a board of that name")
    return found


def torch_load() -> Callable[[], Load] | None:
    """A load of large matrix products, or None if PyTorch has no GPU to run them on."""
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    return partial(_products, torch) if torch.cuda.is_available() else None


def as_text(record: Mapping[str, Any]) -> str:
    """The record as a few lines of text."""
    lines = [f"{record['machine']['gpu']}, driver {record['machine']['driver_version']}"]
    for name, found in record["sensors"].items():
        lines += [f"{name}: " + (f"a new value every {1000 * found['period_s']:.0f} ms" if found else "no new value")]
    for name, powers in record["idle"].items():
        watts = ", ".join(f"{source} {power:.1f} W" for source, power in powers.items() if isinstance(power, float))
        lines += [f"idle, {name.replace('_', ' ')}: {watts}" + (f" ({powers['reasons']})" if powers["reasons"] else "")]
    if record["load"]:
        verdicts = {True: "integrates", False: "does NOT integrate", None: "was not seen to integrate"}
        lines += [f"under load the counter {verdicts[record['load']['counter_sees_all']]} continuously"]
        lines += [f"lag of {name}: {lag_s:.2f} s" for name, lag_s in record["load"]["lag_s"].items() if lag_s]
    lines += [record["note"]] * bool(record["note"])
    numbers = "".join(f"\n  {name}: {value:g}" for name, value in record["protocol"].items())
    return "\n".join(lines) + "\nprotocol numbers, used if `machine` in the configuration names this record:" + numbers


def _steps(read: Callable[[], float | None], clock: Clock, seconds: float) -> dict[str, Any] | None:
    """How often a reading changes: median and 10th to 90th percentile in s; None if it hardly does."""
    moments: list[float] = []
    last, end_s, polls = read(), clock.now() + seconds, 0
    while clock.now() < end_s:
        clock.sleep(STEP_POLL_S / 2)
        value, polls = read(), polls + 1
        if value != last:
            moments.append(clock.now())
            last = value
    gaps = [after - before for before, after in pairwise(moments)]
    if len(gaps) < 3:
        return None
    tenths = quantiles(gaps, n=10)
    return {"period_s": median(gaps), "p10_s": tenths[0], "p90_s": tenths[-1], "changes": len(gaps), "polls": polls}


def _powers(meter: Meter, work: Callable[[], None]) -> dict[str, Any]:
    """Mean power during `work` in W from each source, and the reasons why it is invalid."""
    window = meter.window(work)
    energies = {"counter": window.energy_j, "instant": window.energy_instant_j, "average": window.energy_average_j}
    powers = {name: None if joules is None else joules / window.duration_s for name, joules in energies.items()}
    return {**powers, "reasons": ";".join(window.reasons)}


def _loaded(meter: Meter, load: Load, part_s: float, step_s: float) -> dict[str, Any]:
    """Powers under a steady load and under square waves, and the lag of the power sensors."""
    load(part_s)  # let clocks and first launches settle
    steady = _powers(meter, lambda: load(2 * part_s))
    meter.clock.sleep(part_s)  # let the one-second average fall again
    lag_s = _lag(meter, load, part_s)
    wave = partial(_wave, meter.clock, load, part_s)
    waves = [{"period_s": period_s, **_powers(meter, partial(wave, period_s, 0.0))} for period_s in _WAVES_S]
    delays_s = [step_s * phase / _PHASES for phase in range(_PHASES)]
    locked = [_powers(meter, partial(wave, step_s, delay_s)) for delay_s in delays_s]
    spread = {name: _spread([powers[name] for powers in locked]) for name in ("counter", "instant", "average")}
    counter, instant = spread["counter"], spread["instant"]
    sees_all = None
    if counter is not None and (counter > _CONTINUOUS or (instant or 0.0) > 2 * _CONTINUOUS):
        # If not even the instant sensor depends on the phase, the wave was not in step with it: no verdict.
        sees_all = counter <= _CONTINUOUS
    found = {"steady": steady, "waves": waves, "locked": locked, "spread": spread}
    return {**found, "lag_s": lag_s, "counter_sees_all": sees_all}


def _wave(clock: Clock, load: Load, seconds: float, period_s: float, delay_s: float) -> None:
    """Load for 30 % of each period. Periods begin `delay_s` after multiples of `period_s` on the clock."""
    end_s = clock.now() + seconds
    while (now_s := clock.now()) < end_s:
        clock.sleep(period_s - (now_s - delay_s) % period_s)
        load(0.3 * period_s)


def _lag(meter: Meter, load: Load, seconds: float) -> dict[str, float | None]:
    """Time in s from the start of a load until a sensor shows half of its rise; None if it never does."""
    with meter.polling() as samples:
        meter.clock.sleep(seconds / 2)
        start_s = meter.clock.now()
        load(seconds)
        end_s = meter.clock.now()
    lags: dict[str, float | None] = {}
    for name in ("instant_w", "average_w"):
        points = [(s.at_s, getattr(s, name)) for s in samples if getattr(s, name) is not None and s.at_s <= end_s]
        before = [power_w for at_s, power_w in points if at_s <= start_s]
        after = [power_w for at_s, power_w in points if at_s > start_s]
        half_w = (fmean(before) + max(after)) / 2 if before and after else None
        rise = [at_s - start_s for at_s, power_w in points if at_s > start_s and half_w and power_w >= half_w]
        lags[name.removesuffix("_w")] = rise[0] if rise else None
    return lags


def _spread(powers: list[float | None]) -> float | None:
    known = [power for power in powers if power is not None]
    return (max(known) - min(known)) / fmean(known) if len(known) == len(powers) else None


def _suggested(steps: Mapping[str, Any], loaded: Mapping[str, Any] | None) -> dict[str, float]:
    """The protocol's numbers that depend on the board; defaults for those that the probe could not find."""
    default = Numbers()
    depend = ("counter_step_s", "counter_timeout_s", "window_s", "poll_s", "sensor_s")
    numbers = {name: getattr(default, name) for name in depend}
    if steps["counter"]:
        step_s = round(steps["counter"]["period_s"], 3)
        # 20 missed steps are no coincidence; a window of 100 steps makes one step 1 %.
        numbers |= {"counter_step_s": step_s, "counter_timeout_s": max(2.0, 20 * step_s)}
        numbers["window_s"] = max(default.window_s, round(100 * step_s, 1))
    if steps["instant"]:
        numbers["poll_s"] = round(steps["instant"]["period_s"] / 2, 3)
    lag_s = loaded and loaded["lag_s"]["average"]
    if lag_s:
        numbers["sensor_s"] = max(0.1, round(2 * lag_s, 1))  # a mean over the last T shows half of a rise after T / 2
    return numbers


def _products(torch: Any) -> Load:
    """Products of random 8192 x 8192 matrices, which take an H100 to its power limit."""
    large = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    right = torch.randn_like(large)
    small = large[:2048, :2048].contiguous()
    torch.cuda.synchronize()

    def multiply(duration_s: float) -> None:
        # Short loads use small matrices, about 30 microseconds each.
        end_s, short = time.perf_counter() + duration_s, duration_s <= 0.1
        while time.perf_counter() < end_s:
            for _ in range(8 if short else 4):
                (small @ small) if short else (large @ right)
            torch.cuda.synchronize()

    return multiply
