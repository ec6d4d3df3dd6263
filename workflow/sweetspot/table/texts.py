"""Text as a table: encodings, separators, the line of the header, and reports of several blocks."""

import csv
import io
import re
from collections import Counter
from itertools import islice

import polars as pl

from sweetspot.table.words import UNITS, folded, meanings

_SEPARATORS = (",", ";", "\t", "|", " ")
_SEARCHED = 40  # lines at the start among which the header is
_WIDEST = 100_000  # columns
_UNIT_WORDS = {folded(unit) for units in UNITS.values() for unit in units} | {""}
csv.field_size_limit(2**30)


class TextError(ValueError):
    """What is wrong in a text, beginning with the line or row."""


def decoded(data: bytes) -> str:
    """The text of a file as editors and spreadsheets write it, with line feeds. Raises ValueError if it is no text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16")
    elif (zeros := [data[start:200:2].count(0) / len(data[start:200:2] or b" ") for start in (0, 1)]) and _one_sided(
        zeros
    ):
        text = data.decode("utf-16-le" if zeros[1] > zeros[0] else "utf-16-be")
    elif b"\0" in data:
        raise ValueError("not a text file")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _one_sided(zeros: list[float]) -> bool:
    """Whether every other byte is mostly zero, as in UTF-16 without a mark."""
    return max(zeros) > 0.5 > 10 * min(zeros)


def separated(text: str, exact: bool = False, comments: bool = True) -> tuple[pl.DataFrame, list[str]]:
    """The table in a text, and notes on lines left out. Raises TextError for a row with too many fields.

    With `exact` also for one with too few. Lines that begin with # are comments, unless one is the header; without
    `comments`, only those that have not as many fields as the header.
    """
    notes: list[str] = []
    lines = text.split("\n")
    forced = re.fullmatch(r"\ufeff?\"?sep=(.)\"?", lines[0].strip("\n"), re.IGNORECASE)
    if forced:  # a line for Excel
        lines[0] = ""
    if _first(lines).casefold().lstrip('"').startswith("metric") and len(_first(lines)) < 2000:
        return _blocks("\n".join(lines)), notes
    start, separator = _header(lines, forced[1] if forced else None)
    if start is None:
        return pl.DataFrame(), notes
    above = [line for line in lines[:start] if line.strip(" ,;\t|") and not line.startswith("#")]
    if above:
        notes.append(f"lines above the header left out: {len(above)}, first {above[0].strip()[:80]!r}")
    if lines[start].lstrip().startswith("#"):
        lines[start] = lines[start].lstrip("# \t")
    if found := _comments(lines, None if comments else (separator, lines[start].count(separator))):
        notes.append(f"comment lines left out: {len(found)}, first {lines[found[0]].strip()[:80]!r}")
        for index in found:
            lines[index] = "\0"
    lines[:start] = [""] * start
    if separator == " ":
        lines = [re.sub(r"[ \t]+", "\t", line.strip()) for line in lines]
        separator = "\t"
    names = next(csv.reader([lines[start]], delimiter=separator))
    if len(names) > _WIDEST:
        raise TextError(f"line {start + 1}: {len(names):,} columns; is it a table?")
    body = "\n".join(line for line in lines[start + 1 :] if line != "\0")
    if exact:
        _check_fields(lines, start, separator, exact)
    # An unnamed last column is what a separator at the end of each line makes.
    unnamed = [f"column {place}" if not name.strip() else name.strip() for place, name in enumerate(names, 1)]
    unique, again = _unique(unnamed)
    if not body.strip():
        return pl.DataFrame(schema=dict.fromkeys(unique, pl.String)), notes
    header = io.StringIO()
    csv.writer(header, delimiter=separator, lineterminator="\n").writerow(unique)
    try:
        frame = pl.read_csv(
            io.BytesIO((header.getvalue() + body).encode()),
            separator=separator,
            infer_schema=False,  # a word among numbers is then reported with its row
        )
    except pl.exceptions.PolarsError as error:
        _check_fields(lines, start, separator, exact)
        raise TextError(f"line {start + 1}: {str(error).splitlines()[0]}") from None
    frame = frame.with_columns(pl.col(pl.String).str.strip_chars().replace("", None))
    frame, notes = _same(frame, again, start + 1, notes)
    empty = [name for name, given in zip(unique, names, strict=True) if not given.strip()]
    return _units(frame.drop(name for name in empty if frame[name].is_null().all())), notes


def _first(lines: list[str]) -> str:
    return next((line for line in lines if line.strip()), "")


def _header(lines: list[str], forced: str | None) -> tuple[int | None, str]:
    """The index of the header and the separator: where most names are known, otherwise the first line."""
    best: tuple[tuple[int, int, int], int, str] | None = None
    written = ((index, line) for index, line in enumerate(lines) if line.strip(" \t,;|\ufeff"))
    for index, line in islice(written, _SEARCHED):
        comment = line.lstrip().startswith("#")
        plain = line.lstrip("# \t") if comment else line
        for separator in [forced] if forced else _SEPARATORS:
            fields = plain.split() if separator == " " else [part.strip(' "') for part in plain.split(separator)]
            known = sum(bool(meanings(part)) for part in fields[:500])
            if known < (max(3, len(fields)) if separator == " " else 2 if comment else 0):
                continue
            rank = (known if known > 1 else 0, -index, 0 if separator == " " else len(fields))
            if best is None or rank > best[0]:
                best = rank, index, separator
    return (best[1], best[2]) if best else (None, ",")


def _comments(lines: list[str], data: tuple[str, int] | None) -> list[int]:
    """The indices of lines that begin with # outside of quoted text, except those with this count of separators."""
    found: list[int] = []
    if any(line.startswith("#") for line in lines):
        inside = False
        for index, line in enumerate(lines):
            if not inside and line.startswith("#") and not (data and line.count(data[0]) == data[1]):
                found.append(index)
            elif line.count('"') % 2:
                inside = not inside
    return found


