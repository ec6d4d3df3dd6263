"""Gives the columns of a table our names and units: the field's formats, common headers, `--map` and `--set`."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sweetspot.errors import SweetspotError
from sweetspot.table import formats
from sweetspot.table.files import renamed, shortened
from sweetspot.table.numbers import as_text, parsed
from sweetspot.table.quantities import Values, origins, ratios, solve
from sweetspot.table.readings import BOARDS, DERIVED, Reader, Reading, ambiguous, choose, hints, proposals, values_of
from sweetspot.table.schema import CELL, COLUMNS, REQUIRED
from sweetspot.table.states import aside, summed
from sweetspot.table.words import LIMITS, NUMBERS, Meaning, folded, meanings, unclear_unit

_FAILED = 1.01  # requests sent over those completed, from which a run's totals are of others too
_ROW_OFF = 2.0  # factor between two ways to a row's quantity from which the row is set aside


def named(
    path: Path, raw: pl.DataFrame, rename: Mapping[str, str], constants: Mapping[str, str], decimal: str = ""
) -> tuple[pl.DataFrame, list[str], str]:
    """One table with our column names and units, what was understood, and how it would be plausible if it is not.

    Besides ours, it has columns `_off`, reasons to set rows aside, and `_gpus`, the number of boards if it is known.
    Applies `rename` (theirs to ours, or to any header that is understood), then the format if it is one of the field's,
    then `constants` (one value for every row), then common headers. Raises SweetspotError if a required column is
    missing, if several columns could be it, or if columns contradict each other.
    """
    maps = {theirs: _with_unit(theirs, ours) for theirs, ours in rename.items() if theirs in raw.columns}
    (frame,) = renamed([(path, raw)], maps)
    frame = frame.with_columns(_off=aside(frame))
    settled, notes = [*maps.values()], []
    form = formats.recognised(raw.columns)
    if form:
        frame, mapped = form.read(str(path), frame, settled)
        settled += mapped
        notes += [f"{path} is of {form.name}", form.says]
    else:
        frame, sums = summed(frame, settled)
        settled += sums
        frame = _boards(frame)
        notes += [f"{whole} is {parts}" for whole, parts in sums.items()]
    for ours, value in constants.items():
        if not (meanings(ours) or ours in COLUMNS):
            raise SweetspotError(f"--set {ours}={value}: there is no such column; there are {', '.join(COLUMNS)}")
        if ours in frame.columns and not (form and ours in form.constants):
            said = f"--set {ours}={value}, but there is already a column {ours!r}; remove one of them"
            raise SweetspotError(f"{path}: {said}")
        frame = frame.with_columns(pl.lit(value).alias(ours))
        settled.append(ours)
    reader = Reader(str(path), frame, settled, decimal)
    reading, read = choose(reader)
    there = {*frame.columns, *(one.quantity for one in reading.chosen.values())}
    missing = [name for name in REQUIRED if name in reading.missing or (name not in NUMBERS and name not in there)]
    if missing:
        raise _refusal(reader, reading, missing, form)
    frame, applied, known = _applied(reader, reading)
    if form and "parallelism" not in frame.columns and "gpus" in known:
        frame = frame.with_columns(parallelism=_label(known, frame.height))
    return frame, notes + read + applied, "" if reading.holds else proposals(reader, [reading])


def _boards(frame: pl.DataFrame) -> pl.DataFrame:
    """The number of boards that the name of the GPU states ("4x H100"), in a table that has no column of it."""
    for name in [name for name in frame.columns if any(one.quantity == "gpu" for one in meanings(name))][:1]:
        stated = as_text(frame[name]).str.extract(r"^(\d+) ?[x×*] ?").cast(pl.Float64)
        if stated.count() and not any(one.quantity in BOARDS for each in frame.columns for one in meanings(each)):
            frame = frame.with_columns(stated.fill_null(1.0).alias("gpus"))
    return frame


def _with_unit(theirs: str, ours: str) -> str:
    """Ours with the unit that theirs states, if ours states none: `energy_wh` mapped to `energy_j` stays in Wh."""
    stated = next((one.unit for one in meanings(theirs) if one.factor != 1), "")
    named = Meaning(ours, 0.0, stated).header
    return named if stated and ours in NUMBERS and meanings(named) else ours


def _applied(reader: Reader, reading: Reading) -> tuple[pl.DataFrame, list[str], Values]:
    """The frame with columns renamed, converted and derived as the reading says; notes; and all that follows."""
    frame, read, notes = reader.frame, [], []
    given: Values = {}
    sources: dict[str, str] = {}
    columns: dict[str, pl.Series] = {}
    for name, one in sorted(reading.chosen.items(), key=lambda item: item[0] != item[1].quantity):  # exact names first
        quantity, series = one.quantity, frame[name]
        if quantity in sources:
            if one.kind == "text" and not series.equals(frame[sources[quantity]]):
                if quantity == "model" != sources[quantity]:
                    raise ambiguous(reader.place, [sources[quantity], name], quantity)
                notes.append(f"{name} is not used, as {sources[quantity]} is read as {quantity}")
            continue
        sources[quantity] = name
        columns[quantity] = series
        if quantity == "gpu" and series.dtype == pl.String:  # "2 x NVIDIA H100" is codecarbon's way
            columns["gpu"] = series.str.replace(r"^\d+ ?[x×*] ?", "")
        if quantity in NUMBERS:
            columns[quantity], units = parsed(series, one.kind, reading.decimal, one.factor)
            given[quantity] = values_of(series, one, reading.decimal)
            notes += [f"{name}: {note}" for note in units]
            if one.factor != 1:
                told = "by its name" if one in meanings(name) else "by its size"
                notes.append(f"{name} is in {one.unit} {told}: multiplied by {one.factor:g} for {quantity}")
        if quantity in COLUMNS and folded(name) != folded(quantity):
            read.append(f"{name} as {quantity}")
    if read:
        notes.append(f"read {', '.join(read)}; change this with --map THEIRS=OURS")
    known, how = solve(given)
    moved = [(name, one.quantity) for name, one in reading.chosen.items() if name != one.quantity]
    frame = frame.drop(
        name for name, ours in moved if name in COLUMNS or (ours in COLUMNS and sources[ours] == name)
    ).with_columns(series.alias(quantity) for quantity, series in columns.items() if quantity in COLUMNS)
    for quantity in [name for name in DERIVED if name in known and name not in given]:
        powers = origins(quantity, given, how)
        values = pl.Series(quantity, np.broadcast_to(known[quantity], frame.height)).fill_nan(None)
        source = next((name for name in powers if NUMBERS.get(name) in ("energy", "power", "efficiency")), None)
        if values.null_count() and source:  # a value that is not a number stays, so that its row is reported as written
            values = values.cast(pl.String).fill_null(columns[source].cast(pl.String))
        frame = frame.with_columns(values.alias(quantity))
        notes.append(f"{quantity} is {_product(powers, sources)}")
    gpus = np.broadcast_to(known.get("gpus", np.full(1, np.nan)), frame.height)
    off: dict[str, NDArray[np.bool_]] = {}  # single rows that contradict themselves
    for relation, ratio in ratios(known):
        far = (ratio > _ROW_OFF) | ((ratio >= 0) & (ratio < 1 / _ROW_OFF))
        off[f"disagrees with itself more than twofold: {relation.text}"] = far
    if {"sent", "requests"} <= known.keys():
        off["has failed requests, whose energy and time are in its totals"] = (
            known["sent"] > _FAILED * known["requests"]
        )
    reasons = frame["_off"]
    for reason, rows in off.items():
        reasons = reasons.set(pl.Series(np.broadcast_to(rows, frame.height), dtype=pl.Boolean), reason)
    return frame.with_columns(_off=reasons, _gpus=pl.Series(gpus).fill_nan(None)), notes, known


def _label(known: Values, height: int) -> pl.Series:
    """The parallelism of each row by its GPUs: all share each layer unless the table says otherwise."""
    stages = np.broadcast_to(known.get("pipeline_parallel", np.ones(1)), height)
    pairs = zip(known["gpus"] / stages, stages, strict=True)
    return pl.Series([f"tp{tp:.0f}" + (f"-pp{pp:.0f}" if pp > 1 else "") if tp >= 1 else "tp1" for tp, pp in pairs])


def _product(powers: Mapping[str, Fraction], sources: Mapping[str, str]) -> str:
    first = sorted(powers, key=lambda name: NUMBERS.get(name) not in ("energy", "power"))
    first = [name for name in first if name in sources or name == "tokens"]  # without stages of pipelines that are one
    over = [sources.get(name, name) for name in first if powers[name] > 0]
    under = [sources.get(name, name) for name in first if powers[name] < 0]
    return " times ".join(over or ["1"]) + (f" over {' and '.join(under)}" if under else "")


def _refusal(reader: Reader, reading: Reading, missing: list[str], form: "formats.Format | None") -> SweetspotError:
    """What is missing, and how to give it: each `--map` is tried on the table before it is printed."""
    there = [name for name in reader.frame.columns if not name.startswith("_")]
    if bad := unclear_unit(there):
        return SweetspotError(
            f"{reader.place}: column {bad} may be millijoules or megajoules; name it energy_mJ or energy_MJ in the file"
        )
    known, _ = solve(reading.given | {name: np.ones(1) for name in missing if name in CELL})
    missing = [name for name in missing if name != "energy_j" or name not in known]
    spare = [name for name in there if name not in reading.chosen]
    guesses: dict[str, str] = {}
    for name in missing:
        guesses |= {theirs: name for theirs in hints(name, [each for each in spare if each not in guesses])[:1]}
    ways = {"model": "--set model=NAME", "energy_j": "--map COLUMN=energy_j"}
    if "run_energy_j" in known:
        ways["energy_j"] = "--set requests=NUMBER (of the whole run; or --set runs=1 if each row is one batch)"
    elif {"duration_s", "run_duration_s"} & known.keys():
        of_run = "run_" * ("requests" in known)
        ways["energy_j"] = f"--set power_w=WATTS (mean of all boards) or --set {of_run}energy_j=JOULES"
    with suppress(SweetspotError):  # guesses that the table contradicts are not printed
        trial = Reader(reader.place, reader.frame.rename(guesses), [*reader.settled, *guesses.values()])
        if choose(trial)[0].holds:
            ways |= {ours: f"--map {shlex.quote(f'{theirs}={ours}')}" for theirs, ours in guesses.items()}
    remedies = " ".join(ways.get(name, f"--set {name}=NUMBER") for name in missing)
    limits = [name for name in there if folded(name) in LIMITS and "batch" in missing]
    told = f"{', '.join(limits)} is a limit of the engine, not the batch that ran; " if limits else ""
    if "batch" in missing and "requests" in known:
        told += "the number of requests of a run is not how many ran together; "
    if {"input_tokens", "output_tokens"} <= known.keys() and {"batch", "energy_j"} <= {*missing}:
        told += "a log of requests is for `sweetspot advise --requests`; "
    names = ", ".join(missing)
    what = f"column{'s' * (len(missing) > 1)} {names} missing; there are {shortened(there, ', ', 30)}"
    what = f"{form.name} does not say {names}" if form else what
    explained = "(--map renames a column of the table, --set gives all rows one value)"
    return SweetspotError(f"{reader.place}: {what}; {told}add {remedies} {explained}")
