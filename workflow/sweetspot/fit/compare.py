"""Compares two sets of results: how much more or less energy B needs than A for the same requests, and where.

Predictors are compared by their laws on a grid inside the range that both measured, tables by the cells they share.
Regions of lengths and batches with different ratios are found by splitting the cells where the split explains most of
the variance, at most twice in a row.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.fit.solve import t_quantile
from sweetspot.predict import predictor
from sweetspot.table import read as table
from sweetspot.table.cells import cell_means
from sweetspot.table.schema import CELL, GROUP
from sweetspot.vocabulary import SELECTORS, SIMULATED, UNSAID

_FEWEST_CELLS = 3  # on each side of a split
_LEAST_STEP = 0.02  # smallest difference of the log ratio between two regions
_DEEPEST = 2
Cell = tuple[int, int, int]  # batch, input_tokens, output_tokens


class Energy(NamedTuple):
    """Joules per request of a cell, with the relative half-width of its 95 % interval (None: unknown).

    `common`: whether neighbouring cells share their error (predictions of one law) or err independently (measured).
    """

    energy_j: float
    half: float | None
    common: bool


class Side(NamedTuple):
    """One group of a predictor; or one of a table, with the means of its cells."""

    group: Mapping[str, Any]
    means: Mapping[Cell, Energy] | None = None

    def energies(self, cells: Iterable[Cell]) -> dict[Cell, Energy]:
        """The means of a cell's valid repetitions, or its energy by the chosen law, where it was measured."""
        if self.means is not None:
            return {cell: self.means[cell] for cell in cells if cell in self.means}
        found = {}
        for batch, n, m in cells:
            try:
                answer = predictor.predict({"groups": [self.group]}, self.group["model"], n, m, batch)
            except SweetspotError:
                continue
            width = answer.energy_per_request_high_j - answer.energy_per_request_low_j
            if not answer.extrapolates:
                half = width / 2 / answer.energy_per_request_j
                found[batch, n, m] = Energy(answer.energy_per_request_j, half, common=True)
        return found


@dataclass(frozen=True)
class Region:
    """A region where B needs `ratio` times the energy of A, with a 95 % interval (None: unknown)."""

    where: dict[str, tuple[int, int]]
    cells: int
    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """In words."""
        percent = 100 * (self.ratio - 1)
        if self.low is None or self.high is None:
            return f"B relative to A: {_shown(percent, '+')} %; too few cells and repetitions for an interval"
        ends = [100 * (end - 1) for end in (self.low, self.high)]
        if self.low <= 1 <= self.high:
            low, high = (_shown(end, "+") for end in ends)
            return f"no difference shown (relative to A: {_shown(percent, '+')} % [{low}, {high}])"
        low, high = (_shown(end) for end in sorted(map(abs, ends)))
        return f"B uses {_shown(abs(percent))} % [{low}, {high}] {'less' if percent < 0 else 'more'}"

    def within(self, overall: "Region") -> str:
        """What distinguishes it from all cells: "batch 64, at least 512 output tokens"."""
        words = []
        for name, (low, high) in self.where.items():
            least, most = overall.where[name]
            span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            if low < high and (low == least or high == most):
                span = f"at least {low:,}" if high == most else f"up to {high:,}"
            if (low, high) != (least, most):
                words.append(f"batch {span}" if name == "batch" else f"{span} {name.replace('_', ' ')}")
        return ", ".join(words)


