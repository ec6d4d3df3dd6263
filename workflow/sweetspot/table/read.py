"""Reads and checks tables of measured energies."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import polars as pl
from pandera.errors import SchemaErrors

from sweetspot.errors import SweetspotError
from sweetspot.precision import name_of
from sweetspot.table.columns import named
from sweetspot.table.files import read_file, renamed, shortened
from sweetspot.table.numbers import NO_NUMBER, NOTHING, as_text, blank, matches, numbers
from sweetspot.table.physics import doubts
from sweetspot.table.readings import FALSE, ROUNDED
from sweetspot.table.schema import CELL, COLUMNS, GROUP, SOURCES, Row, group_name
from sweetspot.table.setups import apart, is_among, two_modes
from sweetspot.vocabulary import LATENCIES, UNSPECIFIED

# Columns in which zero means not measured, or not applicable.
_ZERO_IS_NOTHING = ("duration_s", "idle_w", "in_flight", "waves", "experts", "experts_per_token")
_MOST = 0.5  # share of unusable rows above which the whole table is refused
_TRUE = r"(?i)^(true|yes|y|t|1|1\.0)$"
_RULES = {"greater_than": "above", "greater_than_or_equal_to": "at least", "less_than": "below"}
# Frames here have columns _file and _row, which say where each row comes from. Each check returns the frame and notes.
_PLACE = pl.format("{}, row {}", "_file", "_row")
# With a cell and a repetition, these identify a measured row: no two measurements begin at one moment of one session.
_MEASURED = ("energy_j", "energy_instant_j", "energy_average_j", "duration_s", "batch_runs")  # the same in any block
_MOMENT = ("session", "visit", "start", "started", "time_s", "run_id", "timestamp")
_COPY = 0.5  # share of a file's rows that another file has too from which it is a copy: chance repeats fewer
_LONGER = 1.05  # than the run: no request takes longer, but clocks differ a little
_MANY = 0.1  # share of cells with mixed units above which a table is refused
_TWO_UNITS = 50.0  # repetitions of a cell never differ by this factor; kilojoules and watt-hours do
_FEW = 0.5  # share of a group's rows without a source up to which they are set aside


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
    alike: dict[tuple[str, bool], list[pl.DataFrame]] = {}
    seen: set[Path] = set()
    for path, file in raws:
        placed = file.frame.with_columns(_file=pl.lit(f"{path}{' (again)' * (path in seen)}"))
        alike.setdefault((str(file.frame.schema), file.typed), []).append(placed)
        seen.add(path)
    frames, problems, advice = [], [], []
    remarks: dict[str, list[str]] = {}
    for (_, typed), same in alike.items():
        together = pl.concat(same)
        if together.height:
            place, mark = Path(together["_file"][0].removesuffix(" (again)")), decimal or ("." if typed else "")
            frame, understood, advised = named(place, together, rename or {}, constants or {}, mark)
            frame, found = _checked(frame, remarks)
            frames.append(frame)
            problems += found
            said += [note for note in understood if note not in said]
            advice += [f"plausible would be {advised}"] * bool(advised)
    rows = sum(frame.height for frame in frames)
    if not rows:
        raise SweetspotError(f"{', '.join(map(str, paths))}: no rows; is it the table of measurements?")
    counted, listed = f"{len(problems)} of {rows} rows cannot be used", shortened(problems)
    if len(problems) > _MOST * rows:
        raise SweetspotError(f"{listed}\n{counted}; correct or remove them")
    said += [f"{counted}; they are set aside and not fitted:\n{listed}"] * bool(problems)
    frame, copies = _without_copies(pl.concat(_in_one_type(frames), how="diagonal_relaxed"))
    frame, more = _spelt_alike(frame)
    copies += more
    for remark, (first, *others) in remarks.items():
        said.append(f"{f'{len(others) + 1} rows, first ' if others else ''}{first}: {remark}")
    said += copies
    for step in (_with_latencies, apart):
        frame, notes = step(frame)
        said += notes
    _check_units(frame)
    frame, notes = _of_one_source(frame)
    odd, impossible = doubts(frame)
    odd += two_modes(frame)
    if odd and advice:
        odd[0] += f" {'; '.join(advice)}"
    if invalid := frame.height - int(frame["valid_as_given"].sum()):
        notes.append(f"{invalid} of {frame.height} rows are marked invalid: kept, not fitted")
    frame = frame.drop("_file", "_row", "_off", "_gpus", "valid_as_given")
    return Table(frame, said + notes + odd, odd, impossible)


def _spelt_alike(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Names of models, GPUs and engines that differ in case only as the first of them."""
    notes = []
    for name in ("model", "gpu", "engine"):
        first = pl.col(name).first().over(pl.col(name).str.to_lowercase())
        for other, one in frame.select(pl.col(name).alias("_"), first).unique(maintain_order=True).iter_rows():
            notes += [f"{name} {other!r} is taken for {one!r}"] * (other != one)
        frame = frame.with_columns(first)
    return frame, notes