def _unique(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Names of which none occurs twice, and which of them repeat which other."""
    counts: Counter[str] = Counter()
    unique, again = [], {}
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
        if counts[name] > 1:
            again[unique[-1]] = name
    return unique, again


def _same(frame: pl.DataFrame, again: dict[str, str], line: int, notes: list[str]) -> tuple[pl.DataFrame, list[str]]:
    for name, first in again.items():
        if not frame[name].equals(frame[first].alias(name), null_equal=True):
            raise TextError(f"line {line}: two columns are called {first!r} and differ; rename or remove one of them")
        notes = [*notes, f"column {first} is there twice, with equal values"]
    return frame.drop(again), notes


def _units(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a row of units below the header moved into the header."""
    if frame.height < 2:
        return frame
    row = [(name, value or "") for name, value in zip(frame.columns, frame.row(0), strict=True)]
    if not any(value for _, value in row) or any(folded(value) not in _UNIT_WORDS for _, value in row):
        return frame
    return frame[1:].rename({name: f"{name} ({value.strip('()[] ')})" for name, value in row if value})


def _check_fields(lines: list[str], start: int, separator: str, exact: bool) -> None:
    """Raise TextError, naming the line, for a row with another number of fields than the header.

    More fields are always wrong, fewer only if `exact`. Also for a quotation mark that is never closed.
    """
    body = [line if line != "\0" else "" for line in lines[start:]]
    for number, line in enumerate(body, start + 1):
        if line.count('"') % 2:
            raise TextError(f"line {number}: a quotation mark is not closed; remove it")
    reader = csv.reader(io.StringIO("\n".join(body)), delimiter=separator)
    header = 0
    for fields in filter(None, reader):
        header = header or len(fields)
        if len(fields) > header or (exact and len(fields) < header):
            what = f"{len(fields)} fields, but the header has {header}"
            raise TextError(f"line {start + reader.line_num}: {what}")


def _blocks(text: str) -> pl.DataFrame:
    """One row of a report of several blocks: "Request Latency (ms).avg", and of each GPU "… [0].avg"."""
    row: dict[str, str | None] = {}
    header: list[str] = []
    for fields in csv.reader(io.StringIO(text)):
        if not any(fields):
            header = []
        elif not header:
            header = [field.strip() for field in fields]
            if "Metric" not in header:
                header = []
        else:
            named = dict(zip(header, (field.strip() for field in fields), strict=False))
            own = [named[key] for key in header if key not in ("Metric", "Value", "Unit") and not _statistic(key)]
            place = f" [{' '.join(own)}]" if own else ""
            metric = named["Metric"] + (f" ({named['Unit']})" if named.get("Unit") else "")
            for key, value in named.items():
                if _statistic(key):
                    row[f"{metric}{place}.{key}"] = value or None
                elif key == "Value":
                    row[f"{metric}{place}"] = value or None
                elif key == "GPU_Name":
                    row["GPU_Name"] = value
    return pl.DataFrame([row], schema=dict.fromkeys(row, pl.String))


def _statistic(key: str) -> bool:
    return bool(re.fullmatch(r"avg|min|max|sum|std|p\d+", key))
