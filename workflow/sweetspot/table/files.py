"""Table files: text, JSON, spreadsheets and Parquet are loaded as plain frames, without interpreting values."""

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically
from sweetspot.table import texts
from sweetspot.table.numbers import numbers

_TEXT, _PARQUET = (
    (".csv", ".tsv", ".txt", ".tab", ".dat", ".log", ".md", ".json", ".jsonl", ".ndjson"),
    (".parquet", ".pq"),
)
_SHEETS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
OF_WORKFLOW = "if the workflow wrote it, delete it and run again; nothing is measured again for that"
_SHOWN = 5  # problems listed before the rest are counted
_LARGEST = 2**30  # bytes of a file when unpacked
_TOO_LARGE = f"more than {_LARGEST / 2**30:g} GiB when unpacked; is it a table?"


@dataclass(frozen=True)
class Loaded:
    """A file's rows, what was left out, and whether its numbers are typed, so that a point is a decimal point."""

    frame: pl.DataFrame
    notes: list[str] = field(default_factory=list)
    typed: bool = True


def load(path: Path, exact: bool = False) -> pl.DataFrame:
    """Every row of a file that is not empty; column _row is its number (the first data row is 1).

    Values of text files stay text. Raises SweetspotError for a file that is not a whole table, for a row with more
    fields than the header and, if `exact`, with fewer.
    """
    return read_file(path, exact).frame


def read_file(path: Path, exact: bool = False, comments: bool = True) -> Loaded:
    """As `load`, with what was left out. The suffix gives the format; it may be followed by .gz.

    Lines that begin with # are comments; without `comments`, those with as many fields as the header are rows.
    """
    name = path.name.casefold()
    suffix = Path(name.removesuffix(".gz")).suffix
    try:
        if not path.is_file():
            raise SweetspotError(f"{path}: no such file")
        if suffix not in (*_TEXT, *_SHEETS, *_PARQUET):
            raise SweetspotError(
                f"{path}: a table ends in .csv, .tsv, .parquet, .json or .jsonl, optionally with .gz, or .xlsx"
            )
        data = path.read_bytes()
    except OSError as error:
        raise SweetspotError(f"{str(path)[:200]}: cannot be read: {error.strerror}") from None
    try:
        found = _parsed(_unpacked(data) if name.endswith(".gz") else data, suffix, exact, comments)
        frame = found.frame
        frame.columns = [name.strip() for name in frame.columns]
    except texts.TextError as error:
        raise SweetspotError(f"{path}, {error}") from None
    except (pl.exceptions.PolarsError, OSError, ValueError, zipfile.BadZipFile, MemoryError) as error:
        detail = (str(error).splitlines() or ["?"])[0][:300]
        raise SweetspotError(f"{path}: cannot be read: {detail}; {OF_WORKFLOW}") from None
    words = cs.by_dtype(pl.Categorical, pl.Enum)
    frame = frame.with_columns(words.cast(pl.String), cs.decimal().cast(pl.Float64))
    if frame.width:
        numbered = frame.with_columns(_row=pl.int_range(1, frame.height + 1))
        frame = numbered.filter(~pl.all_horizontal(pl.col(frame.columns).is_null()))
    return Loaded(frame, found.notes, found.typed)


def _unpacked(data: bytes) -> bytes:
    """The content of .gz, whole and of bounded size."""
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_LARGEST + 1)
    except EOFError:
        raise ValueError("the compressed data end early: it is cut short; copy the file again") from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"the compressed data are damaged ({error}); copy the file again") from None
    if len(content) > _LARGEST:
        raise ValueError(_TOO_LARGE)
    return content


def _parsed(data: bytes, suffix: str, exact: bool, comments: bool) -> Loaded:
    if suffix in _PARQUET:
        return Loaded(pl.read_parquet(io.BytesIO(data)))
    if suffix in _SHEETS:
        text, notes = _sheet(data)
        frame, more = texts.separated(text, exact)
        return Loaded(frame, notes + more)
    text = texts.decoded(data)
    if suffix in (".json", ".jsonl", ".ndjson") or text.lstrip()[:2] in ('{"', "[{", "{\n", "[\n"):
        return Loaded(texts.objects(text))
    return Loaded(*texts.separated(text, exact, comments), typed=False)


def _sheet(data: bytes) -> tuple[str, list[str]]:
    """The one sheet of a workbook that holds a table, as CSV."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(part.file_size for part in archive.infolist()) > _LARGEST:
                raise ValueError(_TOO_LARGE)
    try:
        sheets = pl.read_excel(
            io.BytesIO(data), sheet_id=0, has_header=False, raise_if_empty=False, infer_schema_length=None
        )
    except Exception as error:  # fastexcel's own errors have no common base with others
        raise ValueError(f"not a workbook ({error})") from None
    full = {name: frame for name, frame in sheets.items() if frame.height > 1 and frame.width > 1}
    if len(full) > 1:
        raise ValueError(f"several sheets hold tables: {', '.join(full)}; save the one to read as CSV")
    name, frame = next(iter((full or sheets).items()))
    others = [other for other in sheets if other != name and sheets[other].height]
    return frame.write_csv(include_header=False), [f"sheets left out: {', '.join(others)}"] if others else []


def renamed(raws: Sequence[tuple[Path, pl.DataFrame]], rename: Mapping[str, str]) -> list[pl.DataFrame]:
    """Each file's frame with the columns renamed (theirs to ours).

    Raises SweetspotError for a column that no file has, and if two columns would have one name.
    """
    there = sorted({column for _, raw in raws for column in raw.columns if not column.startswith("_")})
    for theirs, ours in rename.items():
        said = f"--map {theirs}={ours}"
        if theirs not in there:
            raise SweetspotError(f"{said}: there is no column {theirs!r}; there are {shortened(there, ', ', 30)}")
        if list(rename.values()).count(ours) > 1:
            raise SweetspotError(f"{said}, but another column is mapped to {ours!r}; map one")
        for path, raw in raws:
            if theirs in raw.columns and theirs != ours in raw.columns and rename.get(ours, ours) == ours:
                raise SweetspotError(f"{path}: {said}, but there is already a column {ours!r}; remove one of them")
    return [raw.rename(dict(rename), strict=False) for _, raw in raws]


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
    """The first few items, each of bounded length, and how many more there are."""
    rest = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*(item if len(item) < 1000 else f"{item[:1000]}…" for item in items[:most]), *rest])


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
