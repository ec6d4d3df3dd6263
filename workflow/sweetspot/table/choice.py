"""Chooses the reading of a table that its own columns and its boards allow, and says what a person can do otherwise.

Every `--map` is tried on the table before it is printed.
"""

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sweetspot.errors import SweetspotError
from sweetspot.table.quantities import origins
from sweetspot.table.readings import DERIVED, OF_BOARD, OF_RUN, Reader, Reading
from sweetspot.table.schema import CELL, COLUMNS
from sweetspot.table.words import FACTS, LIMITS, Meaning, folded

_TRIED = 32  # readings
_UNITS = {"energy": ("mJ", "kJ", "Wh", "kWh"), "time": ("ms", "min"), "power": ("mW", "kW")}  # usual ones
_PER_REQUEST = {"energy_j": ("energy_per_request_j", "energy_per_output_token_j", "energy_per_total_token_j")}


def choose(reader: Reader) -> tuple[Reading, list[str]]:
    """The reading that the table and its boards allow, and notes. Raises SweetspotError if several or none do."""
    found = list(reader.readings())
    if not found:
        rivals = reader.rivals()
        quantity = next((name for name in DERIVED if name in rivals), next(iter(rivals)))
        raise ambiguous(reader.place, rivals[quantity], quantity)
    fullest = min(len(one.missing) for one in found)
    found = [one for one in found if len(one.missing) == fullest]
    good = [one for one in found if one.holds] or _in_other_units(reader, found)
    if not good:
        return _least_wrong(reader, found), []
    least = min(_cost(reader, one) for one in good)
    best = [one for one in good if _cost(reader, one) == least]
    distinct: list[Reading] = []
    for one in best:
        if not any(one.same(other) for other in distinct):
            distinct.append(one)
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
    choice = shlex.quote(f"{names[0]}={quantity}")
    return SweetspotError(f"{place}: {' and '.join(names)} could all be {quantity}; choose one with --map {choice}")


def _cost(reader: Reader, reading: Reading) -> tuple[int, int, int]:
    """How many columns it leaves out, whether it takes some as of a run and others as of a batch, and how it agrees."""
    scopes = set()
    for name, options in reader.options.items():
        of_run = [one.quantity.startswith("run_") for one in options]
        if any(of_run) and not all(of_run):
            scopes.add(name in reading.chosen and reading.chosen[name].quantity.startswith("run_"))
    return len(reader.options) - len(reading.chosen), len(scopes), reading.loose


def _in_other_units(reader: Reader, found: Sequence[Reading]) -> list[Reading]:
    """Readings that hold if a header that states no unit is in another one than ours."""
    good: list[Reading] = []
    for reading in found:
        for name, one in reading.chosen.items():
            if name not in COLUMNS and name not in reader.settled and not reader.options[name][0].unit:
                for unit in _UNITS.get(one.kind, ()):
                    again = reader.evaluate({**reading.chosen, name: one.within(unit)}, reading.decimal)
                    if again and again.holds and not any(again.same(known) for known in good):
                        good.append(again)
    return good


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
        others = [OF_RUN.get(one.quantity), OF_BOARD.get(one.quantity), *_PER_REQUEST.get(one.quantity, ())]
        yield from ({name: one._replace(quantity=other)} for other in others if other)
        yield from ({name: one.within(unit)} for unit in _UNITS.get(one.kind, ()))


def _is_as_sure(other: Reading, reading: Reading) -> bool:
    """Whether a reading does not hold only because nothing is left that it must agree with."""
    assumed = {"gpus", "requests", "runs", "batch"} & other.how.keys() - reading.how.keys()
    gone = {*DERIVED} & reading.known.keys() - other.known.keys()
    return not assumed and not gone and (not reading.wrong or other.checks > 0)


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
        said = [f"{name} is {of.said}{f' in {of.unit}' * (of.factor != 1)}" for name, of in meant.items()]
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
