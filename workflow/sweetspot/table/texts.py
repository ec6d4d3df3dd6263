"""Text as a table: encodings; separators, the line of the header, reports of several blocks; JSON."""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

import polars as pl

from sweetspot.table.words import FACTS, UNITS, folded, meanings

_SEPARATORS = (",", ";", "\t", "|", " ")
_SEARCHED = 40  # lines at the start among which the header is
_SPACES = " \t\r\n\v\f\u00a0\u2007\u2009\u202f"
_LONG = 1_000_000  # characters from which a text is read faster if it is regular
_WIDEST = 100_000  # columns
_UNIT_WORDS = {folded(unit) for units in UNITS.values() for unit in units} | {""}
_STATISTIC = re.compile(r"avg|min|max|sum|std|p\d+")
csv.field_size_limit(2**30)


class TextError(ValueError):
    """What is wrong in a text, beginning with the line or row."""


def decoded(data: bytes) -> str:
    """The text of a file as editors and spreadsheets write it, with line feeds. Raises ValueError if it is no text."""
    even, odd = (data[start:200:2].count(0) / len(data[start:200:2] or b" ") for start in (0, 1))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16")
    elif max(even, odd) > 0.5 > 10 * min(even, odd):  # every other byte is zero: UTF-16 without a mark
        text = data.decode("utf-16-le" if odd > even else "utf-16-be")
    elif b"\0" in data:
        raise ValueError("not a text file")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def separated(text: str, exact: bool = False, comments: bool = True) -> tuple[pl.DataFrame, list[str]]:
    """The table in a text, and notes on lines left out. Raises TextError for a row with too many fields.

    With `exact` also for one with too few. Lines that begin with # are comments, unless one is the header; without
    `comments`, only those that have not as many fields as the header.
    """
    notes: list[str] = []
    lines = text.split("\n")
    if forced := re.fullmatch(r"\ufeff?\"?sep=(.)\"?", lines[0], re.IGNORECASE):  # a line for Excel
        lines[0] = ""
    first = next((line for line in lines if line.strip()), "")
    if first[:7].casefold().lstrip('"').startswith("metric"):
        return _blocks(lines), notes
    start, separator = _header(lines, forced[1] if forced else None)
    above = [line for line in lines[:start] if line.strip(" ,;\t|") and not line.startswith("#")]
    if above:
        notes.append(f"lines above the header left out: {len(above)}, first {above[0].strip()[:80]!r}")
    said = [line for line in lines[:start] if line.startswith("#")]
    if lines[start].lstrip().startswith("#"):
        lines[start] = lines[start].lstrip("# \t")
    records = _records(lines, start, separator)
    _, names = next(records)
    if len(names) > _WIDEST:
        raise TextError(f"line {start + 1}: {len(names):,} columns; is it a table?")
    rows, around = [], _SPACES + "*`" * (separator == "|")  # Markdown's emphasis
    fast = None if exact else _regular(lines, start, separator, len(names), around)
    for number, fields in records if fast is None else ():
        if lines[number].startswith("#") and (comments or len(fields) != len(names)):
            said.append(lines[number])
        elif len(fields) > len(names) or (exact and 0 < len(fields) < len(names)):
            raise TextError(f"line {number + 1}: {len(fields)} fields, but the header has {len(names)}")
        else:
            rows.append([*(field.strip(around) or None for field in fields), *[None] * (len(names) - len(fields))])
    if said:
        notes.append(f"comment lines left out: {len(said)}, first {said[0].strip()[:80]!r}")
    values = (
        fast or pl.DataFrame(rows, dict.fromkeys(map(str, range(len(names))), pl.String), orient="row").get_columns()
    )
    columns: dict[str, pl.Series] = {}
    for place, (name, series) in enumerate(zip(names, values, strict=True), 1):
        # An unnamed column is an index, or what a separator at the end of each line makes.
        named = name.strip() or f"column {place}"
        if named not in columns:
            if name.strip() or series.count():
                columns[named] = series
        elif columns[named].equals(series):
            notes.append(f"column {named} is there twice, with equal values")
        else:
            raise TextError(f"line {start + 1}: two columns are called {named!r} and differ; rename or remove one")
    return _units(pl.DataFrame(columns)), notes


def _regular(lines: list[str], start: int, separator: str, width: int, around: str) -> list[pl.Series] | None:
    """The columns of a long text without quotes, comments and empty lines, by a faster reader; None for others."""
    body = "\n".join(lines[start + 1 :]).rstrip("\n")
    if len(body) < _LONG or separator == " " or '"' in body or body.startswith("#") or "\n#" in body or "\n\n" in body:
        return None
    names = [str(place) for place in range(width)]
    options: dict[str, Any] = {"has_header": False, "quote_char": None, "schema": dict.fromkeys(names, pl.String)}
    try:
        frame = pl.read_csv(body.encode(), separator=separator, **options)
    except pl.exceptions.PolarsError:  # which row is wrong, the other reader says
        return None
    return frame.select(pl.all().str.strip_chars(around).replace("", None)).get_columns()


def _header(lines: list[str], forced: str | None) -> tuple[int, str]:
    """The index of the header and the separator: where most names are known, otherwise the first line."""
    best = (0, 0, 0), 0, forced or ","
    for index in [index for index, line in enumerate(lines) if line.strip(" \t,;|\ufeff")][:_SEARCHED]:
        comment = lines[index].lstrip().startswith("#")
        plain = lines[index].lstrip("# \t") if comment else lines[index]
        for separator in [forced] if forced else _SEPARATORS:
            fields = plain.split() if separator == " " else [part.strip(' "') for part in plain.split(separator)]
            known = sum(bool(meanings(part)) for part in fields[:500])
            if known >= (max(3, len(fields)) if separator == " " else 2 if comment else 0):
                rank = (known if known > 1 else 0, -index, 0 if separator == " " else len(fields))
                if best[0] == (0, 0, 0) or rank > best[0]:
                    best = rank, index, separator
    return best[1], best[2]


