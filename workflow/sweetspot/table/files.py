"""From a file to a frame: CSV and its relatives, JSON and Parquet, with plain types and nothing interpreted."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.errors import SweetspotError

_TEXT, _LINES, _PARQUET = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson"), (".parquet", ".pq")
OF_WORKFLOW = "if the workflow made it, remove it and run again: nothing is measured for that"
_SEPARATORS = ",;\t|"


def load(path: Path) -> pl.DataFrame:
    """Every row of a file that holds anything; column _row is its number (the first row of data is 1).

    The end of the name says the format, with .gz after it where it is compressed. Text files are read as text: their
    values are interpreted, and refused, by row. Raises SweetspotError for a file that is no whole table.
    """
    if not path.is_file():
        raise SweetspotError(f"{path}: no such file")
    suffixes = [suffix.casefold() for suffix in path.suffixes]
    suffix = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    if suffix not in (*_TEXT, *_LINES, *_PARQUET, ".json"):
        raise SweetspotError(f"{path}: a table ends in .csv, .tsv, .parquet, .json or .jsonl, or in .gz after these")
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if suffixes[-1] == ".gz" else data
    except (OSError, EOFError) as error:
        raise SweetspotError(f"{path}: cannot be read ({error}); is it cut short?") from None
    try:
        frame = _plain(_parsed(data, suffix))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        detail = (suffix in _LINES and _first_broken_line(data)) or (str(error).splitlines() or ["?"])[0]
        raise SweetspotError(
            f"{path}: cannot be read as a table ({detail}); is it cut short? Write it again; {OF_WORKFLOW}"
        ) from None
    if not frame.width:
        return frame
    numbered = frame.with_columns(_row=pl.int_range(1, frame.height + 1))
    return numbered.filter(~pl.all_horizontal(pl.col(name).is_null() for name in frame.columns))


def _parsed(data: bytes, suffix: str) -> pl.DataFrame:
    if suffix in _PARQUET:
        return pl.read_parquet(io.BytesIO(data))
    if suffix == ".json":
        rows = json.loads(data)
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("not an array of objects, one a row")
        return _lines("\n".join(map(json.dumps, rows)).encode())
    return _lines(data) if suffix in _LINES else _separated(data)


def _lines(data: bytes) -> pl.DataFrame:
    data = b"\n".join(line for line in data.splitlines() if line.strip())
    if not data:
        return pl.DataFrame()
    frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)  # in an order of columns that is never the same
    first = list(json.loads(data.splitlines()[0]))
    return frame.select(*first, *sorted(set(frame.columns) - set(first)))


def _separated(data: bytes) -> pl.DataFrame:
    text = _decoded(data).replace("\r\n", "\n").replace("\r", "\n")
    header = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if not header:
        return pl.DataFrame()
    frame = pl.read_csv(
        io.BytesIO(text.encode()),
        separator=max(_SEPARATORS, key=header.count),
        infer_schema=False,  # a number column with a word in it is refused by row, not by the parser's own message
        comment_prefix="#",
    )
    stripped = frame.with_columns(pl.col(pl.String).str.strip_chars())
    return stripped.with_columns(pl.col(pl.String).replace("", None))


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as spreadsheets write "Unicode text"
        return data.decode("utf-16")
    if b"\0" in data:
        raise ValueError("not a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Names of categories as text, decimals as numbers; headers without spaces around them."""
    frame = frame.rename({name: name.strip() for name in frame.columns if name != name.strip()})
    named = [name for name, kind in frame.schema.items() if kind.base_type() in (pl.Categorical, pl.Enum)]
    exact = [name for name, kind in frame.schema.items() if kind.base_type() == pl.Decimal]
    return frame.with_columns(pl.col(named).cast(pl.String), pl.col(exact).cast(pl.Float64))


def _first_broken_line(data: bytes) -> str | None:
    """Which line of a JSON Lines file is not strict JSON (NaN and Infinity are not)."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            json.loads(line, parse_constant=int)  # int("NaN") is a ValueError
        except ValueError:
            return f"row {number} is not JSON"
    return None


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
        raise SweetspotError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {OF_WORKFLOW}") from None


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a whole Parquet file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.write_parquet(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
