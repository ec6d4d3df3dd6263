"""Gives the columns of a table our names and units: the field's formats, common headers, `--map` and `--set`."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table import formats
from sweetspot.table.choice import choose, hints, proposals, unclear_unit
from sweetspot.table.files import renamed, shortened
from sweetspot.table.numbers import parsed
from sweetspot.table.quantities import Values, origins, ratios, solve
from sweetspot.table.readings import Reader, Reading
from sweetspot.table.schema import CELL, GROUP, Row
from sweetspot.table.words import LIMITS, NUMBERS, Meaning, folded, meanings
from sweetspot.vocabulary import UNSPECIFIED

_COLUMNS = Row.to_schema().columns
_REQUIRED = [name for name, column in _COLUMNS.items() if "default" not in (column.metadata or {})]
# Headers of set-ups, folded: rows with different values are not repetitions of one measurement.
_BOARDS = ("gpus", "tensor_parallel", "pipeline_parallel")
_SETUPS = ("dp", "ep", "task", "dataset", "quantization")
_A_NUMBER = "NUMBER"
_ROW_OFF = 2.0  # factor between two ways to a row's quantity from which the row is set aside


@dataclass
class Named:
    """A frame with our columns, what was understood, and how a table that cannot be true would be plausible.

    Columns of `frame`: `_off`, reasons to set rows aside; `_gpus`, the number of boards if a column counts them.
    """

    frame: pl.DataFrame
    notes: list[str] = field(default_factory=list)
    advice: str = ""


def named(
    path: Path,
    raw: pl.DataFrame,
    rename: Mapping[str, str],
    constants: Mapping[str, str],
    decimal: str = "",
) -> Named:
    """One table with our column names and units.

    Applies `rename` (theirs to ours, or to any header that is understood), then the format if it is one of the field's,
    then `constants` (one value for every row), then common headers. Raises SweetspotError if a required column is
    missing, if several columns could be it, or if columns contradict each other.
    """
    maps = {theirs: _with_unit(theirs, ours) for theirs, ours in rename.items() if theirs in raw.columns}
    (frame,) = renamed([(path, raw)], maps)
    settled = [*maps.values()]
    result = Named(frame)
    form = formats.recognised(raw.columns)
    if form:
        frame, mapped = form.read(str(path), frame, settled)
        settled += mapped
        result.notes += form.told(path)
    for ours, value in constants.items():
        if not (meanings(ours) or ours in _COLUMNS):
            raise SweetspotError(f"--set {ours}={value}: there is no such column; there are {', '.join(_COLUMNS)}")
        if ours in frame.columns and not (form and ours in form.constants):
            raise SweetspotError(
                f"{path}: --set {ours}={value}, but there is already a column {ours!r}; remove one of them"
            )
        frame = frame.with_columns(pl.lit(value).alias(ours))
        settled.append(ours)
    reader = Reader(str(path), frame, settled, decimal)
    reading, notes = choose(reader)
    if reading.missing or _absent(frame, reading):
        _refuse(path, frame, reader, reading, form)
    result.notes += notes
    known = _apply(result, frame, reader, reading)
    if form and "parallelism" not in result.frame.columns and "gpus" in known:
        result.frame = result.frame.with_columns(parallelism=_label(known, frame.height))
    if not reading.holds and (advice := proposals(reader, [reading])):
        result.advice = f"plausible would be {' or '.join(advice)}"
    return result


def _with_unit(theirs: str, ours: str) -> str:
    """Ours with the unit that theirs states, if ours states none: `energy_wh` mapped to `energy_j` stays in Wh."""
    stated = next((one.unit for one in meanings(theirs) if one.factor != 1), "")
    named = Meaning(ours, 0.0, stated).header
    return named if stated and ours in NUMBERS and meanings(named) else ours


def _apply(result: Named, frame: pl.DataFrame, reader: Reader, reading: Reading) -> Values:
    """Rename, convert and derive the columns of `frame` as the reading says; returns all that follows from them."""
    read, given = [], Values()
    sources: dict[str, str] = {}
    texts: dict[str, pl.Series] = {}
    exact_first = sorted(reading.chosen.items(), key=lambda item: not item[1] or item[0] != item[1].quantity)
    for name, one in exact_first:
        if one is None or one.quantity in texts:
            if one and one.quantity not in NUMBERS:
                result.notes += _second(reader.place, frame, sources[one.quantity], name, one.quantity)
            continue
        if one.quantity in NUMBERS:
            texts[one.quantity], notes = parsed(frame[name], NUMBERS[one.quantity], reading.decimal, one.factor)
            result.notes += [f"{name}: {note}" for note in notes]
            given[one.quantity] = reader.column(name, one, reading.decimal, frame).to_numpy() * 1.0
            if one.factor != 1:
                told = "by its name" if one in meanings(name) else "by its size"
                result.notes.append(f"{name} is in {one.unit} {told}: multiplied by {one.factor:g} for {one.quantity}")
        elif one.quantity in _COLUMNS:
            texts[one.quantity] = frame[name]
            if one.quantity == "gpu" and frame[name].dtype == pl.String:  # "2 x NVIDIA H100" is codecarbon's way
                texts["gpu"] = frame[name].str.replace(r"^\d+ ?x ", "")
        sources.setdefault(one.quantity, name)
        if one.quantity in _COLUMNS and folded(name) != folded(one.quantity):
            read.append(f"{name} as {one.quantity}")
    if read:
        result.notes.append(f"read {', '.join(read)}; change this with --map THEIRS=OURS")
    known, how = solve(given)
    gone = [name for name, one in reading.chosen.items() if one and one.quantity in _COLUMNS and name != one.quantity]
    gone = [name for name in gone if sources.get(reading.chosen[name].quantity) == name]  # type: ignore[union-attr]
    others = [name for name, one in reading.chosen.items() if one and name in _COLUMNS and one.quantity != name]
    frame = frame.drop(*gone, *others)
    for quantity, series in texts.items():
        if quantity in _COLUMNS:
            frame = frame.with_columns(series.alias(quantity))
    for quantity in ("batch", "input_tokens", "output_tokens", "energy_j", "duration_s"):
        if quantity in given or quantity not in known:
            continue
        powers = origins(quantity, given, how)
        values = pl.Series(quantity, np.broadcast_to(known[quantity], frame.height)).fill_nan(None)
        source = next((name for name in powers if NUMBERS.get(name) in ("energy", "power", "efficiency")), None)
        if values.null_count() and source:  # a value that is not a number stays, so that its row is reported as written
            values = values.cast(pl.String).fill_null(texts[source].cast(pl.String)).alias(quantity)
        frame = frame.with_columns(values)
        result.notes.append(f"{quantity} is {_product(powers, sources)}")
    gpus = np.broadcast_to(known.get("gpus", np.full(1, np.nan)), frame.height)
    result.frame = frame.with_columns(_off=_rows_off(known, frame.height), _gpus=pl.Series(gpus).fill_nan(None))
    return known


def _second(place: str, frame: pl.DataFrame, first: str, name: str, quantity: str) -> list[str]:
    """A note on a second column for a name, if it differs; of the model, only the user can choose."""
    if frame[name].equals(frame[first].alias(name)):
        return []
    if quantity == "model" != first:
        raise SweetspotError(
            f"{place}: {first} and {name} could all be model; choose one with --map {shlex.quote(f'{first}=model')}"
        )
    return [f"{name} is not used, as {first} is read as {quantity}"]


def _label(known: Values, height: int) -> pl.Series:
    """The parallelism of each row by its GPUs: all share each layer unless the table says otherwise."""
    gpus = np.broadcast_to(known["gpus"], height)
    shares = np.broadcast_to(known.get("tensor_parallel", gpus), height)
    stages = np.broadcast_to(known.get("pipeline_parallel", np.ones(1)), height)
    shares = np.where(shares * stages == gpus, shares, gpus / stages)
    pairs = zip(shares, stages, strict=True)
    return pl.Series([f"tp{tp:.0f}" + (f"-pp{pp:.0f}" if pp > 1 else "") if tp >= 1 else "tp1" for tp, pp in pairs])


def _product(powers: Mapping[str, Fraction], sources: Mapping[str, str]) -> str:
    first = sorted(powers, key=lambda name: NUMBERS.get(name) not in ("energy", "power"))
    first = [name for name in first if name in sources or name == "tokens"]  # without stages of pipelines that are one
    over = [sources.get(name, name) for name in first if powers[name] > 0]
    under = [sources.get(name, name) for name in first if powers[name] < 0]
    return " times ".join(over or ["1"]) + (f" over {' and '.join(under)}" if under else "")


def _rows_off(known: Values, height: int) -> pl.Series:
    """Why single rows contradict themselves, where the table as a whole does not; null for the others."""
    said = pl.Series("_off", [None] * height, dtype=pl.String)
    for relation, ratio in ratios(known):
        with np.errstate(all="ignore"):
            off = pl.Series(np.abs(np.log(np.broadcast_to(ratio, height))) > np.log(_ROW_OFF), dtype=pl.Boolean)
        said = said.set(off, f"disagrees with itself more than twofold: {relation.text}") if off.any() else said
    return said


def _absent(frame: pl.DataFrame, reading: Reading) -> list[str]:
    text = {one.quantity for one in reading.chosen.values() if one}
    return [name for name in ("model",) if name not in text and name not in frame.columns]


def _refuse(path: Path, frame: pl.DataFrame, reader: Reader, reading: Reading, form: "formats.Format | None") -> None:
    """Say what is missing, and how to give it: each `--map` is tried on the table before it is printed."""
    there = [name for name in frame.columns if not name.startswith("_")]
    if bad := unclear_unit(there):
        raise SweetspotError(
            f"{path}: column {bad} may be millijoules or megajoules; name it energy_mJ or energy_MJ in the file"
        )
    missing = [*_absent(frame, reading), *(name for name in CELL if name in reading.missing)]
    known, _ = solve(reading.given | {name: np.ones(1) for name in missing if name in CELL})
    missing += ["energy_j"] * ("energy_j" not in known)
    spare = [name for name in there if name not in reading.chosen]
    guesses: dict[str, str] = {}
    for name in missing:
        guesses |= {theirs: name for theirs in hints(name, [each for each in spare if each not in guesses])[:1]}
    guesses = _tried(path, frame, reader, guesses)
    timed = "duration_s" in known or "run_duration_s" in known
    ways = {
        "model": "--set model=NAME",
        "energy_j": "--set requests=NUMBER (of the whole run; or --set runs=1 if each row is one batch)"
        if "run_energy_j" in known
        else f"--set power_w=WATTS (mean of all boards) or --set {'run_' * ('requests' in known)}energy_j=JOULES"
        if timed
        else "--map COLUMN=energy_j",
    }
    maps = {ours: "--map " + shlex.quote(f"{theirs}={ours}") for theirs, ours in guesses.items()}
    remedies = [maps.get(name) or ways.get(name) or f"--set {name}={_A_NUMBER}" for name in missing]
    limits = [name for name in there if folded(name) in LIMITS and "batch" in missing]
    told = f"{', '.join(limits)} is a limit of the engine, not the batch that ran; " if limits else ""
    if "batch" in missing and "requests" in known:
        told += "the number of requests of a run is not how many ran together; "
    if {"input_tokens", "output_tokens"} <= known.keys() and {"batch", "energy_j"} <= {*missing}:
        told += "a log of requests is for `sweetspot advise --requests`; "
    plural = "s" * (len(missing) > 1)
    what = f"column{plural} {', '.join(missing)} missing; there are {shortened(there, ', ', 30)}"
    if form:
        what = f"{form.name} does not say {', '.join(missing)}"
    raise SweetspotError(
        f"{path}: {what}; {told}add {' '.join(remedies)} "
        "(--map renames a column of the table, --set gives all rows one value)"
    )


def _tried(path: Path, frame: pl.DataFrame, reader: Reader, guesses: Mapping[str, str]) -> dict[str, str]:
    """The guesses, if the table read with all of them holds; what it still lacks does not matter."""
    if not guesses:
        return {}
    trial = Reader(str(path), frame.rename(dict(guesses)), [*reader.settled, *guesses.values()])
    with suppress(SweetspotError):
        reading, _ = choose(trial)
        if reading.holds:
            return dict(guesses)
    return {}


def apart(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Keep rows of different set-ups apart by giving each its own engine name; also returns notes.

    Two GPU counts or two tasks in one cell are not repetitions of one measurement.
    """
    notes = []
    columns = [name for name in frame.columns if _is_setup(name) and not _is_said(frame, name)]
    for name in [name for name in columns if not frame[name].dtype.is_nested()]:
        cells = frame.filter("valid").group_by(*GROUP, *CELL).agg(_values=pl.col(name).n_unique())
        mixed = cells.filter(pl.col("_values") > 1).select(GROUP).unique().with_columns(_mixed=True)
        if not mixed.height:
            continue
        value = pl.concat_str(pl.lit(f"{name}="), pl.col(name).cast(pl.String).fill_null("unknown"))
        named = pl.when(pl.col("engine") == UNSPECIFIED).then(value).otherwise(pl.col("engine") + " " + value)
        marked = frame.join(mixed, on=GROUP, how="left", nulls_equal=True, maintain_order="left")
        frame = marked.with_columns(engine=pl.when("_mixed").then(named).otherwise("engine")).drop("_mixed")
        notes.append(f'cells have several values of {name}: each is kept apart, as engine "… {name}=…"')
    return frame, notes


def _is_setup(name: str) -> bool:
    return folded(name) in _SETUPS or any(one.quantity in _BOARDS for one in meanings(name))


def _is_said(frame: pl.DataFrame, column: str) -> bool:
    """Whether a column only repeats what `parallelism` says, as `gpus` does in our own tables."""
    return column == "gpus" and "energy_j_per_gpu" in frame.columns
