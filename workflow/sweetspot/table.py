"""Tables of measured energies: reading, checking, and averaging repetitions into cells."""

import difflib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pandera.errors import SchemaErrors

from sweetspot.errors import SweetspotError
from sweetspot.journal import is_as_written
from sweetspot.machines import flag_changes
from sweetspot.plausible import check_sources, check_units, notes
from sweetspot.schema import CELL, GROUP, Row

_COLUMNS = Row.to_schema().columns
_REQUIRED = [name for name, column in _COLUMNS.items() if "default" not in (column.metadata or {})]
# A row that failed its own checks is not judged by what it measured.
_MEASURED = ("energy_j", "duration_s", "in_flight", "waves", "idle_w")

_ALIASES = {
    "model": ("model_name", "model_id", "llm"),
    "batch": ("batch_size", "bs", "batchsize", "concurrency", "num_requests"),
    "input_tokens": (
        "nin",
        "n_in",
        "input_len",
        "input_length",
        "prompt_tokens",
        "prompt_len",
        "isl",
        "in",
        "n",
        "tau_in",
    ),
    "output_tokens": ("nout", "n_out", "output_len", "output_length", "generated_tokens", "osl", "out", "m", "tau_out"),
    "energy_j": ("energy", "joules", "energy_joules", "energy_total", "total_energy", "j"),
}
_OF_WORKFLOW = "if the workflow made it, remove it and run again: nothing is measured for that"
_SHOWN = 5  # problems listed before the rest are counted


@dataclass(frozen=True)
class Table:
    """Checked rows and what a user should know about them.

    `frame` has every column of `Row` (absent ones filled with their defaults) and the columns that passed through.
    """

    frame: pl.DataFrame
    notes: list[str]


def read(paths: Sequence[Path], rename: Mapping[str, str] | None = None) -> Table:
    """Read CSV, Parquet or JSON Lines files as one table.

    `rename` maps a column of the files to the one it stands for ({"nin": "input_tokens"}). Raises SweetspotError for
    a file that cannot be read, a missing column, or values that are missing, impossible or in two units, naming file,
    row (the first data row is 1), column and value.
    """
    frames, problems = [], []
    raws = [(path, _load(path)) for path in paths]
    _check_renames(raws, rename or {})
    # Thousands of blocks of one campaign look alike: checked together, they cost what one file costs.
    alike: dict[str, list[pl.DataFrame]] = {}
    for path, raw in raws:
        if raw.height or raw.width:
            raw = _renamed(path, raw, rename or {})
            _check_columns(path, raw)
            placed = raw.with_columns(_file=pl.lit(str(path)), _row=pl.int_range(1, raw.height + 1))
            alike.setdefault(str(raw.schema), []).append(placed)
    for same in alike.values():
        frame, found = _checked(pl.concat(same))
        frames.append(frame)
        problems += found
    if problems:
        rest = f"\nand {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise SweetspotError("\n".join(problems[:_SHOWN]) + rest + "\nmend or remove these rows")
    if not sum(frame.height for frame in frames):
        raise SweetspotError(f"{', '.join(map(str, paths))}: no rows; is it the table of measurements?")
    frame = pl.concat(frames, how="diagonal_relaxed")
    check_units(frame)
    check_sources(frame)
    return Table(frame.drop("_file", "_row"), notes(frame))


def cells(frame: pl.DataFrame) -> pl.DataFrame:
    """The valid rows, one per group and cell, sorted by cell within each group (groups in order of appearance).

    Columns: model, gpu, engine, precision, source, batch, input_tokens, output_tokens, energy_j, duration_s, idle_w and
    waves (means of the repetitions), in_flight (the fewest), experts and experts_per_token (the most), energy_sd_j
    (null for a single repetition), repetitions.
    """
    order = {name: index for index, name in enumerate(frame.select(GROUP).unique(maintain_order=True).rows())}
    averaged = (
        frame.filter(pl.col("valid"))
        .group_by(*GROUP, "source", *CELL)
        .agg(
            pl.col("energy_j").mean(),
            pl.col("duration_s", "idle_w").mean(),
            pl.col("waves").mean(),
            pl.col("in_flight").min(),
            pl.col("experts", "experts_per_token").max(),
            energy_sd_j=pl.col("energy_j").std(),
            repetitions=pl.len(),
        )
    )
    position = pl.Series("_group", [order[name] for name in averaged.select(GROUP).rows()], dtype=pl.Int64)
    return averaged.with_columns(position).sort("_group", *CELL).drop("_group")


