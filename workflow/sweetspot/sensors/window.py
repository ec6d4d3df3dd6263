"""A window of work: the readings at its edges and in between, and the verdict on whether they can be trusted.

A reason that does not hold for every board is followed by ":" and the board's name.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from math import hypot, inf
from operator import or_
from statistics import fmean

# Bits of nvmlDeviceGetCurrentClocksEventReasons
_POWER_CAP = 0x4
_THROTTLED = 0x8 | 0x20 | 0x40 | 0x80  # hardware slowdown; software or hardware thermal slowdown; power brake

REASONS = {
    "counter_stuck": "the energy counter did not step",
    "counter_reset": "the energy counter ran backwards",
    "counter_vs_integral": "energy counter and integrated power differ by more than the protocol allows",
    "instant_power_missing": "the second source, instantaneous power, returned no values",
    "window_too_short": "the window was shorter than the averaging time of the power sensor",
    "polls_late": "the host went too long without reading the sensors",
    "clock_jumped": "the host's clocks disagreed: one was set, or the host was suspended",
    "other_process": "another process used the GPU",
    "power_limit_changed": "the GPU's power limit was changed during the session",
    "gpu_lost": "the GPU was lost",
    "sensor_failed": "the driver refused a reading",
    # These are the server's doing (engines/server.py).
    "prompt_cached": "the server took part of the prompts from a cache instead of computing them",
    "prompt_cache_unknown": "the server does not say whether it took prompts from a cache: turn prefix caching off, or "
    "have cached tokens reported (vLLM: --enable-prompt-tokens-details; SGLang: --enable-cache-report)",
    "preempted": "the server interrupted requests for lack of KV cache, and computed parts of them again",
    "server_restarted": "the server began to count anew, so it was restarted",
    "other_requests": "the server worked for other clients as well",
}


# Reasons that hold for every window of a board, each with its remedy. A session stops at the first such window.
BOARD_WIDE = {
    "counter_stuck": "check it with `sweetspot probe`",
    "instant_power_missing": "install driver 535 or later; a board without that sensor cannot be measured, because "
    "nothing would check its counter",
    "counter_vs_integral": "they may cover different parts (GPU, or the whole module as on GH200); compare them with "
    "`sweetspot meter -- sleep 20` and, if the difference is understood, raise protocol.energy_tolerance",
}


_CLEARLY = 1.2  # polls see a step up to a fifth longer than it is, on a quiet host

_ENERGIES = ("energy_j", "energy_instant_j", "energy_average_j", "tail_j")  # of a verdict


@dataclass(frozen=True)
class Sample:
    """One poll: time in s, counter in mJ, powers in W. The last three are None if the driver refused them."""

    at_s: float
    energy_mj: int
    instant_w: float | None
    average_w: float | None
    temperature_c: float | None
    sm_clock_mhz: int | None
    event_reasons: int | None


@dataclass(frozen=True)
class Edges:
    """Where a window begins and ends: times in s, the counter in mJ or None if it did not step in time.

    The counter stepped to `opened_mj` just before the work began (None: as it began), and to `closed_mj` and `later_mj`
    after it ended. `seen` holds reasons for invalidity that the samples do not show. If `failed`, a sensor failed and
    there are no energies.
    """

    start_s: float
    end_s: float
    opened_mj: int | None
    closed_mj: int | None = None
    closed_s: float = 0.0
    later_mj: int | None = None
    later_s: float = 0.0
    seen: tuple[str, ...] = ()
    failed: bool = False
    opened_s: float | None = None


@dataclass(frozen=True)
class Readings:
    """What one board showed during a window. `board` is its name, "INDEX:UUID", or "" for the only one."""

    edges: Edges = field(repr=False)
    samples: tuple[Sample, ...] = field(repr=False)
    board: str = ""


@dataclass(frozen=True)
class Limits:
    """What makes a window invalid.

    The two sources differ by more than `tolerance` (relative), polls are more than `poll_gap_s` apart, the counter does
    not step for `counter_timeout_s`, or the window is shorter than `sensor_s`, the slowest sensor's averaging time.
    """

    tolerance: float
    poll_gap_s: float
    counter_timeout_s: float
    sensor_s: float


@dataclass(frozen=True)
class Verdict:
    """Energies of a window in J by source (None: unknown), the part of each board, and the reasons against it."""

    energy_j: float | None
    energy_instant_j: float | None
    energy_average_j: float | None
    tail_j: float | None
    reasons: tuple[str, ...]
    shares_j: tuple[float | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Window(Verdict):
    """One window of work: its verdict and the readings behind it.

    `tail_j`, already subtracted from `energy_j`, is the energy between the work and the counter's steps around it.
    `edge_error` is the possible error of the counter, as `_counter_error` saw it. `flags` are what its row must say
    without being invalid; `power_capped_share` is the share of the samples at the power limit, None without samples.
    """

    start_s: float
    duration_s: float
    edge_error: float
    temperature_c: float | None
    sm_clock_mhz: float | None
    flags: tuple[str, ...]
    event_reasons: int
    power_capped_share: float | None
    readings: tuple[Readings, ...]

    @property
    def power_w(self) -> float | None:
        """The mean power by the counter."""
        return None if self.energy_j is None else self.energy_j / self.duration_s


def board_wide(reasons: Iterable[str]) -> str:
    """What is wrong with the whole board, and the remedy; "" if none of the reasons says so."""
    return "; ".join(
        f"{f'GPU {board}' if board else 'this GPU'}: {REASONS[code]}: {BOARD_WIDE[code]}"
        for code, _, board in (reason.partition(":") for reason in reasons)
        if code in BOARD_WIDE
    )


def explained(reason: str) -> str:
    """A reason in words."""
    code, _, board = reason.partition(":")
    return REASONS[code] + f" (GPU {board})" * bool(board)


def judge(readings: Sequence[Readings], limits: Limits) -> Verdict:
    """The verdict on a window. It depends only on edges and samples, so it can be repeated at any time."""
    verdicts = [_judge_one(one.edges, one.samples, limits) for one in readings]
    reasons = _of_boards({one.board: verdict.reasons for one, verdict in zip(readings, verdicts, strict=True)})
    parts = {name: [getattr(verdict, name) for verdict in verdicts] for name in _ENERGIES}
    totals = {name: None if None in energies else sum(energies) for name, energies in parts.items()}
    return Verdict(**totals, reasons=reasons, shares_j=tuple(parts["energy_j"]))


def window_of(readings: Sequence[Readings], limits: Limits, step_s: float, unlisted: Collection[str]) -> Window:
    """The window that boards showed; `step_s`: a counter's usual step, `unlisted`: boards that list no processes."""
    samples, edges = [sample for one in readings for sample in one.samples], readings[0].edges
    return Window(
        **vars(judge(readings, limits)),
        start_s=edges.start_s,
        duration_s=edges.end_s - edges.start_s,
        edge_error=max(_counter_error(one.edges, one.samples, step_s) for one in readings),
        temperature_c=mean_of_known(s.temperature_c for s in samples),
        sm_clock_mhz=mean_of_known(s.sm_clock_mhz for s in samples),
        event_reasons=union(s.event_reasons or 0 for s in samples),
        power_capped_share=mean_of_known(bool((s.event_reasons or 0) & _POWER_CAP) for s in samples),
        flags=_flags_of(readings, unlisted),
        readings=tuple(readings),
    )


