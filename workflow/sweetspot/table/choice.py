"""Chooses the reading of a table that its own columns and its boards allow, and says what a person can do otherwise.

Every `--map` is tried on the table before it is printed.
"""

import difflib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from sweetspot.errors import SweetspotError
from sweetspot.table.quantities import origins
from sweetspot.table.readings import DERIVED, OF_BOARD, OF_RUN, Reader, Reading
from sweetspot.table.schema import CELL, Row
from sweetspot.table.words import HINTS, LIMITS, NUMBERS, UNITS, Meaning, folded, lacks_case

_COLUMNS = Row.to_schema().columns
_TRIED = 32  # readings
_UNITS = {"energy": ("mJ", "kJ", "Wh", "kWh"), "time": ("ms", "min"), "power": ("mW", "kW")}  # usual ones
_PER_REQUEST = {"energy_j": ("energy_per_request_j", "energy_per_output_token_j", "energy_per_total_token_j")}
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
    least = min(_cost(reader, one) for one in good)
    best = [one for one in good if _cost(reader, one) == least]
    distinct: list[Reading] = []
    for one in best:
        if not any(one.same(other) for other in distinct):
            distinct.append(one)
    if len(distinct) > 1 and not distinct[0].missing:
        raise SweetspotError(f"{reader.place}: {_question(distinct, reader)}")
    reading, notes = distinct[0], []
    alike = [one for one in best if one.same(reading)]
    times = [one.known["duration_s"] for one in alike if "duration_s" in one.known]
    if len(times) > 1 and not all(np.allclose(each, times[0], rtol=1e-3, equal_nan=True) for each in times):
        rates = [name for name, one in reading.chosen.items() if one and NUMBERS.get(one.quantity) == "rate"]
        reading = replace(reading, chosen=reading.chosen | dict.fromkeys(rates))  # type: ignore[operator]
    if len(reader.decimals) > 1:
        mark = "point" if reading.decimal == "." else "comma"
        notes.append(f"{reader.clues.unclear} and the like are read with a decimal {mark}: the other way is impossible")
    elif reading.decimal == ",":
        notes.append(f"numbers are read with a decimal comma, as in {reader.clues.comma}")
    left = [name for name, one in reading.chosen.items() if one is None]
    if left:
        notes.append(f"not used, as other columns are read for the same: {', '.join(left)}")
    return reading, notes


def _cost(reader: Reader, reading: Reading) -> tuple[int, int, int]:
    """How many columns it leaves out, whether it takes some as of a run and others as of a batch, and how it agrees."""

    def of_run(one: Meaning | None) -> bool:
        return bool(one and one.quantity.startswith("run_"))

    open_names = [name for name, options in reader.options.items() if len(set(map(of_run, options))) > 1]
    scopes = {of_run(reading.chosen[name]) for name in open_names if name in reading.chosen}
    return sum(one is None for one in reading.chosen.values()), len(scopes), reading.loose


def _other_units(reader: Reader, found: Sequence[Reading]) -> list[Reading]:
    """Readings that hold if a header that states no unit is in another one than ours."""
    open_units = [
        name
        for name, options in reader.options.items()
        if name not in _COLUMNS and options[0] and not options[0].unit and name not in reader.settled
    ]
    good: list[Reading] = []
    for reading in found:
        for name in open_units:
            if (one := reading.chosen[name]) and NUMBERS.get(one.quantity) in _UNITS:
                for unit in _UNITS[NUMBERS[one.quantity]]:
                    other = {**reading.chosen, name: one._replace(factor=UNITS[NUMBERS[one.quantity]][unit], unit=unit)}
                    again = reader.evaluate(other, reading.decimal, reader.sample)
                    if again and again.holds and not any(again.same(known) for known in good):
                        good.append(again)
    return good


def proposals(reader: Reader, readings: Sequence[Reading]) -> list[str]:
    """`--map` options with which the table holds, each tried on it: another unit, or another scope of a column."""
    found: dict[str, float] = {}
    for reading in readings[:_TRIED]:
        for change in _changes(reading):
            again = reader.evaluate({**reading.chosen, **change}, reading.decimal, reader.sample)
            if again and again.holds and not again.missing and _is_as_sure(again, reading):
                maps = (f"--map {shlex.quote(f'{name}={other.header}')}" for name, other in change.items())
                found.setdefault(" ".join(maps), again.j_per_token)
    return [f"{maps} ({joules:.3g} J per output token)" for maps, joules in found.items()]