def check_blocks(paths: Sequence[Path], cells: Sequence[int]) -> None:
    """Set aside every block (JSON Lines) that is not as it was written, with all of its so many cells.

    The next run makes it again.

    Raises SweetspotError where there is one.
    """
    damaged = [path for path, count in zip(paths, cells, strict=True) if len(_cells_of_lines(path)) != count]
    for path in damaged:
        path.replace(path.with_suffix(".damaged"))
    if damaged:
        raise SweetspotError(
            f"cut short or damaged: {', '.join(map(str, damaged[:_SHOWN]))}{' and more' * (len(damaged) > _SHOWN)}; "
            "set aside as .damaged. Run again: they are made again from their journals, and nothing is measured twice"
        )


def _cells_of_lines(path: Path) -> set[tuple[int, int]]:
    """The cells of a block (input_tokens, output_tokens); none where it is not the rows that were written."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines()] if is_as_written(path) else []
        return {(row["input_tokens"], row["output_tokens"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def collect(paths: Sequence[Path], output: Path) -> None:
    """Join the measured blocks (JSON Lines) into one checked Parquet table, with a warning where the machine changed.

    Raises SweetspotError as `read` does.
    """
    frame, warnings = flag_changes(read(paths).frame)
    for warning in warnings:
        print(f"warning: {warning}")
    write_parquet(frame, output)


def read_result(path: Path) -> Any:
    """A result of the workflow: the frame of a Parquet or CSV file, the content of a JSON file.

    Raises SweetspotError, with the remedy, for one that is not whole.
    """
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            return pl.read_csv(path, schema_overrides={"model": pl.String})
        return json.loads(path.read_text())
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise SweetspotError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {_OF_WORKFLOW}") from None


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a whole Parquet file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.write_parquet(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise SweetspotError(f"{path}: no such file")
    try:
        if path.suffix in (".parquet", ".pq"):
            return pl.read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson"):
            if not path.stat().st_size:
                return pl.DataFrame()
            frame = pl.read_ndjson(path, infer_schema_length=None)  # in an order of columns that is never the same
            with path.open() as file:
                first = list(json.loads(file.readline()))
            return frame.select(*first, *sorted(set(frame.columns) - set(first)))
        if path.suffix in (".csv", ".tsv", ".txt"):
            with path.open(encoding="utf-8-sig") as file:
                header = file.readline()
            separator = max(",;\t", key=header.count)
            # As text: a number column with a word in it is then refused by row, not by the parser's own message.
            return pl.read_csv(path, separator=separator, infer_schema=False) if header.strip() else pl.DataFrame()
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        detail = _first_broken_line(path) or str(error).splitlines()[0]
        raise SweetspotError(
            f"{path}: cannot be read as a table ({detail}); is it cut short? Write it again; {_OF_WORKFLOW}"
        ) from None
    raise SweetspotError(f"{path}: a table ends in .csv, .tsv, .parquet or .jsonl")


def _first_broken_line(path: Path) -> str | None:
    """Which line of a JSON Lines file is not strict JSON (NaN and Infinity are not); None for other formats."""
    if path.suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                json.loads(line, parse_constant=int)  # int("NaN") is a ValueError
            except ValueError:
                return f"row {number} is not JSON"
    return None


def _check_renames(raws: Sequence[tuple[Path, pl.DataFrame]], rename: Mapping[str, str]) -> None:
    there = sorted({column for _, raw in raws for column in raw.columns})
    for theirs, ours in rename.items():
        if theirs not in there:
            raise SweetspotError(f"--map {theirs}={ours}: there is no column {theirs!r}; there are {', '.join(there)}")
    if repeated := {ours for ours in rename.values() if list(rename.values()).count(ours) > 1}:
        raise SweetspotError(f"--map: two columns are mapped to {sorted(repeated)[0]!r}; map one")


def _renamed(path: Path, raw: pl.DataFrame, rename: Mapping[str, str]) -> pl.DataFrame:
    present = {theirs: ours for theirs, ours in rename.items() if theirs in raw.columns and theirs != ours}
    for theirs, ours in present.items():
        if ours in raw.columns and ours not in present:
            raise SweetspotError(
                f"{path}: --map {theirs}={ours}, but there is a column {ours!r} already; remove one of them"
            )
    return raw.rename(present)


def _check_columns(path: Path, raw: pl.DataFrame) -> None:
    missing = [name for name in _REQUIRED if name not in raw.columns]
    if not missing:
        return
    spare = [column for column in raw.columns if column not in _COLUMNS]
    guesses = {name: _likely(name, spare) or f"THEIRS_{number}" for number, name in enumerate(missing, 1)}
    remedy = " ".join(f"--map {shlex.quote(f'{theirs}={ours}')}" for ours, theirs in guesses.items())
    plural = "s" if len(missing) > 1 else ""
    raise SweetspotError(
        f"{path}: column{plural} {', '.join(missing)} missing; there are {', '.join(raw.columns)}; "
        f"if the table names them otherwise, add {remedy}"
    )


def _likely(name: str, columns: Sequence[str]) -> str | None:
    plain = {column.casefold().replace(" ", "_").replace("-", "_"): column for column in columns}
    known = [alias for alias in _ALIASES[name] if alias in plain]
    close = known or difflib.get_close_matches(name, plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else None


def _checked(raw: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The frame with every column of `Row` in its type, and its problems in the order of rows.

    `raw` says in columns _file and _row where each row comes from.
    """
    problems: dict[tuple[int, str], str] = {}
    frame = raw
    for name, column in _COLUMNS.items():
        series = raw[name] if name in raw.columns else pl.Series(name, [None] * raw.height, dtype=pl.String)
        kind = column.dtype.type
        converted, wrong = _convert(series, kind)
        problems |= {(row, name): what for row, what in wrong.items()}
        default = (column.metadata or {}).get("default")
        frame = frame.with_columns((converted if default is None else converted.fill_null(default)).alias(name))
    try:
        Row.validate(frame, lazy=True)
    except SchemaErrors as error:
        for case in error.failure_cases.iter_rows(named=True):
            row, name = int(case["index"]), str(case["column"])
            what = "is missing" if case["check"] == "not_nullable" else f"is {raw[name][row]}: {_rule(name)}"
            problems.setdefault((row, name), what)
    kept = {
        key: what for key, what in problems.items() if key[1] not in _MEASURED or frame["valid"][key[0]] is not False
    }
    place = raw.select("_file", "_row").rows()
    return frame, [f"{place[row][0]}, row {place[row][1]}: {name} {what}" for (row, name), what in sorted(kept.items())]


