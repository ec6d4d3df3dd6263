"""Table files: CSV and its variants, JSON and Parquet are loaded as plain frames, without interpreting values."""

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically

_TEXT, _LINES, _PARQUET = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson"), (".parquet", ".pq")
OF_WORKFLOW = "if the workflow wrote it, delete it and run again; nothing is measured again for that"
_SEPARATORS = ",;\t|"
_SHOWN = 5  # problems listed before the rest are counted


def load(path: Path, exact: bool = False, comments: bool = True) -> pl.DataFrame:
    """Every row of a file that is not empty; column _row is its number (the first data row is 1).

    The suffix gives the format; it may be followed by .gz. Values of text files stay text. Lines of a CSV file that
    begin with # are comments; without `comments` they are rows. Raises SweetspotError for a file that is not a complete
    table, for a row with more fields than the header and, if `exact`, with fewer.
    """
    if not path.is_file():
        raise SweetspotError(f"{path}: no such file")
    suffixes = [suffix.casefold() for suffix in path.suffixes]
    suffix = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    if suffix not in (*_TEXT, *_LINES, *_PARQUET, ".json"):
        raise SweetspotError(f"{path}: a table ends in .csv, .tsv, .parquet, .json or .jsonl, optionally with .gz")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if suffixes[-1] == ".gz" else data
    except (OSError, EOFError) as error:
        raise SweetspotError(f"{path}: cannot be read ({error}); is it cut short?") from None
    try:
        frame = _plain(_parsed(data, suffix, exact, "#" if comments else None))
    except _RaggedError as error:
        raise SweetspotError(f"{path}, {error}") from None
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        detail = (str(error).splitlines() or ["?"])[0]
        raise SweetspotError(
            f"{path}: cannot be read as a table ({detail}); is it cut short? Write it again; {OF_WORKFLOW}"
        ) from None
    if not frame.width:
        return frame
    numbered = frame.with_columns(_row=pl.int_range(1, frame.height + 1))
    return numbered.filter(~pl.all_horizontal(pl.col(name).is_null() for name in frame.columns))


def _parsed(data: bytes, suffix: str, exact: bool, comment: str | None) -> pl.DataFrame:
    if suffix in _PARQUET:
        return pl.read_parquet(io.BytesIO(data))
    if suffix == ".json":
        rows = json.loads(data)
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("not an array of objects, one per row")
        return _lines("\n".join(map(json.dumps, rows)).encode())
    return _lines(data) if suffix in _LINES else _separated(data, exact, comment)


def _lines(data: bytes) -> pl.DataFrame:
    lines = [line for line in data.splitlines() if line.strip()]
    if not lines:
        return pl.DataFrame()
    try:
        frame = pl.read_ndjson(io.BytesIO(b"\n".join(lines)), infer_schema_length=None)  # its columns' order varies
    except pl.exceptions.PolarsError:
        flat = b"\n".join(_flat(number, line) for number, line in enumerate(lines, 1))
        frame = pl.read_ndjson(io.BytesIO(flat), infer_schema_length=None)
    first = list(json.loads(lines[0]))
    return frame.select(*first, *sorted(set(frame.columns) - set(first)))


def _flat(number: int, line: bytes) -> bytes:
    """A row of JSON Lines with its nested values as text: rows may nest differently, for example in chat messages."""
    try:
        row = json.loads(line, parse_constant=int)  # NaN and Infinity are not JSON: int("NaN") is a ValueError
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"row {number} is not a JSON object")
    nested = {name: json.dumps(value) for name, value in row.items() if isinstance(value, dict | list)}
    return json.dumps(row | nested).encode()


def _separated(data: bytes, exact: bool, comment: str | None) -> pl.DataFrame:
    text = _decoded(data).replace("\r\n", "\n").replace("\r", "\n")
    lines = re.sub(rf"^{comment}.*$", "", text, flags=re.MULTILINE) if comment else text
    header = next(filter(str.strip, lines.splitlines()), "")
    if not header:
        return pl.DataFrame()
    separator = max(_SEPARATORS, key=header.count)
    if exact:
        _check_fields(lines, separator, exact)
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()),
            separator=separator,
            infer_schema=False,  # a word among numbers is then reported with its row
            comment_prefix=comment,
        )
    except pl.exceptions.ComputeError:
        _check_fields(lines, separator, exact)
        raise
    stripped = frame.with_columns(pl.col(pl.String).str.strip_chars())
    return stripped.with_columns(pl.col(pl.String).replace("", None))


