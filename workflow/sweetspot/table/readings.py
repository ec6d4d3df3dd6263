"""Reads the columns of a table as quantities. Where several readings are possible, those count that agree with the
table's own other columns and with what its boards can draw; if several still do, the user is asked, with all of them.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sweetspot.errors import SweetspotError
from sweetspot.table import physics
from sweetspot.table.numbers import Clues, clues, matches, numbers, parsed
from sweetspot.table.quantities import Relation, Values, conflicts, ratios, solve
from sweetspot.table.schema import CELL, COLUMNS, REQUIRED
from sweetspot.table.words import COUNTS, NUMBERS, Meaning, folded, meanings

DERIVED = (*CELL, "energy_j", "duration_s")
_WRONG, _DOUBTFUL = 1.5, 1.1  # factors by which two ways to one quantity may differ: another scope, another moment
_TWICE = 0.02  # relative difference of two columns that are one quantity, rounded
_ALIKE = 1e-3  # relative difference of results up to which two readings are one
_SAMPLE = 2000  # rows on which readings are compared
_MOST_READINGS = 512
ROUNDED = 0.05  # a mean batch or length is rounded if this changes it by less than this share
_HALF = 0.5  # share of impossible rows from which a reading is impossible
# How a header may also be meant, if the table counts requests, runs or boards.
OF_RUN = {"energy_j": "run_energy_j", "duration_s": "run_duration_s"}
OF_BOARD = {"power_w": "power_per_gpu_w", "energy_j": "energy_per_gpu_j"}
_UNITLESS = ("energyconsumed", "energyconsumption")  # codecarbon's are in kWh
_INVALID = r"(?i)^(false|no|n|f|0|0\.0)$"
_PLAIN = {"batch_input_tokens": "input_tokens", "batch_output_tokens": "output_tokens"}


@dataclass(frozen=True)
class Reading:
    """What each header means (those left out are not there), the decimal mark, and what follows from it."""

    chosen: Mapping[str, Meaning]
    decimal: str
    given: Values
    known: Values
    how: Mapping[str, Relation]
    wrong: Sequence[tuple[Relation, float]]
    loose: int  # relations that hold only roughly
    impossible: float  # share of rows

    @property
    def holds(self) -> bool:
        """Whether nothing in the table, and no board, contradicts it."""
        return not self.wrong and self.impossible < _HALF

    @property
    def checks(self) -> int:
        """How many relations hold that were not needed to derive something."""
        return sum(1 for _ in ratios(self.known)) - len(self.how)

    @property
    def missing(self) -> list[str]:
        """Required columns of numbers that do not follow."""
        return [name for name in REQUIRED if name in NUMBERS and name not in self.known]

    @property
    def j_per_token(self) -> str:
        """Median joules per output token, in words."""
        with np.errstate(all="ignore"):
            each = self.known["energy_j"] / (self.known["batch"] * self.known["output_tokens"])
        return f"{np.nanmedian(each) if np.isfinite(each).any() else np.nan:.3g} J per output token"

    def same(self, other: "Reading") -> bool:
        """Whether both lead to the same rows; a duration that is only derived does not count."""
        both = [name for name in DERIVED if name in self.known and name in other.known]
        both = [name for name in both if name != "duration_s" or not {name} <= self.how.keys() & other.how.keys()]
        pairs = [(self.known[name], other.known[name]) for name in both]
        return self.missing == other.missing and all(
            np.allclose(here, there, rtol=_ALIKE, atol=0, equal_nan=True) for here, there in pairs
        )


class Reader:
    """The possible readings of one file's frame."""

    def __init__(self, place: str, frame: pl.DataFrame, settled: Sequence[str] = (), decimal: str = "") -> None:
        """`settled` headers are meant as they are called; `decimal` is the mark, if the user gave it."""
        self.place, self.frame, self.settled = place, frame, set(settled)
        valid = frame["valid"].cast(pl.String) if "valid" in frame.columns else pl.Series([""])
        valid_rows = frame.filter(~matches(valid, _INVALID))
        sample = valid_rows if valid_rows.height else frame
        self.sample = sample.gather_every(max(1, sample.height // _SAMPLE))
        names = [name for name in frame.columns if not name.startswith("_")]
        self.options = {name: found for name in names if (found := self._meant(name))}
        many, boards = self._several("requests", "runs"), self._several("gpus", "tensor_parallel", "pipeline_parallel")
        for name in self.options.keys() - self.settled:
            self.options[name] = self._in_context(name, many, boards)
        self.clues = Clues()
        self.decimals = [decimal] if decimal else self._decimals()
        self._values: dict[tuple[str, Meaning, str], NDArray[np.float64]] = {}

    def _meant(self, name: str) -> list[Meaning]:
        found = list(meanings(name))
        own = {one.quantity for one in found}
        if own == {"duration_s"} and name != "duration_s" and "duration_s" in self.frame.columns:
            return []  # a moment, or another time
        if own & NUMBERS.keys() and name not in COLUMNS:
            # Text under a header such as "time" or "requests" is another thing.
            series = self.sample[name]
            value = numbers(parsed(series, found[0].kind, "," if clues(series).comma else ".")[0])
            return [] if value.count() < _HALF * series.count() else found
        return found

    def _several(self, *quantities: str) -> bool:
        """Whether a column counts more than one of these in some row."""
        names = [name for name, found in self.options.items() if any(one.quantity in quantities for one in found)]
        return any((numbers(self.sample[name]) > 1).any() for name in names)

    def _in_context(self, name: str, many: bool, boards: bool) -> list[Meaning]:
        """What a header may mean in a table that counts requests or runs, or boards."""
        found, plain = list(self.options[name]), folded(name)
        for one in self.options[name]:
            if many and one.quantity in OF_RUN:
                found.append(one._replace(quantity=OF_RUN[one.quantity]))
            summed = "total" in plain or name == "energy_j" or ("gpu" not in plain and one.quantity == "energy_j")
            if boards and one.quantity in OF_BOARD and not summed:
                found.append(one._replace(quantity=OF_BOARD[one.quantity]))
            if plain in _UNITLESS:
                found += [one.within("kWh"), one.within("Wh")]
            if one.quantity in _PLAIN and name != one.quantity:
                found.append(one._replace(quantity=_PLAIN[one.quantity]))
        return found if many else [one for one in found if not one.quantity.startswith("run_")] or found

    def _decimals(self) -> list[str]:
        """The marks that the numbers may have. Raises SweetspotError if they show both."""
        shown = {name: clues(self.frame[name]) for name, found in self.options.items() if found[0].quantity in NUMBERS}
        point, comma, unclear = (
            next(((name, value[kind]) for name, value in shown.items() if value[kind]), ("", None)) for kind in range(3)
        )
        self.clues = Clues(point[1], comma[1], unclear[1])
        if self.clues.point and self.clues.comma:
            raise SweetspotError(
                f"{self.place}: {point[0]} is {point[1]}, with a decimal point, but {comma[0]} is {comma[1]}, with a "
                "decimal comma; write all numbers in one way"
            )
        for name, (*_, odd) in shown.items():  # counts such as 1.024 among 64 and 128
            if self.clues.point and self.options[name][0].quantity in COUNTS and odd and "." in odd:
                for other in self.frame[name].filter(matches(self.frame[name], r"^\s*\d+\s*$")).head(1):
                    raise SweetspotError(
                        f"{self.place}: {name} is {odd} in one row and {other} in another: if the point separates "
                        f"thousands, write {odd.replace('.', '')}; if it marks decimals, add --decimal ."
                    )
        return [","] if self.clues.comma else [".", ","] if self.clues.unclear and not self.clues.point else ["."]

    def readings(self) -> Iterator[Reading]:
        """Every way in which the headers may be meant; a quantity that two headers give is taken from either."""
        options: dict[str, list[Meaning | None]] = {name: [*found] for name, found in self.options.items()}
        for name in set(itertools.chain(*self.rivals().values())):
            options[name] += [None] * (name not in COLUMNS and name not in self.settled)
        if math.prod(map(len, options.values())) > _MOST_READINGS:
            options = {name: found if len(found) < 4 else found[:3] for name, found in options.items()}
        sums = [name for name, found in self.options.items() if any(one.quantity in _PLAIN for one in found)]
        for combination in itertools.islice(itertools.product(*options.values()), 4 * _MOST_READINGS):
            chosen = {name: one for name, one in zip(options, combination, strict=True) if one}
            if len({_scope(chosen.get(name)) for name in sums}) < 2:  # prompts and replies are counted alike
                yield from filter(None, (self.evaluate(chosen, decimal) for decimal in self.decimals))

    def rivals(self) -> dict[str, list[str]]:
        """Quantities that several headers may give."""
        by: dict[str, list[str]] = {}
        for name, found in self.options.items():
            for quantity in {one.quantity for one in found}:
                by.setdefault(quantity, []).append(name)
        return {quantity: names for quantity, names in by.items() if len(names) > 1}

    def evaluate(self, chosen: Mapping[str, Meaning], decimal: str) -> Reading | None:
        """What follows from a choice; None if two headers give one quantity differently."""
        given: Values = {}
        for name, one in chosen.items():
            if one.quantity in NUMBERS:
                if (key := (name, one, decimal)) not in self._values:
                    self._values[key] = values_of(self.sample[name], one, decimal)
                values = self._values[key]
                if one.quantity in given and len(values):
                    with np.errstate(all="ignore"):
                        ratio = values / given[one.quantity]
                    if not np.isfinite(ratio).any() or abs(np.nanmedian(ratio) - 1) >= _TWICE:
                        return None
                given.setdefault(one.quantity, values)
        known, how = solve(given)
        wrong = conflicts(known, _WRONG)
        share = 0.0
        if known.keys() >= {*CELL, "energy_j"}:
            text = {one.quantity: self.sample[name] for name, one in chosen.items() if one.kind == "text"}
            nothing = pl.Series([None] * self.sample.height, dtype=pl.String)
            boards = {"gpus": physics.boards(self.sample["parallelism"]).to_numpy()} if "parallelism" in text else {}
            exceeded = physics.exceeded(boards | known, text.get("gpu", nothing), text.get("model", nothing))
            off = exceeded.power | exceeded.energy
            with np.errstate(all="ignore"):
                whole = known["batch"] * known["input_tokens"] * known["output_tokens"] * known["energy_j"]
            judged = np.broadcast_to(whole > 0, off.shape)
            share = float(off[judged].mean()) if judged.any() else 0.0
        if len(self.decimals) > 1 and self._breaks_counts(chosen, decimal):
            share = 1.0
        loose = len(conflicts(known, _DOUBTFUL)) - len(wrong)
        return Reading(chosen, decimal, given, known, how, wrong, loose, share)

    def _breaks_counts(self, chosen: Mapping[str, Meaning], decimal: str) -> bool:
        """Whether a batch or a length would have decimals."""
        counts = [name for name, one in chosen.items() if one.quantity in COUNTS]
        values = [numbers(parsed(self.sample[name], "count", decimal)[0]).drop_nulls() for name in counts]
        return any((each != each.round()).any() for each in values)


def _scope(one: Meaning | None) -> str:
    """Of what tokens are counted: "batch", "run" or "" for one request."""
    return one.quantity.removesuffix("_tokens").rpartition("_")[0] if one else ""


def values_of(series: pl.Series, one: Meaning, decimal: str) -> NDArray[np.float64]:
    """The values of a column as floats in our unit, NaN where there is none."""
    values = numbers(parsed(series, one.kind, decimal, one.factor)[0]).cast(pl.Float64).fill_null(float("nan"))
    if one.quantity in COUNTS:  # means are rounded before anything is derived from them
        whole = values.round()
        values = whole.zip_with((values - whole).abs() <= ROUNDED * values, values)
    return values.to_numpy()