def _judge_one(edges: Edges, samples: Sequence[Sample], limits: Limits) -> Verdict:
    duration_s = edges.end_s - edges.start_s
    too_short = ["window_too_short"] * (duration_s < limits.sensor_s)
    if edges.failed:
        return Verdict(None, None, None, None, (*edges.seen[:1], *too_short, *edges.seen[1:]))
    energy_j = tail_j = None
    energy_instant_j = _integral(edges.start_s, edges.end_s, [(s.at_s, s.instant_w) for s in samples])
    energy_average_j = _integral(edges.start_s, edges.end_s, [(s.at_s, s.average_w) for s in samples])
    opened, closed, later = edges.opened_mj, edges.closed_mj, edges.later_mj
    reasons = []
    if opened is None or closed is None or later is None or _longest_hold_s(samples) > limits.counter_timeout_s:
        reasons.append("counter_stuck")
    elif not opened < closed < later or any(b.energy_mj < a.energy_mj for a, b in pairwise(samples)):
        reasons.append("counter_reset")
    else:
        idle_w = (later - closed) / 1000 / (edges.later_s - edges.closed_s)
        head_s = 0.0 if edges.opened_s is None else edges.start_s - edges.opened_s
        tail_j = idle_w * (head_s + edges.closed_s - edges.end_s)
        energy_j = (closed - opened) / 1000 - tail_j
    if energy_instant_j is None:
        reasons.append("instant_power_missing")
    elif energy_j is not None and abs(energy_j - energy_instant_j) > limits.tolerance * max(energy_j, energy_instant_j):
        reasons.append("counter_vs_integral")
    moments = [edges.start_s, *(s.at_s for s in samples)]
    reasons += ["polls_late"] * any(b - a > limits.poll_gap_s for a, b in pairwise(moments))
    return Verdict(energy_j, energy_instant_j, energy_average_j, tail_j, (*reasons, *too_short, *edges.seen))


