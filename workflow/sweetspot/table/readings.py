"""Reads the columns of a table as quantities. Where several readings are possible, those count that agree with the
table's own other columns and with what its boards can draw; if several still do, the user is asked, with all of them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table import physics
from sweetspot.table.numbers import Clues, clues, numbers, parsed
from sweetspot.table.quantities import Conflict, Relation, Values, conflicts, ratios, solve
from sweetspot.table.schema import CELL, Row
from sweetspot.table.words import (
    COUNTS,
    NUMBERS,
    UNITS,
    Meaning,
    folded,
    meanings,
)

_COLUMNS = Row.to_schema().columns
_REQUIRED = [name for name, column in _COLUMNS.items() if "default" not in (column.metadata or {})]
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
_PLAIN = {
    "batch_input_tokens": "input_tokens",
    "batch_output_tokens": "output_tokens",
}


@dataclass(frozen=True)
class Reading:
    """What each header means, the decimal mark, and what follows from it."""

    chosen: Mapping[str, Meaning | None]
    decimal: str
    given: Values = field(default_factory=dict)
    known: Values = field(default_factory=dict)
    how: Mapping[str, Relation] = field(default_factory=dict)
    wrong: Sequence[Conflict] = ()
    loose: int = 0  # relations that hold only roughly
    impossible: float = 0.0

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
        """Required columns that do not follow."""
        return [name for name in ("batch", "input_tokens", "output_tokens", "energy_j") if name not in self.known]

    @property
    def j_per_token(self) -> float:
        """Median joules per output token."""
        with np.errstate(all="ignore"):
            each = self.known["energy_j"] / (self.known["batch"] * self.known["output_tokens"])
        return float(np.nanmedian(each)) if np.isfinite(each).any() else float("nan")

    def same(self, other: "Reading") -> bool:
        """Whether both lead to the same rows; a duration that is only derived does not count."""
        if self.missing != other.missing:
            return False
        for name in DERIVED:
            here, there = self.known.get(name), other.known.get(name)
            if here is None or there is None:
                if name != "duration_s" and (here is not there):
                    return False
            elif not (name == "duration_s" and name in self.how and name in other.how) and not np.allclose(
                here, there, rtol=_ALIKE, atol=0, equal_nan=True
            ):
                return False
        return True


class Reader:
    """The possible readings of one file's frame."""

    def __init__(self, place: str, frame: pl.DataFrame, settled: Sequence[str] = (), decimal: str = "") -> None:
        """`settled` headers are meant as they are called; `decimal` is the mark, if the user gave it."""
        self.place, self.frame, self.settled = place, frame, set(settled)
        keep = _valid(frame)
        sample = frame.filter(keep) if keep is not None and keep.any() else frame
        self.sample = sample.gather_every(max(1, sample.height // _SAMPLE)) if sample.height else sample
        self.options = {name: self._meant(name) for name in frame.columns if not name.startswith("_")}
        self.options = {name: found for name, found in self.options.items() if found}
        self._in_context()
        self.decimals, self.clues = self._decimals(decimal)
        self._cache: dict[tuple[str, str], pl.Series] = {}

    def _meant(self, name: str) -> list[Meaning | None]:
        found = list(meanings(name))
        own = {one.quantity for one in found}
        if not found or (own == {"duration_s"} and name != "duration_s" and "duration_s" in self.frame.columns):
            return []  # a moment, or another time
        if own & NUMBERS.keys() and self.sample.height:
            # Text under a header such as "time" or "requests" is another thing.
            decimal = "," if clues(self.sample[name]).comma else "."
            value = numbers(parsed(self.sample[name], NUMBERS[found[0].quantity], decimal)[0])
            given = self.sample[name].drop_nulls().len()
            if name not in _COLUMNS and given and value.drop_nulls().len() < _HALF * given:
                return []
        return [*found]

    def _several(self, *quantities: str) -> bool:
        """Whether a column counts more than one of these in some row."""
        for name, found in self.options.items():
            if any(one and one.quantity in quantities for one in found):
                most = numbers(self.sample[name]).max()
                if isinstance(most, float) and most > 1:
                    return True
        return False

    def _in_context(self) -> None:
        many, boards = self._several("requests", "runs"), self._several("gpus", "tensor_parallel", "pipeline_parallel")
        for name, found in self.options.items():
            if name in self.settled:
                continue
            for one in [one for one in found if one]:
                plain = folded(name)
                if many and one.quantity in OF_RUN and name != "duration_s":
                    found.append(one._replace(quantity=OF_RUN[one.quantity]))
                if many and one.quantity == "duration_s" and name == "duration_s":
                    found.append(one._replace(quantity="run_duration_s"))
                summed = "total" in plain or name == "energy_j" or ("gpu" not in plain and one.quantity == "energy_j")
                if boards and one.quantity in OF_BOARD and not summed:
                    found.append(one._replace(quantity=OF_BOARD[one.quantity]))
                if plain in _UNITLESS:
                    found += [one._replace(factor=UNITS["energy"][unit], unit=unit) for unit in ("kWh", "Wh")]
                if one.quantity in _PLAIN and name != one.quantity:
                    found.append(one._replace(quantity=_PLAIN[one.quantity]))
            if not many:
                self.options[name] = [one for one in found if not one or not one.quantity.startswith("run_")] or found

    def _decimals(self, decimal: str) -> tuple[list[str], Clues]:
        if decimal:
            return [decimal], Clues()
        found = Clues()
        places: dict[str, str] = {}
        for name, options in self.options.items():
            if options[0] and options[0].quantity in NUMBERS:
                own = clues(self.frame[name])
                for kind in ("point", "comma"):
                    if (value := getattr(own, kind)) and kind not in places:
                        places[kind] = f"{name} is {value}"
                found |= own
        if found.point and found.comma:
            raise SweetspotError(
                f"{self.place}: {places['point']}, with a decimal point, but {places['comma']}, with a decimal comma; "
                "write all numbers in one way"
            )
        if found.point:
            self._check_points()
        marked = found.point or found.comma
        return ([","] if found.comma else [".", ","] if found.unclear and not marked else ["."]), found

    def _check_points(self) -> None:
        """Refuse counts such as 1.024 among 64 and 128, where other columns have decimal points."""
        for name, options in self.options.items():
            if options[0] and options[0].quantity in COUNTS and (unclear := clues(self.frame[name]).unclear):
                plain = self.frame[name].filter(self.frame[name].str.contains(r"^\s*\d+\s*$").fill_null(False))
                if plain.len() and "." in unclear:
                    raise SweetspotError(
                        f"{self.place}: {name} is {unclear} in one row and {plain[0]} in another: if the point "
                        f"separates thousands, write {unclear.replace('.', '')}; if it marks decimals, add --decimal ."
                    )

    def readings(self) -> Iterator[Reading]:
        """Every way in which the headers may be meant; a quantity that two headers give is taken from either."""
        options = {name: list(found) for name, found in self.options.items()}
        for names in self.rivals().values():
            exact = [name for name in names if name in _COLUMNS or name in self.settled]
            for name in names:
                if name not in exact:
                    options[name].append(None)
        if np.prod([float(len(found)) for found in options.values()]) > _MOST_READINGS:
            options = {name: found if len(found) < 4 else found[:3] for name, found in options.items()}
        products = itertools.product(*options.values())
        for combination in itertools.islice(products, 4 * _MOST_READINGS):
            if len({_scope(one) for name, one in zip(options, combination, strict=True) if self._sums(name)}) > 1:
                continue  # prompts and replies are counted alike
            for decimal in self.decimals:
                if reading := self.evaluate(dict(zip(options, combination, strict=True)), decimal, self.sample):
                    yield reading

    def _sums(self, name: str) -> bool:
        return any(one and one.quantity in _PLAIN for one in self.options[name])

    def rivals(self) -> dict[str, list[str]]:
        """Quantities that several headers may give."""
        by: dict[str, list[str]] = {}
        for name, found in self.options.items():
            for quantity in {one.quantity for one in found if one}:
                by.setdefault(quantity, []).append(name)
        return {quantity: names for quantity, names in by.items() if len(names) > 1}

    def evaluate(self, chosen: Mapping[str, Meaning | None], decimal: str, rows: pl.DataFrame) -> Reading | None:
        """What follows from a choice; None if two headers give one quantity differently."""
        given: Values = {}
        for name, one in chosen.items():
            if one is None or one.quantity not in NUMBERS:
                continue
            values = self.column(name, one, decimal, rows).to_numpy() * 1.0
            if one.quantity in given:
                with np.errstate(all="ignore"):
                    ratio = np.nanmedian(values / given[one.quantity]) if len(values) else 1.0
                if not abs(ratio - 1) < _TWICE:
                    return None
                continue
            given[one.quantity] = values
        known, how = solve(given)
        wrong = conflicts(known, _WRONG)
        share = 0.0
        if not {"batch", "output_tokens", "input_tokens", "energy_j"} - known.keys():
            off = self.limits(chosen, known, rows).exceeded(known)
            with np.errstate(all="ignore"):
                judged = np.broadcast_to(np.prod([known[name] for name in (*CELL, "energy_j")], axis=0) > 0, off.shape)
            share = float(off[judged].mean()) if judged.any() else 0.0
        if len(self.decimals) > 1 and self._breaks_counts(chosen, decimal, rows):
            share = 1.0
        loose = len(conflicts(known, _DOUBTFUL)) - len(wrong)
        return Reading(chosen, decimal, given, known, how, wrong, loose, share)

    def _breaks_counts(self, chosen: Mapping[str, Meaning | None], decimal: str, rows: pl.DataFrame) -> bool:
        """Whether a batch or a length would have decimals."""
        counts = [name for name, one in chosen.items() if one and one.quantity in COUNTS]
        values = [numbers(parsed(rows[name], "count", decimal)[0]).drop_nulls() for name in counts]
        return any((each != each.round()).any() for each in values)

    def limits(self, chosen: Mapping[str, Meaning | None], known: Values, rows: pl.DataFrame) -> physics.Limits:
        """What the boards of these rows can draw and cost."""
        text = {one.quantity: rows[name] for name, one in chosen.items() if one and one.quantity in ("gpu", "model")}
        nothing = pl.Series([None] * rows.height, dtype=pl.String)
        if "gpus" not in known and "parallelism" in rows.columns:
            known = {**known, "gpus": physics.boards(rows["parallelism"]).to_numpy()}
        return physics.limits(known, text.get("gpu", nothing), text.get("model", nothing))

    def column(self, name: str, one: Meaning, decimal: str, rows: pl.DataFrame) -> pl.Series:
        """The values of a header as floats in our unit, NaN where there is none."""
        text, _ = parsed(rows[name], NUMBERS[one.quantity], decimal, one.factor)
        values = numbers(text).fill_null(float("nan"))
        if one.quantity in COUNTS:  # means are rounded before anything is derived from them
            whole = values.round()
            values = whole.zip_with((values - whole).abs() <= ROUNDED * values, values)
        return values


def _scope(one: Meaning | None) -> str:
    return one.quantity.removesuffix("_tokens").rpartition("_")[0] if one else ""


def _valid(frame: pl.DataFrame) -> pl.Series | None:
    if "valid" not in frame.columns:
        return None
    return ~frame["valid"].cast(pl.String).str.to_lowercase().is_in(["false", "no", "n", "f", "0", "0.0"]).fill_null(
        False
    )