def _records(lines: list[str], start: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row from the header on, with the index of its first line."""
    if separator == " ":
        yield from ((index, lines[index].split()) for index in range(start, len(lines)))
        return
    reader = csv.reader((f"{line}\n" for line in lines[start:]), delimiter=separator, strict=True)
    while (first := start + reader.line_num) < len(lines):
        try:
            fields, spoilt = next(reader), False
        except csv.Error:
            fields, spoilt = [], True
        whole = lines[first : start + reader.line_num]
        odd = [number for number, line in enumerate(whole, first + 1) if line.count('"') % 2]
        if not whole[0].startswith("#") and (spoilt or len(odd) % 2):
            raise TextError(f"line {odd[0] if odd else first + 1}: a quotation mark is not closed; remove it")
        yield first, fields


def _units(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a row of units below the header moved into the header."""
    units = {name: value for name, value in frame[:1].row(0, named=True).items() if value} if frame.height > 1 else {}
    if not units or any(folded(value) not in _UNIT_WORDS for value in units.values()):
        return frame
    return frame[1:].rename({name: f"{name} ({value.strip('()[] ')})" for name, value in units.items()})


def _blocks(lines: list[str]) -> pl.DataFrame:
    """One row of a report of several blocks: "Request Latency (ms).avg", and of each GPU "… [0].avg"."""
    row: dict[str, str | None] = {}
    header: list[str] = []
    for fields in csv.reader(lines):
        if not any(fields):
            header = []
        elif not header:
            header = [field.strip() for field in fields] if "Metric" in fields else []
        else:
            named = dict(zip(header, (field.strip() for field in fields), strict=False))
            own = [
                named[key] for key in named if key not in ("Metric", "Value", "Unit") and not _STATISTIC.fullmatch(key)
            ]
            place = f" [{' '.join(own)}]" if own else ""
            metric = named["Metric"] + (f" ({named['Unit']})" if named.get("Unit") else "") + place
            row |= {f"{metric}.{key}": value or None for key, value in named.items() if _STATISTIC.fullmatch(key)}
            row |= {metric: named["Value"] or None} if "Value" in named else {}
            row |= {"GPU_Name": named["GPU_Name"]} if "GPU_Name" in named else {}
    return pl.DataFrame(row, schema=dict.fromkeys(row, pl.String))


def objects(text: str) -> pl.DataFrame:
    """The rows of a JSON text: an array, rows one after another, columns, or one result; nested names have dots.

    Raises TextError, naming the line or the row, if it is none."""
    try:
        found = list(_values(text.strip()))
        found = _of_one(found[0]) if len(found) == 1 else found
        for number, row in enumerate(found, 1):
            if not isinstance(row, dict):
                raise TextError(f"row {number} is not a JSON object")
        rows = [dict(_flat(row)) for row in found]
        names = dict.fromkeys(name for row in rows for name in row)
        return pl.DataFrame({name: _column([row.get(name) for row in rows]) for name in names})
    except RecursionError:
        raise TextError("line 1: nested too deeply for a table") from None


def _values(text: str) -> Iterator[Any]:
    """The JSON values in a text, one after another."""
    decoder = json.JSONDecoder(
        parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits), parse_constant=lambda _: None
    )
    place = 0
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            early = error.pos >= len(text) - 1 or "Unterminated" in error.msg
            why = "the text ends inside a value: it is cut short" if early else error.msg
            row = f" (row {text.count(chr(10), 0, place) + 1} is not a JSON object)" if place else ""
            raise TextError(f"line {error.lineno}: not JSON: {why}{row}") from None
        yield value
        place = end
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1


def _of_one(value: Any) -> list[Any]:
    """The rows of one JSON value: of an array, of columns, of a result with its rows, or itself as the only row."""
    if isinstance(value, dict) and {"columns", "data"} <= value.keys():  # as pandas and W&B write a table
        value = [value["columns"], *value["data"]]
    if not isinstance(value, dict):
        rows = value if isinstance(value, list) else [value]
        if len(rows) > 1 and all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
            return [dict(zip(map(str, rows[0]), row, strict=True)) for row in rows[1:]]
        return rows
    parts = list(value.values())
    if parts and all(isinstance(part, list) and len(part) == len(parts[0]) > 0 for part in parts):
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    if len(parts) > 1 and all(isinstance(part, dict) and part and part.keys() == parts[0].keys() for part in parts):
        if all(name.isdigit() for name in parts[0]):  # as pandas writes a frame
            return [{name: part[key] for name, part in value.items()} for key in parts[0]]
        if all(name.isdigit() for name in value):
            return parts
    for name in FACTS["rows"]:
        inner = value.get(name)
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner):
            beside = {key: part for key, part in value.items() if key != name and not isinstance(part, list)}
            return [beside | row for row in inner]
    return [value]


def _flat(row: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and {"value", "unit"} == value.keys():
            yield f"{above}{name} ({value['unit']})", value["value"]
        elif isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            one_word = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)
            yield f"{above}{name}", value[0] if one_word else value


def _column(values: list[Any]) -> pl.Series:
    """Of numbers, or lists of them, if all values are; otherwise of text. NaN is missing."""
    kinds = {type(value) for value in values if value is not None}
    if kinds in (set(), {bool}):
        return pl.Series(values)
    if kinds <= {int, float}:
        return pl.Series(values, strict=False)
    if kinds == {list} and {type(part) for value in values for part in value or ()} <= {int, float}:
        return pl.Series(values, strict=False)
    return pl.Series([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])