def _of_boards(codes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The codes of all boards, once each; one that does not hold for every board, with the name of the board."""
    common = set.intersection(*map(set, codes.values()))
    named = [code if code in common else f"{code}:{board}" for board, own in codes.items() for code in own]
    return tuple(dict.fromkeys(named))


def _flags_of(readings: Sequence[Readings], unlisted: Collection[str]) -> tuple[str, ...]:
    """Flags for what limited the clocks of the boards, and for those that list no processes, named in `unlisted`."""
    codes = {}
    for one in readings:
        bits = union(sample.event_reasons or 0 for sample in one.samples)
        codes[one.board] = ["power_capped"] * bool(bits & _POWER_CAP) + ["throttled"] * bool(bits & _THROTTLED)
        codes[one.board] += ["processes_unchecked"] * (one.board in unlisted)
    return _of_boards(codes)


def uncertainty(window: Window, gain: float) -> dict[str, float]:
    """Bounds on a window's error by cause, relative to its energy; empty if it has no energy.

    `gain`: as given, the same for all rows of a board. `counter_step`: the counter's, as it stepped. `tail`: all the
    joules subtracted after the work. `total`: the root sum of squares of the others.
    """
    if window.energy_j is None or window.tail_j is None:
        return {}
    tail = window.tail_j / max(window.energy_j, window.tail_j)
    parts = {"gain": gain, "counter_step": window.edge_error, "tail": tail}
    return {**parts, "total": hypot(*parts.values())}


def _counter_error(edges: Edges, samples: Sequence[Sample], step_s: float) -> float:
    """The possible error of a counter in a window, relative to its energy: what one of its steps may hide.

    That is the longest step seen, relative to the window, if it clearly exceeds `step_s`, the usual one; and a step's
    energy if the board cannot have drawn it in that time. So rows tell of a counter that ticks once a second, stands
    still and catches up, or jumps, although its energy agrees with the polled power.
    """
    duration_s = edges.end_s - edges.start_s
    error = step_s / duration_s
    if edges.failed or None in (edges.opened_mj, edges.closed_mj, edges.later_mj):
        return error
    points = [(s.at_s, s.energy_mj) for s in samples]
    points = [(edges.opened_s or edges.start_s, edges.opened_mj or 0), *points, (edges.closed_s, edges.closed_mj or 0)]
    most_w = max(
        (power_w for s in samples for power_w in (s.instant_w, s.average_w) if power_w is not None), default=inf
    )
    longest_s, since_s = edges.later_s - edges.closed_s, points[0][0]
    for (_, before), (next_s, after) in pairwise(points):
        step_j = (after - before) / 1000
        if after == before or next_s == edges.closed_s:
            longest_s = max(longest_s, next_s - since_s)
        if step_j > most_w * (next_s - since_s + step_s):
            rest_j = (points[-1][1] - points[0][1]) / 1000 - step_j
            error = max(error, step_j / rest_j if rest_j > 0 else 1.0)
        if after != before:
            since_s = next_s
    return max(error, longest_s / duration_s) if longest_s > _CLEARLY * step_s else error


def _integral(start_s: float, end_s: float, points: list[tuple[float, float | None]]) -> float | None:
    """Integral in J of a polled power in W from `start_s` to `end_s`; None if any poll returned none."""
    total = 0.0
    for (at_s, _), (next_s, power_w) in pairwise([(start_s, None), *points]):
        if power_w is None:
            return None
        # A reading covers the time before it. The last poll comes just after the end.
        total += power_w * (min(next_s, end_s) - min(at_s, end_s))
    return total


def _longest_hold_s(samples: Sequence[Sample]) -> float:
    """The longest time, in s, for which the polled counter did not change."""
    longest_s, since_s = 0.0, samples[0].at_s
    for before, sample in pairwise(samples):
        if sample.energy_mj != before.energy_mj:
            since_s = sample.at_s
        longest_s = max(longest_s, sample.at_s - since_s)
    return longest_s


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def union(bits: Iterable[int]) -> int:
    """All bits that are set in any of the values."""
    return reduce(or_, bits, 0)
