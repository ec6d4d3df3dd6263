"""Reads and checks tables of measured energies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from pandera.errors import SchemaErrors

from sweetspot.errors import SweetspotError
from sweetspot.precision import name_of
from sweetspot.table import latencies
from sweetspot.table.columns import apart, named
from sweetspot.table.files import read_file, renamed, shortened
from sweetspot.table.identity import without_copies
from sweetspot.table.numbers import NO_NUMBER, NOTHING, blank, numbers
from sweetspot.table.plausible import check_units, doubts, notes, of_one_source
from sweetspot.table.readings import ROUNDED
from sweetspot.table.schema import CELL, SOURCES, Row
from sweetspot.vocabulary import UNSPECIFIED

_COLUMNS = Row.to_schema().columns
# Columns in which zero means not measured, or not applicable.
_ZERO_IS_NOTHING = ("duration_s", "idle_w", "in_flight", "waves", "experts", "experts_per_token")
_MOST = 0.5  # share of unusable rows above which the whole table is refused


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
        if not together.height:
            continue
        one = named(same[0][0], together, rename or {}, constants or {}, decimal or ("." if typed else ""))
        frame, found = _checked(one.frame, remarks)
        frames.append(frame)
        problems += found
        said += [note for note in one.notes if note not in said]
        advice += [one.advice] * bool(one.advice)
    said += _judged(problems, sum(frame.height for frame in frames))
    if not frames:
        raise SweetspotError(f"{', '.join(map(str, paths))}: no rows; is it the table of measurements?")
    frame, copies = without_copies(pl.concat(_in_one_type(frames), how="diagonal_relaxed"))
    said += [f"{_first(places)}: {remark}" for remark, places in remarks.items()]
    frame, unlike = latencies.clean(frame)
    frame, setups = apart(frame)
    check_units(frame)
    frame, sources = of_one_source(frame)
    odd, impossible = doubts(frame)
    unsure = [f"{odd[0]} {'; '.join(advice)}", *odd[1:]] if odd and advice else odd
    said += [*copies, *unlike, *setups, *sources, *notes(frame), *unsure]
    return Table(frame.drop("_file", "_row", "_off", "_gpus", "valid_as_given"), said, unsure, impossible)


def _judged(problems: Sequence[str], rows: int) -> list[str]:
    """A note on the rows that are set aside. Raises SweetspotError if they are the majority."""
    if not problems:
        return []
    shown = shortened(problems)
    if len(problems) > _MOST * rows:
        raise SweetspotError(f"{shown}\n{len(problems)} of {rows} rows cannot be used; correct or remove them")
    return [f"{len(problems)} of {rows} rows cannot be used; they are set aside and not fitted:\n{shown}"]


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
    place = [f"{file}, row {row}" for file, row in raw.select("_file", "_row").iter_rows()]
    problems: dict[tuple[int, str], str] = {
        (int(row), "it"): str(raw["_off"][int(row)]) for row in raw["_off"].is_not_null().arg_true()
    }
    changed: list[tuple[str, list[int]]] = []
    frame = raw
    for name, column in _COLUMNS.items():
        series = raw[name] if name in raw.columns else pl.Series(name, [None] * raw.height, dtype=pl.String)
        if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
            series = _as_text(series)
        converted, wrong, read = _convert(series, column.dtype.type)
        problems |= {(row, name): what for row, what in wrong.items()}
        changed += [(f"{name} {remark}", rows) for remark, rows in read.items()]
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
    most = frame.select(pl.col("experts_per_token") > pl.col("experts")).to_series().fill_null(False)
    for row in most.arg_true():
        what = f"is {frame['experts_per_token'][row]}: must be at most the number of experts, {frame['experts'][row]}"
        problems.setdefault((row, "experts_per_token"), what)
    # Rows that are marked invalid already are not reported again.
    for remark, rows in changed:
        if own := [place[row] for row in rows if frame["valid_as_given"][row]]:
            remarks.setdefault(remark, []).extend(own)
    of_rows: dict[int, list[str]] = {}
    for (row, name), what in sorted(problems.items()):
        if frame["valid_as_given"][row]:
            of_rows.setdefault(row, []).append(f"{name} {what}")
    named = {row: f"{place[row]}: {', '.join(found)}" for row, found in of_rows.items()}
    if named:
        aside = pl.Series([named.get(row) for row in range(frame.height)], dtype=pl.String)
        old = _as_text(frame["reasons"]).replace("", None) if "reasons" in frame.columns else pl.lit(None, pl.String)
        frame = frame.with_columns(
            valid=pl.col("valid_as_given") & aside.is_null(),
            reasons=pl.concat_str(old, aside.str.replace_all(";", ","), separator=";", ignore_nulls=True),
        )
    return frame, list(named.values())


_Converted = tuple[pl.Series, dict[int, str], dict[str, list[int]]]


def _convert(series: pl.Series, kind: pl.DataType) -> _Converted:
    """The series as `kind` (null if impossible); what is wrong, by index; the indices of each kind of change."""
    series = blank(series, NOTHING if kind == pl.String else NO_NUMBER)
    if series.name == "source":
        return _source(series)
    if kind == pl.String:
        return series.cast(pl.String), {}, {}
    if kind == pl.Boolean:
        converted, rule = _truth(series), "must be true or false"
        return converted, _wrong(series, converted, rule), {}
    read: dict[str, list[int]] = {}
    if series.name == "repetition" and series.dtype == pl.String:
        labels = series.is_not_null() & series.cast(pl.Float64, strict=False).is_null()
        if labels.any():
            read["is a label: its last number is used"] = labels.arg_true().to_list()
            series = series.set(labels, None).fill_null(series.str.extract(r"(\d+)\D*$"))
    converted = numbers(series)
    rule = "must be a number"
    if series.name in _ZERO_IS_NOTHING and (zero := (converted == 0).fill_null(False)).any():
        read["is 0: read as unknown"] = zero.arg_true().to_list()
        series, converted = series.set(zero, None), converted.set(zero, None)
    if kind == pl.Int64:
        rule = "must be a whole number"
        whole = converted.round()
        most = ROUNDED * converted.abs() if series.name in CELL else 0
        off = ((converted - whole).abs() > most) | (whole.abs() > 2**53)
        if (rounded := (~off & (whole != converted)).fill_null(False)).any():
            read["is not a whole number: rounded"] = rounded.arg_true().to_list()
        converted = whole.set(off, None).cast(pl.Int64)
    return converted, _wrong(series, converted, rule), read


def _wrong(series: pl.Series, converted: pl.Series, rule: str) -> dict[int, str]:
    bad = (series.is_not_null() & converted.is_null()).arg_true()
    return {int(row): f"is {series[int(row)]}: {rule}" for row in bad}


def _truth(series: pl.Series) -> pl.Series:
    words = {"true": True, "yes": True, "y": True, "t": True, "1": True, "1.0": True}
    words |= {"false": False, "no": False, "n": False, "f": False, "0": False, "0.0": False}
    return series.cast(pl.String).str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)


def _source(series: pl.Series) -> _Converted:
    lowered = series.cast(pl.String).str.to_lowercase()
    unknown = (~lowered.is_in(SOURCES)).fill_null(False)
    rows = unknown.arg_true().to_list()
    remark = f"is not one of {', '.join(SOURCES)}: read as {UNSPECIFIED}"
    return lowered.set(unknown, UNSPECIFIED), {}, {remark: rows} if rows else {}


def _rule(name: str) -> str:
    checks = [check for check in _COLUMNS[name].checks]
    if name == "parallelism":
        return "must be like tp1, tp4, tp2-pp2 or tp8-ep"
    words = {"greater_than": "above", "greater_than_or_equal_to": "at least", "less_than": "below", "isin": "one of"}
    parts = []
    for check in checks:
        value = next(iter((check.statistics or {}).values()), "")
        shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,.10g}"
        parts.append(f"{words.get(str(check.name), check.name)} {shown}")
    return "must be " + " and ".join(parts)