def _convert(series: pl.Series, kind: pl.DataType) -> tuple[pl.Series, dict[int, str]]:
    """The series in `kind`, with null where it cannot be, and what is wrong by index."""
    text = series.dtype == pl.String
    if text:
        stripped = series.str.strip_chars()
        series = stripped.set(stripped == "", None)
    if kind == pl.String:
        return series.cast(pl.String), {}
    if kind == pl.Boolean:
        lowered = series.cast(pl.String).str.to_lowercase()
        converted = lowered.replace_strict({"true": True, "1": True, "false": False, "0": False}, default=None)
        converted, rule = converted.cast(pl.Boolean), "must be true or false"
    elif series.dtype == pl.Boolean or not (text or series.dtype.is_numeric() or series.dtype == pl.Null):
        converted, rule = pl.Series(series.name, [None] * len(series), dtype=pl.Float64), "must be a number"
    else:
        converted, rule = series.cast(pl.Float64, strict=False), "must be a number"
        converted = converted.set(~converted.is_finite(), None)
        if kind == pl.Int64:
            whole = converted.set((converted != converted.floor()) | (converted.abs() > 2**53), None)
            converted, rule = whole.cast(pl.Int64), "must be a whole number"
    bad = (series.is_not_null() & converted.is_null()).arg_true()
    return converted, {int(row): f"is {series[int(row)]}: {rule}" for row in bad}


def _rule(name: str) -> str:
    checks = [check for check in _COLUMNS[name].checks]
    words = {"greater_than": "above", "greater_than_or_equal_to": "at least", "less_than": "below", "isin": "one of"}
    parts = []
    for check in checks:
        value = next(iter((check.statistics or {}).values()), "")
        shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,.0f}"
        parts.append(f"{words.get(str(check.name), check.name)} {shown}")
    return "must be " + " and ".join(parts)