def _changes(reading: Reading) -> Iterator[dict[str, Meaning]]:
    lengths = {one.quantity: name for name, one in reading.chosen.items() if one and one.quantity in CELL[1:]}
    for scope in ("batch", "run") if len(lengths) == 2 else ():
        yield {name: Meaning(f"{scope}_{length}", 1.0, "") for length, name in lengths.items()}
    for name, one in reading.chosen.items():
        kind = NUMBERS.get(one.quantity, "") if one else ""
        if one and kind in _UNITS:
            for quantity in (OF_RUN.get(one.quantity), OF_BOARD.get(one.quantity), *_PER_REQUEST.get(one.quantity, ())):
                if quantity:
                    yield {name: one._replace(quantity=quantity)}
            for unit in _UNITS[kind]:
                yield {name: Meaning(one.quantity, UNITS[kind][unit], unit)}


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
    causes = [
        {origin for name in one.relation.powers for origin in origins(name, reading.given, reading.how)}
        for one in reading.wrong
    ]
    causes = [each | {*CELL[1:]} if "tokens" in each else each for each in causes]
    conflict, cause = min(zip(reading.wrong, causes, strict=True), key=lambda pair: len(pair[1]))
    names = [name for name, one in reading.chosen.items() if one and one.quantity in cause]
    factor = max(conflict.ratio, 1 / conflict.ratio)
    advice = proposals(reader, [reading, *found])
    tail = f"what would agree: {' or '.join(advice)}" if advice else "correct or remove one of these columns"
    raise SweetspotError(
        f"{reader.place}: {', '.join(names)} disagree by a factor of {factor:.3g} ({conflict.relation.text}); {tail}"
    )


def _question(several: Sequence[Reading], reader: Reader) -> str:
    """Which of several readings is right, for the user to say, with the option for each."""
    if len({one.decimal for one in several}) > 1:
        ways = ", or ".join(f"--decimal {one.decimal} ({one.j_per_token:.3g} J per output token)" for one in several)
        mark = "point" if "." in str(reader.clues.unclear) else "comma"
        return f"{reader.clues.unclear} may have a decimal {mark}, or it separates thousands; say which: {ways}"
    differing = [name for name in several[0].chosen if len({one.chosen[name] for one in several}) > 1]
    differing = [name for name in differing if _is_asked(several, name)] or differing
    lines = []
    for one in several:
        said, maps = [], []
        for name in differing:
            if meaning := one.chosen[name]:
                unit = f" in {meaning.unit}" if meaning.factor != 1 else ""
                said.append(f"{name} is {_SAID.get(meaning.quantity, meaning.quantity)}{unit}")
                maps.append("--map " + shlex.quote(f"{name}={meaning.header}"))
        lines.append(f"{' and '.join(said)}: {' '.join(maps)} ({one.j_per_token:.3g} J per output token)")
    rivals = {q for q, names in reader.rivals().items() if set(names) & set(differing)}
    which = (
        f"{' and '.join(differing)} could all be {' or '.join(sorted(rivals))}"
        if rivals and len(differing) > 1
        else f"{' and '.join(differing)} can be read in {len(several)} ways"
    )
    return which + "; only you can say which:\n  " + "\n  ".join(lines)


def _is_asked(several: Sequence[Reading], name: str) -> bool:
    """Whether a header decides what the rows are; a rate only has to agree."""
    kinds = {NUMBERS.get(one.chosen[name].quantity, "text") for one in several if one.chosen[name]}  # type: ignore[union-attr]
    return not kinds <= {"rate", "efficiency"}


def _refuse_rivals(reader: Reader) -> None:
    for quantity, names in reader.rivals().items():
        if quantity in ("model", *DERIVED):
            raise SweetspotError(
                f"{reader.place}: {' and '.join(names)} could all be {quantity}; choose one with --map "
                + shlex.quote(f"{names[0]}={quantity}")
            )
    raise SweetspotError(f"{reader.place}: two columns give one quantity differently; remove one of them")


def hints(name: str, columns: Sequence[str]) -> list[str]:
    """Columns that may be meant by a missing one, most likely first; limits of the engine are not among them."""
    plain = {folded(column): column for column in columns if folded(column) not in LIMITS}
    known = [plain[alias] for alias in HINTS.get(name, ()) if alias in plain]
    close = (
        difflib.get_close_matches(folded(name), plain, n=1, cutoff=0.7) if name in CELL else []
    )  # energies differ in scope
    return known or [plain[other] for other in close]


def unclear_unit(columns: Sequence[str]) -> str | None:
    """The first header that may be in millijoules or megajoules."""
    return next((name for name in columns if lacks_case(name)), None)