@dataclass(frozen=True)
class Comparison:
    """A group of A compared with one of B."""

    a: dict[str, str]
    b: dict[str, str]
    overall: Region
    regions: list[Region]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = [asdict(region) | {"verdict": region.verdict} for region in (self.overall, *self.regions)]
        return {"a": self.a, "b": self.b, "overall": parts[0], "regions": parts[1:], "notes": self.notes}

    def as_text(self) -> str:
        """For people."""
        lines = [f"{letter}: {_described(side)}" for letter, side in (("A", self.a), ("B", self.b))]
        lines.append(f"  over {self.overall.cells} cells: {self.overall.verdict}")
        if len(self.regions) > 1:
            lines += [f"  {one.within(self.overall)}: {one.verdict} ({one.cells} cells)" for one in self.regions]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def read(path: Path, wanted: Mapping[str, str]) -> list[Side]:
    """The groups of a predictor or of a table whose names contain the `wanted` text.

    Raises SweetspotError if the file is neither, or if no group matches.
    """
    if path.suffix == ".json" and not (path.is_file() and _is_array(path)):
        sides = [Side(group) for group in predictor.load(path)["groups"]]
    else:
        try:
            sides = _measured(table.read([path]))
        except SweetspotError as error:
            if "--map" not in str(error) and "--set" not in str(error):
                raise
            raise SweetspotError(
                f"{error}\nThese are options of `sweetspot fit`: fit the table with them, then compare predictor.json"
            ) from None
    found = list(sides)
    for name, text in wanted.items():
        named = [(str(side.group[name]).casefold(), side) for side in found]
        exact = [side for value, side in named if value == text.casefold()]  # "tp1" is not meant to find "tp16"
        found = exact or [side for value, side in named if text.casefold() in value]
    if not found:
        there = "\n".join("  " + _described(s.group) for s in sides)
        asked = ", ".join(f"{name}={text}" for name, text in wanted.items())
        raise SweetspotError(f"{path}: no group matches {asked}; it has\n{there}")
    return found


def _is_array(path: Path) -> bool:
    """Whether a JSON file is a table (an array of rows) and not a predictor."""
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def compare(a: Sequence[Side], b: Sequence[Side]) -> list[Comparison]:
    """Compare every pair of matching groups: those of one model, or the only group of each side.

    Raises SweetspotError if no groups match, if it is ambiguous which do, or if they share no cell.
    """
    return [_compared(one, other) for one, other in _pairs(a, b)]


def _measured(read: table.Table) -> list[Side]:
    groups = cell_means(read.frame).partition_by(GROUP, maintain_order=True)
    return [Side({name: cells[name][0] for name in (*GROUP, "source")}, means(cells)) for cells in groups]


def means(cells: pl.DataFrame) -> dict[Cell, Energy]:
    """Joules per request of the cells of one group; the columns are those of `cell_means`."""
    found = {}
    for *cell, energy_j, sd_j, count in cells.select(*CELL, "energy_j", "energy_sd_j", "repetitions").iter_rows():
        half = None if sd_j is None else t_quantile(count - 1) * sd_j / math.sqrt(count) / energy_j
        found[cell[0], cell[1], cell[2]] = Energy(energy_j / cell[0], half, common=False)
    return found


def _pairs(a: Sequence[Side], b: Sequence[Side]) -> list[tuple[Side, Side]]:
    if len(a) == len(b) == 1:
        return [(a[0], b[0])]
    pairs = []
    for model in dict.fromkeys(str(side.group["model"]).casefold() for side in a):
        ours, theirs = ([s for s in sides if str(s.group["model"]).casefold() == model] for sides in (a, b))
        alike = [(s, t) for s in ours for t in theirs if all(s.group[k] == t.group[k] for k in SELECTORS)]
        if len(ours) == len(theirs) == 1:
            alike = [(ours[0], theirs[0])]
        if theirs and not alike:
            choices = (f"  {side} {_described(s.group)}" for side, found in (("A", ours), ("B", theirs)) for s in found)
            named = ours[0].group["model"]
            raise SweetspotError(
                f"{named} has several groups; choose with --a and --b KEY=VALUE:\n" + "\n".join(choices)
            )
        pairs += alike
    if not pairs:
        names = [", ".join(sorted({str(s.group["model"]) for s in sides})) for sides in (a, b)]
        raise SweetspotError(
            f"no model in common: A has {names[0]}; B has {names[1]}; choose with --a and --b model=NAME"
        )
    return pairs


def _compared(a: Side, b: Side) -> Comparison:
    places = _grid(a.group, b.group) if a.means is b.means is None else list(b.means or a.means or ())
    cells = ratios(a.energies(places), b.energies(places))
    if not cells:
        raise SweetspotError(
            f"{_described(a.group)} and {_described(b.group)}: no cell in common; both must have measured the same "
            "batch at overlapping lengths"
        )
    described = [{name: str(side.group[name]) for name in (*GROUP, "source")} for side in (a, b)]
    return Comparison(described[0], described[1], region(cells), list(_regions(cells)), _notes(a, b))


