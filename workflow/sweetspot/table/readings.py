"""Reads the columns of a table as quantities. Where several readings are possible, those count that agree with the
table's own other columns and with what its boards can draw; if several still do, the user is asked, with all of them.
"""

import difflib
import itertools
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sweetspot.errors import SweetspotError
from sweetspot.table import physics
from sweetspot.table.numbers import Clues, clues, matches, numbers, parsed
from sweetspot.table.quantities import Relation, Values, conflicts, origins, ratios, solve
from sweetspot.table.schema import CELL, COLUMNS, REQUIRED
from sweetspot.table.words import COUNTS, FACTS, LIMITS, NUMBERS, QUANTITIES, Meaning, folded, meanings

DERIVED = (*CELL, "energy_j", "duration_s")
_WRONG, _DOUBTFUL = 1.5, 1.1  # factors by which two ways to one quantity may differ: another scope, another moment
_TWICE = 0.02  # relative difference of two columns that are one quantity, rounded
_ALIKE = 1e-3  # relative difference of results up to which two readings are one
_SAMPLE = 2000  # rows on which readings are compared
_MOST_READINGS = 512
# A mean is rounded if this changes it by less than this share; other lengths are refused, other batches stay.
ROUNDED = {"batch": 0.01, "input_tokens": 0.05, "output_tokens": 0.05}
_HALF = 0.5  # share of impossible rows from which a reading is impossible
BOARDS = ("gpus", "tensor_parallel", "pipeline_parallel")
_UNITLESS = ("energyconsumed", "energyconsumption")  # codecarbon's are in kWh
FALSE = r"(?i)^(false|no|n|f|0|0\.0)$"
_TRIED = 32  # readings
_UNITS = {"energy": ("mJ", "kJ", "Wh", "kWh"), "time": ("ms", "min"), "power": ("mW", "kW")}  # usual ones


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
    def missing(self) -> list[str]:
        """Required columns of numbers that do not follow."""
        derived = "batch" in self.how and "requests" in self.known and "runs" not in self.given
        # All requests of a run did not run together.
        whole = derived and np.allclose(self.known["batch"], self.known["requests"], rtol=_TWICE, equal_nan=True)
        return [one for one in REQUIRED if one in NUMBERS and (one not in self.known or (whole and one == "batch"))]

    @property
    def j_per_token(self) -> str:
        """Median joules per output token, in words."""
        with np.errstate(all="ignore"):
            each = self.known["energy_j"] / (self.known["batch"] * self.known["output_tokens"])
        return f"{np.nanmedian(each) if np.isfinite(each).any() else np.nan:.3g} J per output token"

    def same(self, other: "Reading") -> bool:
        """Whether both lead to the same rows; a duration that is only derived does not count."""
        both = (
            {*DERIVED} & self.known.keys() & other.known.keys() - ({"duration_s"} & self.how.keys() & other.how.keys())
        )
        pairs = [(self.known[name], other.known[name]) for name in both]
        alike = (np.allclose(*pair, rtol=_ALIKE, atol=0, equal_nan=True) for pair in pairs)
        return self.missing == other.missing and all(alike)


