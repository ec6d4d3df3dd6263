"""The numbers of the measurement procedure, each with its reason, and what is derived from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Meter, Sensor
from sweetspot.sensors.window import Limits

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom (any statistics textbook)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)


def _number(default: float, description: str, **bounds: float) -> Any:
    return field(default=default, metadata={"description": description, "strict": True, "lt": 2**31, **bounds})


@dataclass(frozen=True)
class Protocol:
    """The numbers of the procedure, with their reasons. Changing any of them means measuring again."""

    version: int = _number(1, "Version of the procedure; raise it by hand when the procedure changes meaning.", ge=1)
    # The counter steps every 100 ms: in 10 s, even unaligned edges cost at most 1 %.
    window_s: float = _number(10.0, "Shortest window of one repetition, in s.", gt=0)
    # Single short batches jitter; 32 of them average it out. From window_max_s on, fewer suffice.
    window_runs: int = _number(32, "Minimum number of batch runs in a window shorter than `window_max_s`.", ge=1)
    window_max_s: float = _number(20.0, "A window of this length, in s, needs no further batch runs.", gt=0)
    # Clocks and temperature settle over seconds; energy drifts with them.
    warmup_s: float = _number(10.0, "Shortest warm-up at the cell's shape, in s; discarded.", ge=0)
    warmup_runs: int = _number(3, "Minimum number of batch runs in the warm-up.", ge=1)
    warmup_drift: float = _number(0.01, "Relative change of power and SM clock below which the GPU is steady.", gt=0)
    warmup_max_s: float = _number(60.0, "The warm-up ends here, in s, even if the GPU is not steady (flagged).", gt=0)
    repetitions: int = _number(5, "Maximum number of valid repetitions of a cell, over all visits.", ge=1)
    min_repetitions: int = _number(3, "Minimum number of valid repetitions of a cell, over all visits.", ge=1)
    stop_interval: float = _number(
        0.01, "Stop repeating when the 95 % t-interval of the mean is within this relative half-width.", ge=0
    )
    # A cell's energy depends on when it is measured: heat, clocks, what ran before. One visit cannot show that.
    visits: int = _number(
        2,
        "Visits of a cell, each with its own warm-up and at least one repetition. Every cell of a block is visited "
        "once before any is visited again, in another order; one loaded engine may serve all visits.",
        ge=1,
    )
    # A stalled host or a passing process spoils one window; a cause that spoils three in a row is permanent.
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
        0.02, "Relative change of the anchor that flags the rows measured in between as `drifted`.", gt=0
    )
    # Twice per update of the instant sensor (100 ms; Yang et al., SC24, arXiv 2312.02741).
    poll_s: float = _number(0.05, "Period of polling the power sensors, in s.", gt=0)
    # Five missed updates of the instant sensor: a busy interpreter delays a poll by less, a stalled host by more.
    poll_gap_s: float = _number(0.5, "Polls further apart than this, in s, invalidate a row.", gt=0)
    # Good practice reaches 4.9 % (Yang et al.); two sources that differ by more contradict each other.
    energy_tolerance: float = _number(
        0.05, "Relative difference of counter and integrated power that invalidates a row.", gt=0, lt=1
    )
    # Both as Yang et al. found on an H100; `sweetspot probe` finds them for a board.
    counter_step_s: float = _number(0.1, "Period of the energy counter, in s.", gt=0)
    sensor_s: float = _number(
        1.0, "Averaging time of the slowest power sensor, in s; a shorter window is invalid.", gt=0
    )
    # The largest systematic error of a board that Yang et al. found; NVIDIA states the same.
    sensor_gain: float = _number(
        0.05, "Relative systematic error of a board's sensors, for the error budget.", ge=0, lt=1
    )
    counter_timeout_s: float = _number(2.0, "A counter that does not step for this long, in s, is stuck.", gt=0)
    idle_s: float = _number(10.0, "Length of the measurement of idle power before a block, in s.", gt=0)


# What a second number must be at least, as a multiple of the first: otherwise no row could be valid.
_ORDERED = (
    *(("min_repetitions", 1, "repetitions"), ("visits", 1, "repetitions")),  # each visit makes at least one
    *(("warmup_s", 1, "warmup_max_s"), ("window_s", 1, "window_max_s")),
    ("poll_s", 2, "poll_gap_s"),  # polls may be late
    *(("sensor_s", 1, "window_s"), ("sensor_s", 1, "idle_s")),
    *(("counter_step_s", 2, "counter_timeout_s"), ("counter_step_s", 1, "window_s")),
)


def contradictions(protocol: Protocol) -> Iterator[str]:
    """What is impossible about the numbers together, each with the remedy."""
    for small, factor, large in _ORDERED:
        low, high = getattr(protocol, small), getattr(protocol, large)
        if factor * low > high:
            least = f"{'twice ' * (factor == 2)}{small} ({low:g})"
            yield f"{large} is {high:g}, but must be at least {least}; raise {large} or lower {small}"


def limits(protocol: Protocol) -> Limits:
    """The protocol's numbers that decide whether a window is valid."""
    return Limits(protocol.energy_tolerance, protocol.poll_gap_s, protocol.counter_timeout_s, protocol.sensor_s)


def open_meter(sensors: Sequence[Sensor], clock: Clock, protocol: Protocol) -> Meter:
    """A meter with the protocol's numbers."""
    return Meter(sensors, clock, limits(protocol), poll_s=protocol.poll_s, step_s=protocol.counter_step_s)


def measure_idle(meter: Meter, protocol: Protocol) -> tuple[float | None, tuple[str, ...]]:
    """Power in W with weights resident and no work, or None and why, if `retries` further windows are invalid too."""
    for _ in range(1 + protocol.retries):
        window = meter.window(lambda: meter.clock.sleep(protocol.idle_s))
        if not window.reasons:
            return window.power_w, ()
        if {"counter_stuck", "instant_power_missing"} & {reason.partition(":")[0] for reason in window.reasons}:
            break  # no other window would do better
    return None, window.reasons


def relative_interval(energies: Sequence[float]) -> float | None:
    """Half-width of the 95 % t-interval of the mean, relative to it; None with fewer than two."""
    count = len(energies)
    if count < 2:
        return None
    return _T[min(count - 1, len(_T)) - 1] * stdev(energies) / sqrt(count) / fmean(energies)


def planned_repetitions(visit: int, protocol: Protocol) -> int:
    """The minimum number of valid repetitions of a cell after its visit number `visit` (from 0)."""
    return max(visit + 1, -(-protocol.min_repetitions * (visit + 1) // protocol.visits))