def _grid(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Cell]:
    """Powers of two within the lengths that both measured, and the ends of their overlap, at the batches they share."""
    lengths = []
    for name in ("input_tokens", "output_tokens"):
        lows, highs = zip(*(group["measured_range"][name] for group in (a, b)), strict=True)
        low, high = max(lows), min(highs)
        inside = {low, high, *(2**k for k in range(31) if low <= 2**k <= high)}
        lengths.append(sorted(inside) if low <= high else [])
    return [(batch, n, m) for batch in {*a["batches"]} & {*b["batches"]} for n in lengths[0] for m in lengths[1]]


class Ratio(NamedTuple):
    """The logarithm of B's energy over A's in a cell."""

    cell: Cell
    log: float
    a: Energy
    b: Energy


def ratios(a: Mapping[Cell, Energy], b: Mapping[Cell, Energy]) -> list[Ratio]:
    """B relative to A in the cells that they have in common."""
    common = sorted(a.keys() & b.keys())
    return [Ratio(cell, math.log(b[cell].energy_j / a[cell].energy_j), a[cell], b[cell]) for cell in common]


def _regions(cells: Sequence[Ratio], deep: int = 0) -> Iterable[Region]:
    """These cells as one region, or the regions they split into."""
    splits = []
    for axis in range(len(CELL)):
        for value in sorted({ratio.cell[axis] for ratio in cells})[1:]:
            parts = [[ratio for ratio in cells if (ratio.cell[axis] >= value) == above] for above in (False, True)]
            if min(map(len, parts)) >= _FEWEST_CELLS:
                left = sum(statistics.pvariance([ratio.log for ratio in part]) * len(part) for part in parts)
                splits.append((left, parts))
    if splits and deep < _DEEPEST:
        _, parts = min(splits, key=lambda split: split[0])
        means, halves = zip(*map(_mean, parts), strict=True)
        if abs(means[0] - means[1]) > max(_LEAST_STEP, *(half or 0.0 for half in halves)):
            for part in parts:
                yield from _regions(part, deep + 1)
            return
    yield region(cells)


def region(cells: Sequence[Ratio]) -> Region:
    """One region of all these cells."""
    mean, half = _mean(cells)
    spans = {
        name: (min(r.cell[axis] for r in cells), max(r.cell[axis] for r in cells)) for axis, name in enumerate(CELL)
    }
    ends = (None, None) if half is None else (math.exp(mean - half), math.exp(mean + half))
    return Region(spans, len(cells), math.exp(mean), *ends)


def _mean(cells: Sequence[Ratio]) -> tuple[float, float | None]:
    """Mean logarithm of the ratio, and half of its 95 % interval.

    Errors common to the cells of a law do not average out. Independent errors of measured cells do; their size is
    estimated from the scatter about the mean.
    """
    logs = [ratio.log for ratio in cells]
    shared = statistics.fmean(
        math.hypot(*(side.half or 0.0 for side in (ratio.a, ratio.b) if side.common)) for ratio in cells
    )
    alone = [side for ratio in cells for side in (ratio.a, ratio.b) if not side.common]
    if not alone:
        return statistics.fmean(logs), shared
    if len(cells) > 1:
        own = t_quantile(len(cells) - 1) * statistics.stdev(logs) / math.sqrt(len(cells))
    elif all(side.half is not None for side in alone):
        own = math.hypot(*(side.half or 0.0 for side in alone))
    else:
        return logs[0], None
    return statistics.fmean(logs), math.hypot(shared, own)


def _notes(a: Side, b: Side) -> list[str]:
    notes, sources = [], {side.group["source"] for side in (a, b)}
    labels = [SIMULATED[source] for source in sorted(sources & SIMULATED.keys())]
    if labels:
        sides = "both sides" if len(labels) == len(sources) else "one side only, so it proves nothing"
        notes.append(f"{' and '.join(labels)}: {sides}")
    if len(labels) < len(sources):
        notes.append("the energy sensors of two boards may each be off by up to 5 %; no interval here includes that")
    if a.means is None or b.means is None:
        notes.append("intervals of laws are those of single cells, so they are wide for a region")
    return notes


def _described(group: Mapping[str, Any]) -> str:
    rest = ", ".join(dict.fromkeys(str(group[k]) for k in (*SELECTORS, "source") if group[k] not in UNSAID))
    return f"{group['model']} ({rest})" if rest else str(group["model"])


def _shown(percent: float, sign: str = "") -> str:
    """Two digits, or whole percents from 10 on; with the `sign` "+", always signed."""
    digits = ".2g" if abs(percent) < 10 else ".0f"
    return f"{percent:{sign}{digits}}".replace("-", "−")