class _RaggedError(ValueError):
    """A row has another number of fields than the header, or a quotation mark that is not closed."""


def _check_fields(text: str, separator: str, exact: bool) -> None:
    """Raise _RaggedError, naming the line, for a row with more fields than the header or, if `exact`, with fewer.

    Also for a quotation mark that is never closed, which would join rows.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.count('"') % 2:
            raise _RaggedError(f"line {number}: a quotation mark is not closed; remove it")
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    header = 0
    for fields in filter(None, reader):
        header = header or len(fields)
        if len(fields) > header or (exact and len(fields) < header):
            raise _RaggedError(f"line {reader.line_num}: {len(fields)} fields, but the header has {header}")


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # spreadsheets write "Unicode text" so
        return data.decode("utf-16")
    if b"\0" in data:
        raise ValueError("not a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with categories as text, decimals as floats, and headers without surrounding spaces."""
    frame = frame.rename({name: name.strip() for name in frame.columns if name != name.strip()})
    named = [name for name, kind in frame.schema.items() if kind.base_type() in (pl.Categorical, pl.Enum)]
    exact = [name for name, kind in frame.schema.items() if kind.base_type() == pl.Decimal]
    return frame.with_columns(pl.col(named).cast(pl.String), pl.col(exact).cast(pl.Float64))


def renamed(raws: Sequence[tuple[Path, pl.DataFrame]], rename: Mapping[str, str]) -> list[pl.DataFrame]:
    """Each file's frame with the columns renamed (theirs to ours).

    Raises SweetspotError for a column that no file has, and if two columns would have one name.
    """
    there = sorted({column for _, raw in raws for column in raw.columns if column != "_row"})
    for theirs, ours in rename.items():
        if theirs not in there:
            raise SweetspotError(f"--map {theirs}={ours}: there is no column {theirs!r}; there are {', '.join(there)}")
        if list(rename.values()).count(ours) > 1:
            raise SweetspotError(f"--map {theirs}={ours}, but another column is mapped to {ours!r}; map one")
    frames = []
    for path, raw in raws:
        present = {theirs: ours for theirs, ours in rename.items() if theirs in raw.columns and theirs != ours}
        for theirs, ours in present.items():
            if ours in raw.columns and ours not in present:
                raise SweetspotError(
                    f"{path}: --map {theirs}={ours}, but there is already a column {ours!r}; remove one of them"
                )
        frames.append(raw.rename(present))
    return frames


def numbers(series: pl.Series) -> pl.Series:
    """The series as floats; null for anything that is not a finite number. Booleans, dates and lists are not."""
    if series.dtype != pl.String and not series.dtype.is_numeric():
        return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)
    converted = series.cast(pl.Float64, strict=False)
    return converted.set(~converted.is_finite(), None)


def whole_numbers(path: Path, frame: pl.DataFrame, least: Mapping[str, int]) -> pl.DataFrame:
    """The frame with these columns as integers of at least so much.

    Raises SweetspotError, naming row, column and value, if one is not.
    """
    problems: list[tuple[int, str]] = []
    for name, low in least.items():
        number = numbers(frame[name])
        bad = ~((number >= low) & (number < 2**31) & (number == number.floor())).fill_null(False)
        for row, value in frame.filter(bad).select("_row", name).iter_rows():
            wrong = "is missing" if value is None else f"is {value}: must be a whole number of at least {low}"
            problems.append((row, f"{name} {wrong}"))
        frame = frame.with_columns(number.alias(name))
    if problems:
        places = [f"{path}, row {row}: {what}" for row, what in sorted(problems)]
        raise SweetspotError(f"{shortened(places)}\ncorrect or remove these rows")
    return frame.cast(dict.fromkeys(least, pl.Int64))


def shortened(items: Sequence[str], separator: str = "\n", most: int = _SHOWN) -> str:
    """The first few items, and how many more there are."""
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *rest])


def read_result(path: Path) -> Any:
    """A result of the workflow: the frame of a Parquet or CSV file, or the content of a JSON file.

    Raises SweetspotError, with the remedy, if the file is incomplete.
    """
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".csv":
            return pl.read_csv(path, schema_overrides={"model": pl.String})
        return json.loads(path.read_text())
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise SweetspotError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {OF_WORKFLOW}") from None


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a Parquet file atomically."""
    content = io.BytesIO()
    frame.write_parquet(content)
    write_atomically(path, content.getvalue())