def _in_one_type(frames: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """The frames, with columns as text if the files disagree on their types."""
    schemas = [(name, kind) for frame in frames for name, kind in frame.schema.items() if kind != pl.Null]
    kinds = Counter(
        name for name, _ in {(name, "number" if kind.is_numeric() else str(kind)) for name, kind in schemas}
    )
    return [frame.with_columns(as_text(frame[name]) for name in frame.columns if kinds[name] > 1) for frame in frames]


def _checked(raw: pl.DataFrame, remarks: dict[str, list[str]]) -> tuple[pl.DataFrame, list[str]]:
    """The frame with every column of `Row` in its type, and the problems of its rows in order.

    Columns _file and _row of `raw` locate each row. Adds to `remarks`, for each kind of change made on reading, the
    places where it was made.
    """
    place = raw.select(_PLACE).to_series()
    problems = {(row, "it"): what for row, what in enumerate(raw["_off"]) if what}
    changed: list[tuple[str, pl.Series]] = []
    frame = raw
    for name, column in COLUMNS.items():
        series = raw[name] if name in raw.columns else pl.Series(name, [None] * raw.height, dtype=pl.String)
        kind = column.dtype.type
        series = blank(as_text(series, odd=True), NOTHING if kind == pl.String else NO_NUMBER)
        converted, rule, changes = _convert(series, kind)
        changed += [(f"{name} {remark}", rows) for remark, rows in changes.items()]
        wrong = series.is_not_null() & converted.is_null()
        for rows in changes.values():
            wrong &= ~rows
        problems |= {(row, name): f"is {series[row]}: {rule}" for row in wrong.arg_true()}
        default = (column.metadata or {}).get("default")
        frame = frame.with_columns((converted if default is None else converted.fill_null(default)).alias(name))
    precision = frame["precision"].replace({label: name_of(label) for label in frame["precision"].unique()})
    frame = frame.with_columns(precision, valid_as_given=pl.col("valid").fill_null(True))
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
    if (frame["batch"] == frame["batch"].round()).all():
        frame = frame.with_columns(pl.col("batch").cast(pl.Int64))
    of_rows: dict[int, str] = {}
    for (row, name), what in sorted(problems.items()):
        if frame["valid_as_given"][row]:
            of_rows[row] = f"{of_rows[row]}, {name} {what}" if row in of_rows else f"{place[row]}: {name} {what}"
    if of_rows:
        aside = pl.Series(map(of_rows.get, range(frame.height)), dtype=pl.String)
        old = as_text(frame["reasons"]).replace("", None) if "reasons" in frame.columns else pl.lit(None, pl.String)
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
        false, true = matches(series.cast(pl.String), FALSE), matches(series.cast(pl.String), _TRUE)
        return true.set(~true & ~false, None), "must be true or false", {}
    if series.name == "repetition" and series.dtype == pl.String:
        label = series.is_not_null() & series.cast(pl.Float64, strict=False).is_null()
        changes["is a label: its last number is used"] = label
        series = series.set(label, None).fill_null(series.str.extract(r"(\d+)\D*$"))
    converted = numbers(series)
    if series.name in _ZERO_IS_NOTHING:
        changes["is 0: read as unknown"] = zero = (converted == 0).fill_null(False)
        converted = converted.set(zero, None)
    if kind != pl.Int64 and series.name != "batch":
        return converted, "must be a number", changes
    whole = converted.round()
    most = ROUNDED.get(series.name, 0) * converted.abs()
    if series.name == "batch":
        whole = whole.zip_with((converted - whole).abs() <= most, converted)
    off = ((converted - whole).abs() > most) | (whole.abs() > 2**53)
    changes["is not a whole number: rounded"] = (~off & (whole != converted)).fill_null(False)
    return whole.set(off, None).cast(kind), "must be a whole number", changes


def _rule(name: str) -> str:
    if name == "parallelism":
        return "must be like tp1, tp4, tp2-pp2 or tp8-ep"
    bounds = [(_RULES[str(check.name)], next(iter(check.statistics.values()))) for check in COLUMNS[name].checks]
    return "must be " + " and ".join(f"{word} {value:,.10g}" for word, value in bounds)


def _without_copies(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Drop rows that another file has already, and further copies of a measured row, known by cell, session and time.

    What a later, larger block says of the same measurement may differ, as its drift. Raises SweetspotError, naming
    both rows, if what was measured differs.
    """
    plain = [name for name, kind in frame.schema.items() if not kind.is_nested()]
    moment = [name for name in _MOMENT if name in plain]
    aside = ("_file", "_row", "_off", "_gpus", "valid", "reasons", "valid_as_given")
    whole = [name for name in plain if name not in aside]
    seen = pl.col("_file").first().over(whole) != pl.col("_file")
    share = pl.col("_seen").mean().over("_file")
    again = frame.with_columns(_seen=seen).select(pl.col("_seen") & (share >= _COPY)).to_series()
    if "session" in moment and len(moment) > 1 and "repetition" in frame.columns:
        known = pl.all_horizontal(pl.col(moment).is_not_null())
        identity = [*GROUP, *CELL, *moment, "repetition"]
        measured = frame.filter("valid", known, pl.col("repetition").is_not_null())
        clash = measured.group_by(identity, maintain_order=True).agg(
            _one=_PLACE.first(),
            _other=_PLACE.last(),
            _kinds=pl.struct([name for name in _MEASURED if name in frame.columns]).n_unique(),
        )
        for row in clash.filter(pl.col("_kinds") > 1).head(1).iter_rows(named=True):
            raise SweetspotError(
                f"{row['_one']} and {row['_other']} are one measurement (session {row['session']}, repetition "
                f"{row['repetition']}) that disagree on it; remove the wrong one"
            )
        again = again | frame.select(known & ~pl.struct(identity).is_first_distinct()).to_series()
    if not again.any():
        return frame, []
    first = frame.filter(again).select(_PLACE).item(0, 0)
    return frame.filter(~again), [f"{again.sum()} rows are there twice and counted once, first {first}"]


def _with_latencies(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Latencies as numbers, null where they are none: a time is above 0 and not longer than the run, if known."""
    notes = []
    for name in filter(frame.columns.__contains__, LATENCIES):
        seconds = numbers(frame[name])
        longest = frame["duration_s"].fill_null(float("inf")) * _LONGER
        seconds = seconds.set(~((seconds > 0) & (seconds <= longest)).fill_null(False), None)
        lost = frame.filter(frame[name].is_not_null() & seconds.is_null() & frame["valid"])
        if lost.height:
            notes.append(
                f"{name}: values left out, as they are not times in s between 0 and the run's duration: {lost.height}, "
                f"first {lost.select(_PLACE).item(0, 0)}: {lost[name][0]}"
            )
        frame = frame.with_columns(seconds)
    return frame, notes


def _check_units(frame: pl.DataFrame) -> None:
    """Raise SweetspotError, naming two rows, if repetitions of many cells differ as much as two units do.

    A cell in which most repetitions agree does not count, nor do a few cells: `fit.outliers` handles those.
    """
    energy = pl.col("energy_j")
    place = pl.format("{} ({} J)", _PLACE, energy.round(3))
    near = (energy / energy.quantile(0.5, "lower")).log().abs() < log(_TWO_UNITS) / 2
    cells = frame.filter("valid").sort("energy_j").group_by(*GROUP, *CELL, maintain_order=True)
    spread = cells.agg(low=place.first(), high=place.last(), ratio=energy.last() / energy.first(), near=near.mean())
    divided = spread.filter((pl.col("ratio") > _TWO_UNITS) & (pl.col("near") <= 0.5))
    if divided.height > _MANY * spread.height:
        row = divided.row(0, named=True)
        cell = f"batch {row['batch']}, {row['input_tokens']} input and {row['output_tokens']} output tokens"
        raise SweetspotError(
            f"{row['high']} and {row['low']} are the same cell ({cell}) but differ {row['ratio']:.0f}-fold: two units? "
            "energy_j must be joules of the whole batch"
        )


def _of_one_source(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Set aside the few rows of a group that state no source, if its other rows state one.

    Raises SweetspotError if a group has rows from several sources, or if most of its rows state none.
    """
    groups = frame.filter("valid").group_by(GROUP, maintain_order=True)
    sources = groups.agg(pl.col("source").unique().sort(), _unstated=(pl.col("source") == UNSPECIFIED).mean())
    mixed = sources.filter(pl.col("source").list.len() > 1)
    few = (pl.col("source").list.len() == 2) & pl.col("_unstated").is_between(0, _FEW, closed="right")
    for row in mixed.filter(~few).head(1).iter_rows(named=True):
        raise SweetspotError(
            f"{group_name(row[name] for name in GROUP)}: mixes rows from {' and '.join(row['source'])} sources; fit "
            "them separately, or give them different names in column engine"
        )
    aside = is_among(frame, mixed) & (frame["source"] == UNSPECIFIED) & frame["valid"]
    said = "rows without a known source are set aside and not fitted; other rows of their group state theirs"
    return frame.with_columns(valid=frame["valid"] & ~aside), [f"{aside.sum()} {said}"] if aside.any() else []
