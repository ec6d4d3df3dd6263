"""Reads the columns of a table as quantities. Where several readings are possible, those count that agree with the
table's own other columns and with what its boards can draw; if several still do, the user is asked, with all of them.
"""

import difflib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table import physics
from sweetspot.table.numbers import Clues, clues, numbers, parsed
from sweetspot.table.quantities import Conflict, Relation, Values, conflicts, solve
from sweetspot.table.schema import CELL, Row
from sweetspot.table.words import (
    COUNTS,
    HINTS,
    LIMITS,
    NUMBERS,
    UNITS,
    Meaning,
    folded,
    lacks_case,
    meanings,
)

_COLUMNS = Row.to_schema().columns
_REQUIRED = [name for name, column in _COLUMNS.items() if "default" not in (column.metadata or {})]
_DERIVED = (*CELL, "energy_j", "duration_s")
_WRONG, _DOUBTFUL = 1.5, 1.1  # factors by which two ways to one quantity may differ: another scope, another moment
_ALIKE = 1e-3  # relative difference of results up to which two readings are one
_SAMPLE = 2000  # rows on which readings are compared
_MOST_READINGS = 512
_HALF = 0.5  # share of impossible rows from which a reading is impossible
# How a header may also be meant, if the table counts requests, runs or boards.
_OF_RUN = {"energy_j": "run_energy_j", "duration_s": "run_duration_s"}
_OF_BOARD = {"power_w": "power_per_gpu_w", "energy_j": "energy_per_gpu_j"}
_PER_REQUEST = {"energy_j": ("energy_per_request_j", "energy_per_output_token_j", "energy_per_total_token_j")}
_UNITLESS = ("energyconsumed", "energyconsumption")  # codecarbon's are in kWh
_PLAIN = {
    "batch_input_tokens": "input_tokens",
    "batch_output_tokens": "output_tokens",
}
_SAID = {
    "energy_j": "the energy of one run of the batch",
    "run_energy_j": "the energy of the whole run of all requests",
    "duration_s": "the duration of one run of the batch",
    "run_duration_s": "the duration of the whole run of all requests",
    "power_w": "the power of all boards together",
    "power_per_gpu_w": "the power of each board",
    "energy_per_gpu_j": "the energy of each board",
    "energy_per_output_token_j": "joules per output token",
    "energy_per_total_token_j": "joules per token of prompt and reply",
    "batch_input_tokens": "tokens summed over the batch",
    "batch_output_tokens": "tokens summed over the batch",
    "run_input_tokens": "tokens summed over the run",
    "run_output_tokens": "tokens summed over the run",
    "input_tokens": "tokens of each request",
    "output_tokens": "tokens of each request",
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
    impossible: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing in the table, and no board, contradicts it."""
        return not self.wrong and self.impossible < _HALF

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
        """Whether both lead to the same rows."""
        if self.missing != other.missing:
            return False
        for name in _DERIVED:
            here, there = self.known.get(name), other.known.get(name)
            if here is None or there is None:
                if name != "duration_s" and (here is not there):
                    return False
            elif not np.allclose(here, there, rtol=_ALIKE, atol=0, equal_nan=True):
                return False
        return True


class Reader:
    """The possible readings of one file's frame. `settled` headers are meant as they are called."""

    def __init__(self, place: str, frame: pl.DataFrame, settled: Sequence[str] = (), decimal: str = "") -> None:
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
        if not found or name not in self.sample.columns:
            return []
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
                if many and one.quantity in _OF_RUN and name != "duration_s":
                    found.append(one._replace(quantity=_OF_RUN[one.quantity]))
                if many and one.quantity == "duration_s" and name == "duration_s":
                    found.append(one._replace(quantity="run_duration_s"))
                summed = "total" in plain or name == "energy_j" or "gpu" not in plain and one.quantity == "energy_j"
                if boards and one.quantity in _OF_BOARD and not summed:
                    found.append(one._replace(quantity=_OF_BOARD[one.quantity]))
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
        marked = found.point or found.comma
        return ([","] if found.comma else [".", ","] if found.unclear and not marked else ["."]), found

    def readings(self) -> Iterator[Reading]:
        """Every way in which the headers may be meant; a quantity that two headers give is taken from either."""
        options = {name: list(found) for name, found in self.options.items()}
        for names in self._rivals().values():
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

    def _rivals(self) -> dict[str, list[str]]:
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
                if not abs(ratio - 1) < _DOUBTFUL - 1:
                    return None
                continue
            given[one.quantity] = values
        known, how = solve(given)
        wrong = conflicts(known, _WRONG)
        share = 0.0
        if not {"batch", "output_tokens", "input_tokens", "energy_j"} - known.keys():
            off = physics.impossible(known, self.limits(chosen, known, rows))
            with np.errstate(all="ignore"):
                judged = np.broadcast_to(np.prod([known[name] for name in (*CELL, "energy_j")], axis=0) > 0, off.shape)
            share = float(off[judged].mean()) if judged.any() else 0.0
            if decimal != self.decimals[0] or len(self.decimals) > 1:
                broken = [known[name] != np.round(known[name]) for name in COUNTS]
                share = max(share, float(np.any(broken, axis=0).mean())) if broken else share
        return Reading(chosen, decimal, given, known, how, wrong, share)

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
        return numbers(text).fill_null(float("nan"))


def _scope(one: Meaning | None) -> str:
    return one.quantity.removesuffix("_tokens").rpartition("_")[0] if one else ""


def choose(reader: Reader) -> tuple[Reading, list[str]]:
    """The reading that the table and its boards allow, and notes. Raises SweetspotError if several or none do."""
    found = list(reader.readings())
    if not found:
        _refuse_rivals(reader)
    fullest = min(len(one.missing) for one in found)
    found = [one for one in found if len(one.missing) == fullest]
    good = [one for one in found if one.holds] or _other_units(reader, found)
    if not good:
        return _least_wrong(reader, found), []
    unused = min(_unused(one) for one in good)
    best = [one for one in good if _unused(one) == unused]
    distinct: list[Reading] = []
    for one in best:
        if not any(one.same(other) for other in distinct):
            distinct.append(one)
    if len(distinct) > 1 and not distinct[0].missing:
        raise SweetspotError(f"{reader.place}: {_question(distinct, reader)}")
    reading = distinct[0]
    notes = []
    if len(reader.decimals) > 1:
        mark = "point" if reading.decimal == "." else "comma"
        notes.append(f"{reader.clues.unclear} and the like are read with a decimal {mark}: the other way is impossible")
    elif reading.decimal == ",":
        notes.append(f"numbers are read with a decimal comma, as in {reader.clues.comma}")
    left = [name for name, one in reading.chosen.items() if one is None]
    if left:
        notes.append(f"not used, as other columns are read for the same: {', '.join(left)}")
    return reading, notes


def _unused(reading: Reading) -> int:
    return sum(one is None for one in reading.chosen.values())


def _other_units(reader: Reader, found: Sequence[Reading]) -> list[Reading]:
    """Readings that hold if a header that states no unit is in another one than ours."""
    open_units = [
        name
        for name, options in reader.options.items()
        if name not in _COLUMNS and options[0] and not options[0].unit and name not in reader.settled
    ]
    good = []
    for reading in found:
        for name in open_units:
            if (one := reading.chosen[name]) and NUMBERS.get(one.quantity) in ("energy", "time", "power"):
                for unit, factor in UNITS[NUMBERS[one.quantity]].items():
                    other = {**reading.chosen, name: one._replace(factor=factor, unit=unit)}
                    again = reader.evaluate(other, reading.decimal, reader.sample)
                    if again and again.holds and not any(again.same(known) for known in good):
                        good.append(again)
    return good


def proposals(reader: Reader, reading: Reading) -> list[str]:
    """`--map` options, each tried on the table, with which it holds: another unit, or another scope of a column."""
    found = []
    for name, one in reading.chosen.items():
        if one is None or one.quantity not in NUMBERS or name not in reader.frame.columns:
            continue
        kind = NUMBERS[one.quantity]
        scopes = [_OF_RUN.get(one.quantity), _OF_BOARD.get(one.quantity), *_PER_REQUEST.get(one.quantity, ())]
        others = [Meaning(quantity, one.factor, one.unit) for quantity in scopes if quantity]
        units = {"energy": ("mJ", "kJ", "Wh", "kWh"), "time": ("ms", "min"), "power": ("mW", "kW")}.get(kind, ())
        others += [Meaning(one.quantity, UNITS[kind][unit], unit) for unit in units]
        for other in others:
            again = reader.evaluate({**reading.chosen, name: other}, reading.decimal, reader.sample)
            if again and again.holds and not again.missing and again.known.keys() >= {*_DERIVED} & reading.known.keys():
                base = other.quantity.removesuffix("_j").removesuffix("_s").removesuffix("_w")
                target = f"{base}_{other.unit}" if other.unit else other.quantity
                found.append(f"--map {shlex.quote(f'{name}={target}')} ({again.j_per_token:.3g} J per output token)")
    return found


def _least_wrong(reader: Reader, found: Sequence[Reading]) -> Reading:
    """The reading by the plain meaning of the headers, if only its size is doubtful. Raises SweetspotError otherwise."""
    reading = min(found, key=lambda one: (_unused(one), len(one.wrong), one.impossible))
    if not reading.wrong:
        return reading
    reasons = []
    for conflict in reading.wrong[:3]:
        names = [name for name, one in reading.chosen.items() if one and one.quantity in _origins(reading, conflict)]
        factor = conflict.ratio if conflict.ratio > 1 else 1 / conflict.ratio
        reasons.append(f"{', '.join(names)} disagree by a factor of {factor:.3g} ({conflict.relation.text})")
    advice = proposals(reader, reading)
    tail = f"; what would agree: {' or '.join(advice)}" if advice else "; correct or remove one of these columns"
    raise SweetspotError(f"{reader.place}: {'; '.join(reasons)}{tail}")


def _origins(reading: Reading, conflict: Conflict) -> set[str]:
    """The given quantities from which the two sides of a conflict follow."""
    found, open_names, seen = set(), list(conflict.relation.powers), set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in reading.given:
            found.add(name)
        elif name == "tokens":
            open_names += ["input_tokens", "output_tokens"]
        elif name in reading.how:
            open_names += [other for other in reading.how[name].powers if other != name]
    return found


def _question(several: Sequence[Reading], reader: Reader) -> str:
    """Which of several readings is right, for the user to say, with the option for each."""
    if len({one.decimal for one in several}) > 1:
        ways = ", or ".join(
            f"--decimal {one.decimal} ({one.j_per_token:.3g} J per output token)" for one in several
        )
        return f"{reader.clues.unclear} may have a decimal {'point' if '.' in str(reader.clues.unclear) else 'comma'} or separate thousands; say which: {ways}"
    differing = [name for name in several[0].chosen if len({one.chosen[name] for one in several}) > 1]
    differing = [name for name in differing if _is_asked(several, name)]
    lines = []
    for one in several:
        said, maps = [], []
        for name in differing:
            if meaning := one.chosen[name]:
                unit = f" in {meaning.unit}" if meaning.unit and meaning.unit not in name else ""
                said.append(f"{name} is {_SAID.get(meaning.quantity, meaning.quantity)}{unit}")
                base = meaning.quantity.rpartition("_")[0]
                target = f"{base}_{meaning.unit}" if unit else meaning.quantity
                maps.append("--map " + shlex.quote(f"{name}={target}"))
        lines.append(f"{' and '.join(said)}: {' '.join(maps)} ({one.j_per_token:.3g} J per output token)")
    rivals = {q for q, names in reader._rivals().items() if set(names) & set(differing)}
    which = f"{' and '.join(differing)} could all be {' or '.join(sorted(rivals))}" if rivals and len(differing) > 1 else f"{' and '.join(differing)} can be read in {len(several)} ways"
    return which + "; only you can say which:\n  " + "\n  ".join(lines)


def _is_asked(several: Sequence[Reading], name: str) -> bool:
    """Whether a header decides what the rows are; a rate only has to agree."""
    kinds = {NUMBERS.get(one.chosen[name].quantity, "text") for one in several if one.chosen[name]}  # type: ignore[union-attr]
    return not kinds <= {"rate", "efficiency"}


def _refuse_rivals(reader: Reader) -> None:
    for quantity, names in reader._rivals().items():
        if quantity in (*_REQUIRED, "duration_s"):
            raise SweetspotError(
                f"{reader.place}: {' and '.join(names)} could all be {quantity}; choose one with --map "
                + shlex.quote(f"{names[0]}={quantity}")
            )
    raise SweetspotError(f"{reader.place}: two columns give one quantity differently; remove one of them")


def _valid(frame: pl.DataFrame) -> pl.Series | None:
    if "valid" not in frame.columns:
        return None
    return ~frame["valid"].cast(pl.String).str.to_lowercase().is_in(["false", "no", "n", "f", "0", "0.0"]).fill_null(False)


def hints(name: str, columns: Sequence[str]) -> list[str]:
    """Columns that may be meant by a missing one, most likely first; limits of the engine are not among them."""
    plain = {folded(column): column for column in columns if folded(column) not in LIMITS}
    known = [plain[alias] for alias in HINTS.get(name, ()) if alias in plain]
    close = difflib.get_close_matches(folded(name), plain, n=1, cutoff=0.7)
    return known or [plain[other] for other in close]


def unclear_unit(columns: Sequence[str]) -> str | None:
    """The first header that may be in millijoules or megajoules."""
    return next((name for name in columns if lacks_case(name)), None)
