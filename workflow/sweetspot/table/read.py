"""Reads and checks tables of measured energies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from pandera.errors import SchemaErrors

from sweetspot.errors import SweetspotError
from sweetspot.precision import name_of
from sweetspot.table.columns import named
from sweetspot.table.files import read_file, renamed, shortened
from sweetspot.table.numbers import NO_NUMBER, NOTHING, blank, numbers
from sweetspot.table.physics import doubts
from sweetspot.table.readings import ROUNDED
from sweetspot.table.rows import apart, check_units, of_one_source, with_latencies, without_copies
from sweetspot.table.schema import CELL, COLUMNS, SOURCES, Row
from sweetspot.vocabulary import UNSPECIFIED

# Columns in which zero means not measured, or not applicable.
_ZERO_IS_NOTHING = ("duration_s", "idle_w", "in_flight", "waves", "experts", "experts_per_token")
_MOST = 0.5  # share of unusable rows above which the whole table is refused
_TRUTH = {word: True for word in ("true", "yes", "y", "t", "1", "1.0")}
_TRUTH |= {word: False for word in ("false", "no", "n", "f", "0", "0.0")}
_RULES = {"greater_than": "above", "greater_than_or_equal_to": "at least", "less_than": "below"}


@dataclass(frozen=True)
class Table:
    """Checked rows, and notes for the user about them.

    `frame` has every column of `Row` (missing ones filled with their defaults) and all other columns of the files.
    `doubts` are those notes that question the numbers; `impossible` is whether most rows cannot be true.
    """

    frame: pl.DataFrame
    notes: list[str]
    doubts: list[str] = field(default_factory=list)
    impossible: bool = False


def read(
    paths: Sequence[Path],
    rename: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    decimal: str = "",
) -> Table:
    """Read text, JSON, Excel or Parquet files as one table: our columns, common others, or a format of the field.

    `rename` maps columns of the files to ours ({"nin": "input_tokens"}); `constants` gives missing columns one value
    ({"batch": "1"}); `decimal` is the decimal mark if the numbers do not show it. Raises SweetspotError for a file that
    cannot be read, a missing column, columns that contradict each other or can be read in several ways, rows that
    contradict a copy of themselves, or if most rows have missing or impossible values, naming file, row (the first data
    row is 1), column and value. A minority of such rows is set aside: `valid` becomes false, `reasons` says why, a note
    counts them. Notes also list every value that was changed on reading, and every line left out.
    """
    loaded = [(path, read_file(path)) for path in paths]
    said = [f"{path}: {note}" for path, file in loaded for note in file.notes]
    raws = [(path, file) for path, file in loaded if file.frame.width]
    renamed([(path, file.frame) for path, file in raws], rename or {})  # its columns must be there, in some file
    # Reading files with equal schemas together makes thousands of blocks of a campaign as cheap as one file.
    seen: set[Path] = set()
    alike: dict[tuple[str, bool], list[tuple[Path, pl.DataFrame]]] = {}
    for path, file in raws:
        numbered = file.frame.with_columns(_file=pl.lit(f"{path}{' (again)' * (path in seen)}"))
        seen.add(path)
        alike.setdefault((str(file.frame.schema), file.typed), []).append((path, numbered))
    frames, problems, advice = [], [], []
    remarks: dict[str, list[str]] = {}
    for (_, typed), same in alike.items():
        together = pl.concat([frame for _, frame in same])
        if together.height:
            one = named(same[0][0], together, rename or {}, constants or {}, decimal or ("." if typed else ""))
            frame, found = _checked(one.frame, remarks)
            frames.append(frame)
            problems += found
            said += [note for note in one.notes if note not in said]
            advice += [one.advice] * bool(one.advice)
    rows = sum(frame.height for frame in frames)
    if not rows:
        raise SweetspotError(f"{', '.join(map(str, paths))}: no rows; is it the table of measurements?")
    counted, listed = f"{len(problems)} of {rows} rows cannot be used", shortened(problems)
    if len(problems) > _MOST * rows:
        raise SweetspotError(f"{listed}\n{counted}; correct or remove them")
    said += [f"{counted}; they are set aside and not fitted:\n{listed}"] * bool(problems)
    frame, copies = without_copies(pl.concat(_in_one_type(frames), how="diagonal_relaxed"))
    said += [f"{_first(places)}: {remark}" for remark, places in remarks.items()] + copies
    for step in (with_latencies, apart):
        frame, notes = step(frame)
        said += notes
    check_units(frame)
    frame, notes = of_one_source(frame)
    odd, impossible = doubts(frame)
    if odd and advice:
        odd[0] += f" {'; '.join(advice)}"
    if invalid := frame.height - int(frame["valid_as_given"].sum()):
        notes.append(f"{invalid} of {frame.height} rows are marked invalid: kept, not fitted")
    frame = frame.drop("_file", "_row", "_off", "_gpus", "valid_as_given")
    return Table(frame, said + notes + odd, odd, impossible)


def _first(places: Sequence[str]) -> str:
    return f"{len(places)} rows, first {places[0]}" if len(places) > 1 else places[0]


def _in_one_type(frames: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """The frames, with columns as text if the files disagree on their types."""
    types: dict[str, set[str]] = {}
    for frame in frames:
        for name, kind in frame.schema.items():
            if kind != pl.Null:
                types.setdefault(name, set()).add("number" if kind.is_numeric() else str(kind))
    mixed = [name for name, kinds in types.items() if len(kinds) > 1]
    return [frame.with_columns(_as_text(frame[name]) for name in mixed if name in frame.columns) for frame in frames]


def _as_text(series: pl.Series) -> pl.Series:
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        return pl.Series(series.name, [None if value is None else str(value) for value in series.to_list()], pl.String)
    return series.cast(pl.String)


def _checked(raw: pl.DataFrame, remarks: dict[str, list[str]]) -> tuple[pl.DataFrame, list[str]]:
    """The frame with every column of `Row` in its type, and the problems of its rows in order.

    Columns _file and _row of `raw` locate each row. Adds to `remarks`, for each kind of change made on reading, the
    places where it was made.
    """
    place = raw.select(pl.format("{}, row {}", "_file", "_row")).to_series()
    problems = {(row, "it"): what for row, what in enumerate(raw["_off"]) if what}
    changed: list[tuple[str, pl.Series]] = []
    frame = raw
    for name, column in COLUMNS.items():
        series = raw[name] if name in raw.columns else pl.Series(name, [None] * raw.height, dtype=pl.String)
        if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
            series = _as_text(series)
        kind = column.dtype.type
        series = blank(series, NOTHING if kind == pl.String else NO_NUMBER)
        converted, rule, changes = _convert(series, kind)
        changed += [(f"{name} {remark}", rows) for remark, rows in changes.items()]
        wrong = series.is_not_null() & converted.is_null()
        for rows in changes.values():
            wrong &= ~rows
        problems |= {(row, name): f"is {series[row]}: {rule}" for row in wrong.arg_true()}
        default = (column.metadata or {}).get("default")
        frame = frame.with_columns((converted if default is None else converted.fill_null(default)).alias(name))
    labels = frame["precision"].unique().to_list()
    frame = frame.with_columns(
        pl.col("precision").replace({label: name_of(label) for label in labels}),
        valid_as_given=pl.col("valid").fill_null(True),
    )
    try:
        Row.validate(frame, lazy=True)
    except SchemaErrors as error:
        for case in error.failure_cases.iter_rows(named=True):
            row, name = int(case["index"]), str(case["column"])
            what = "is missing" if case["check"] == "not_nullable" else f"is {raw[name][row]}: {_rule(name)}"
            problems.setdefault((row, name), what)
    for row in (frame["experts_per_token"] > frame["experts"]).fill_null(False).arg_true():
        what = f"is {frame['experts_per_token'][row]}: must be at most the number of experts, {frame['experts'][row]}"
        problems.setdefault((row, "experts_per_token"), what)
    # Rows that are marked invalid already are not reported again.
    for remark, rows in changed:
        if own := place.filter(rows & frame["valid_as_given"]).to_list():
            remarks.setdefault(remark, []).extend(own)
    of_rows: dict[int, str] = {}
    for (row, name), what in sorted(problems.items()):
        if frame["valid_as_given"][row]:
            of_rows[row] = f"{of_rows[row]}, {name} {what}" if row in of_rows else f"{place[row]}: {name} {what}"
    if of_rows:
        aside = pl.Series([of_rows.get(row) for row in range(frame.height)], dtype=pl.String)
        old = _as_text(frame["reasons"]).replace("", None) if "reasons" in frame.columns else pl.lit(None, pl.String)
        frame = frame.with_columns(
            valid=pl.col("valid_as_given") & aside.is_null(),
            reasons=pl.concat_str(old, aside.str.replace_all(";", ","), separator=";", ignore_nulls=True),
        )
    return frame, list(of_rows.values())


def _convert(series: pl.Series, kind: pl.DataType) -> tuple[pl.Series, str, dict[str, pl.Series]]:
    """The series as `kind` (null if impossible), the rule for its values, and the rows of each kind of change."""
    changes: dict[str, pl.Series] = {}
    if series.name == "source":
        series = series.cast(pl.String).str.to_lowercase()
        unknown = (~series.is_in(SOURCES)).fill_null(False)
        changes[f"is not one of {', '.join(SOURCES)}: read as {UNSPECIFIED}"] = unknown
        return series.set(unknown, UNSPECIFIED), "", changes
    if kind == pl.String:
        return series.cast(pl.String), "", {}
    if kind == pl.Boolean:
        lowered = series.cast(pl.String).str.to_lowercase()
        return lowered.replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean), "must be true or false", {}
    if series.name == "repetition" and series.dtype == pl.String:
        label = series.is_not_null() & series.cast(pl.Float64, strict=False).is_null()
        changes["is a label: its last number is used"] = label
        series = series.set(label, None).fill_null(series.str.extract(r"(\d+)\D*$"))
    converted = numbers(series)
    if series.name in _ZERO_IS_NOTHING:
        changes["is 0: read as unknown"] = zero = (converted == 0).fill_null(False)
        converted = converted.set(zero, None)
    if kind != pl.Int64:
        return converted, "must be a number", changes
    whole = converted.round()
    most = ROUNDED * converted.abs() if series.name in CELL else 0
    off = ((converted - whole).abs() > most) | (whole.abs() > 2**53)
    changes["is not a whole number: rounded"] = (~off & (whole != converted)).fill_null(False)
    return whole.set(off, None).cast(pl.Int64), "must be a whole number", changes


def _rule(name: str) -> str:
    if name == "parallelism":
        return "must be like tp1, tp4, tp2-pp2 or tp8-ep"
    bounds = [(_RULES[str(check.name)], next(iter(check.statistics.values()))) for check in COLUMNS[name].checks]
    return "must be " + " and ".join(f"{word} {value:,.10g}" for word, value in bounds)