class Reader:
    """The possible readings of one file's frame."""

    def __init__(self, place: str, frame: pl.DataFrame, settled: Sequence[str] = (), decimal: str = "") -> None:
        """`settled` headers are meant as they are called; `decimal` is the mark, if the user gave it."""
        self.place, self.frame, self.settled = place, frame, set(settled)
        valid = frame["valid"].cast(pl.String) if "valid" in frame.columns else pl.Series([""])
        valid_rows = frame.filter(~matches(valid, FALSE) & frame["_off"].is_null())
        sample = valid_rows if valid_rows.height else frame
        self.sample = sample.gather_every(max(1, sample.height // _SAMPLE))
        names = [name for name in frame.columns if not name.startswith("_")]
        self.options = {name: found for name in names if (found := self._meant(name))}
        many, boards = self._several("requests", "runs"), self._several(*BOARDS)
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
            summed = "total" in plain or name == "energy_j" or ("gpu" not in plain and one.quantity == "energy_j")
            scopes = {"run": many, "board": boards and not summed, "request": name != one.quantity}
            found += [other for scope, may_be in scopes.items() if may_be for other in one.of(scope)]
            if plain in _UNITLESS:
                found += [one.within("kWh"), one.within("Wh")]
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
        sums = [name for name, found in self.options.items() if any(one.of("request") for one in found)]
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
                first, values = given.setdefault(one.quantity, self._values[key]), self._values[key]
                if first is not values and len(values):
                    with np.errstate(all="ignore"):
                        ratio = values / first
                    if not np.isfinite(ratio).any() or abs(np.nanmedian(ratio) - 1) >= _TWICE:
                        return None
        known, how = solve(given)
        wrong = conflicts(known, _WRONG)
        share = 0.0
        if known.keys() >= {*CELL, "energy_j"}:
            text = {one.quantity: self.sample[name] for name, one in chosen.items() if one.kind == "text"}
            nothing = pl.Series([None] * self.sample.height, dtype=pl.String)
            boards = {"gpus": physics.boards(self.sample["parallelism"]).to_numpy()} if "parallelism" in text else {}
            off = np.logical_or(*physics.exceeded(boards | known, text.get("gpu", nothing), text.get("model", nothing)))
            judged = np.all([np.broadcast_to(known[name], off.shape) > 0 for name in (*CELL, "energy_j")], axis=0)
            share = float(off[judged].mean()) if judged.any() else 0.0
        for name in [name for name, one in chosen.items() if one.quantity in COUNTS and len(self.decimals) > 1]:
            count = numbers(parsed(self.sample[name], "count", decimal)[0])
            share = 1.0 if (count != count.round()).any() else share  # a batch and a length have no decimals
        loose = len(conflicts(known, _DOUBTFUL)) - len(wrong)
        return Reading(chosen, decimal, given, known, how, wrong, loose, share)


def _scope(one: Meaning | None) -> str:
    """Of what tokens are counted: "batch", "run" or "" for one request."""
    return one.quantity.removesuffix("_tokens").rpartition("_")[0] if one else ""


def values_of(series: pl.Series, one: Meaning, decimal: str) -> NDArray[np.float64]:
    """The values of a column as floats in our unit, NaN where there is none."""
    values = numbers(parsed(series, one.kind, decimal, one.factor)[0]).cast(pl.Float64).fill_null(float("nan"))
    if one.quantity in COUNTS:  # means are rounded before anything is derived from them
        whole = values.round()
        values = whole.zip_with((values - whole).abs() <= ROUNDED[one.quantity] * values, values)
    return values.to_numpy()


def choose(reader: Reader) -> tuple[Reading, list[str]]:
    """The reading that the table and its boards allow, and notes. Raises SweetspotError if several or none do."""
    found = list(reader.readings())
    if not found:
        rivals = reader.rivals()
        quantity = next((name for name in DERIVED if name in rivals), next(iter(rivals)))
        raise ambiguous(reader.place, rivals[quantity], quantity)
    fullest = min(len(one.missing) for one in found)
    found = [one for one in found if len(one.missing) == fullest]
    good = [one for one in found if one.holds] or [new for one in found for new in _in_other_units(reader, one)]
    if not good:
        return _least_wrong(reader, found), []
    least = min(_cost(reader, one) for one in good)
    best = [one for one in good if _cost(reader, one) == least]
    distinct = [one for i, one in enumerate(best) if not any(one.same(other) for other in best[:i])]
    if len(distinct) > 1 and not distinct[0].missing:
        raise SweetspotError(f"{reader.place}: {_question(distinct, reader)}")
    reading, notes = distinct[0], []
    times = [one.known["duration_s"] for one in best if one.same(reading) and "duration_s" in one.known]
    if not all(np.allclose(each, times[0], rtol=1e-3, equal_nan=True) for each in times):
        reading = replace(reading, chosen={name: one for name, one in reading.chosen.items() if one.kind != "rate"})
    if len(reader.decimals) > 1:
        mark = "point" if reading.decimal == "." else "comma"
        notes.append(f"{reader.clues.unclear} and the like are read with a decimal {mark}: the other way is impossible")
    elif reading.decimal == "," and reader.clues.comma:
        notes.append(f"numbers are read with a decimal comma, as in {reader.clues.comma}")
    if left := [name for name in reader.options if name not in reading.chosen]:
        notes.append(f"not used, as other columns are read for the same: {', '.join(left)}")
    return reading, notes


def ambiguous(place: str, names: Sequence[str], quantity: str) -> SweetspotError:
    """That several columns could be one quantity, and only the user can choose."""
    ways = " or ".join(f"--map {shlex.quote(f'{name}={quantity}')}" for name in names[:9])
    return SweetspotError(f"{place}: {' and '.join(names)} could all be {quantity}; only you can say which: {ways}")


def _cost(reader: Reader, reading: Reading) -> tuple[int, int, int]:
    """How many columns it leaves out, whether it takes some as of a run and others as of a batch, and how it agrees."""
    scopes = set()
    for name, options in reader.options.items():
        of_run = [one.quantity.startswith("run_") for one in options]
        if any(of_run) and not all(of_run):
            scopes.add(name in reading.chosen and reading.chosen[name].quantity.startswith("run_"))
    return len(reader.options) - len(reading.chosen), len(scopes), reading.loose


def _in_other_units(reader: Reader, reading: Reading) -> Iterator[Reading]:
    """Readings that hold if a header that states no unit is in another one than ours."""
    for name, one in reading.chosen.items():
        if name not in COLUMNS and name not in reader.settled and not reader.options[name][0].unit:
            units = [
                reader.evaluate({**reading.chosen, name: one.within(unit)}, reading.decimal)
                for unit in _UNITS.get(one.kind, ())
            ]
            yield from (again for again in units if again and again.holds)


def proposals(reader: Reader, readings: Sequence[Reading]) -> str:
    """`--map` options with which the table holds, each tried on it: another unit, or another scope of a column."""
    found: dict[str, str] = {}
    for reading in readings[:_TRIED]:
        for change in _changes(reading):
            again = reader.evaluate({**reading.chosen, **change}, reading.decimal)
            if again and again.holds and not again.missing and _is_as_sure(again, reading):
                found.setdefault(_maps(change), again.j_per_token)
    return " or ".join(f"{maps} ({joules})" for maps, joules in found.items())


def _maps(change: Mapping[str, Meaning]) -> str:
    return " ".join(f"--map {shlex.quote(f'{name}={one.header}')}" for name, one in change.items())


def _changes(reading: Reading) -> Iterator[dict[str, Meaning]]:
    lengths = {one.quantity: name for name, one in reading.chosen.items() if one.quantity in CELL[1:]}
    for scope in ("batch", "run") if len(lengths) == 2 else ():
        yield {name: Meaning(f"{scope}_{length}") for length, name in lengths.items()}
    for name, one in reading.chosen.items():
        yield from ({name: other} for scope in ("run", "board", "each") for other in one.of(scope))
        yield from ({name: one.within(unit)} for unit in _UNITS.get(one.kind, ()))


def _is_as_sure(other: Reading, reading: Reading) -> bool:
    """Whether a reading does not hold only because nothing is left that it must agree with."""
    assumed = {"gpus", "requests", "runs", "batch"} & other.how.keys() - reading.how.keys()
    gone = {*DERIVED} & reading.known.keys() - other.known.keys()
    unneeded = len([*ratios(other.known)]) - len(other.how)  # relations that hold and derived nothing
    return not assumed and not gone and (not reading.wrong or unneeded > 0)


def _least_wrong(reader: Reader, found: Sequence[Reading]) -> Reading:
    """The reading by the plain meaning of the headers, if only its size is doubtful; otherwise a SweetspotError."""
    reading = min(found, key=lambda one: (_cost(reader, one), len(one.wrong), one.impossible))
    if not reading.wrong:
        return reading
    causes = []
    for relation, ratio in reading.wrong:
        cause = {origin for name in relation.powers for origin in origins(name, reading.given, reading.how)}
        causes.append((cause | {*CELL[1:]} if "tokens" in cause else cause, relation.text, max(ratio, 1 / ratio)))
    cause, relation_text, factor = min(causes, key=lambda each: len(each[0]))
    names = ", ".join(name for name, one in reading.chosen.items() if one.quantity in cause)
    advice = proposals(reader, [reading, *found])
    tail = f"what would agree: {advice}" if advice else "correct or remove one of these columns"
    raise SweetspotError(f"{reader.place}: {names} disagree by a factor of {factor:.3g} ({relation_text}); {tail}")


def _question(several: Sequence[Reading], reader: Reader) -> str:
    """Which of several readings is right, for the user to say, with the option for each."""
    if len({one.decimal for one in several}) > 1:
        ways = ", or ".join(f"--decimal {one.decimal} ({one.j_per_token})" for one in several)
        mark = "point" if "." in str(reader.clues.unclear) else "comma"
        return f"{reader.clues.unclear} may have a decimal {mark}, or it separates thousands; say which: {ways}"
    differing = [name for name in reader.options if len({one.chosen.get(name) for one in several}) > 1]
    kinds = {name: {one.chosen[name].kind for one in several if name in one.chosen} for name in differing}
    # A rate only has to agree; it does not decide what the rows are.
    differing = [name for name in differing if not kinds[name] <= {"rate", "efficiency"}] or differing
    lines = []
    for one in several:
        meant = {name: one.chosen[name] for name in differing if name in one.chosen}
        words = {name: QUANTITIES[of.quantity].get("says", of.quantity) for name, of in meant.items()}
        said = [f"{name} is {words[name]}{f' in {of.unit}' * (of.factor != 1)}" for name, of in meant.items()]
        lines.append(f"\n  {' and '.join(said)}: {_maps(meant)} ({one.j_per_token})")
    rivals = {quantity for quantity, names in reader.rivals().items() if {*names} & {*differing}}
    which = f"can be read in {len(several)} ways"
    if rivals and len(differing) > 1:
        which = f"could all be {' or '.join(sorted(rivals))}"
    return f"{' and '.join(differing)} {which}; only you can say which:{''.join(lines)}"


def hints(name: str, columns: Iterable[str]) -> list[str]:
    """Columns that may be meant by a missing one, most likely first; limits of the engine are not among them."""
    plain = {folded(column): column for column in columns if folded(column) not in LIMITS}
    known = [alias for alias in FACTS["hints"].get(name, ()) if alias in plain]
    if name in CELL and not known:  # energies differ in scope
        known = difflib.get_close_matches(folded(name), plain, n=1, cutoff=0.7)
    return [plain[alias] for alias in known]
