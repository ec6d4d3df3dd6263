"""JSON as a table: an array of rows, rows one after another, columns, or one result; nested names have dots."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from sweetspot.table.texts import TextError

# Names under which a result holds its rows; what stands beside them holds for each row.
_ROWS = (
    "configurations",
    "results",
    "data",
    "rows",
    "measurements",
    "requests",
    "records",
    "runs",
    "benchmarks",
    "logs",
)
_NO_JSON = re.compile(r"([:,[]\s*)(?:NaN|-?Infinity)(?=\s*[],}])")  # as Python's json writes them
_DEEP = "nested too deeply for a table"


def rows(text: str) -> pl.DataFrame:
    """The rows of a JSON text. Raises TextError, naming the line or the row, if it is none."""
    if not text.strip():
        return pl.DataFrame()
    lines = text.count("\n") and _fast(text)
    if isinstance(lines, pl.DataFrame):
        return lines
    try:
        found = list(_values(text))
        if len(found) == 1:
            found = _of_one(found[0])
        return _frame([dict(_flat(row)) for row in _objects(found)])
    except RecursionError:
        raise TextError(f"line 1: {_DEEP}") from None


def _fast(text: str) -> pl.DataFrame | None:
    """JSON Lines of one shape, as most logs are; None for anything else."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not all(line.startswith("{") and line.rstrip().endswith("}") for line in (lines[0], lines[-1])):
        return None
    plain = _NO_JSON.sub(r"\1null", "\n".join(lines)) if _NO_JSON.search(text) else "\n".join(lines)
    try:
        frame = pl.read_ndjson(io.BytesIO(plain.encode()), infer_schema_length=None)
        first = list(json.loads(lines[0]))  # the order of columns that polars gives varies
    except (pl.exceptions.PolarsError, ValueError, RecursionError, pl.exceptions.PanicException):
        return None
    frame = frame.select(*first, *sorted(set(frame.columns) - set(first)))
    while nested := [name for name, kind in frame.schema.items() if kind.base_type() == pl.Struct]:
        for name in nested:
            fields = frame[name].struct.fields
            frame = frame.with_columns(frame[name].struct.field(part).alias(f"{name}.{part}") for part in fields)
        frame = frame.drop(nested)
    return frame


def _values(text: str) -> Iterator[Any]:
    """The JSON values in a text, one after another."""
    decoder, place = json.JSONDecoder(), 0
    text = text.strip()
    many = False
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except ValueError as error:
            line = text.count("\n", 0, getattr(error, "pos", 0)) + 1
            early = getattr(error, "pos", 0) >= len(text) - 1 or "Unterminated" in str(error)
            why = "the text ends inside a value: it is cut short" if early else getattr(error, "msg", str(error))
            row = f" (row {text.count(chr(10), 0, place) + 1} is not a JSON object)" if many else ""
            raise TextError(f"line {line}: not JSON: {why}{row}") from None
        yield value
        many = True
        place = end
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1


def _of_one(value: Any) -> list[Any]:
    """The rows of one JSON value: of an array, of columns, of a result with its rows, or itself as the only row."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    parts = list(value.values())
    if parts and all(isinstance(part, list) and len(part) == len(parts[0]) > 0 for part in parts):
        return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
    if len(parts) > 1 and all(isinstance(part, dict) and part and part.keys() == parts[0].keys() for part in parts):
        if all(name.isdigit() for name in parts[0]):  # as pandas writes a frame
            return [{name: part[key] for name, part in value.items()} for key in parts[0]]
        if all(name.isdigit() for name in value):
            return parts
    for name in _ROWS:
        inner = value.get(name)
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner):
            beside = {key: part for key, part in value.items() if key != name and not isinstance(part, list)}
            return [beside | row for row in inner]
    return [value]


def _objects(found: list[Any]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise TextError(f"row {number} is not a JSON object")
        yield row


def _flat(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict | list):
            value = value[0]
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.dumps(value) if isinstance(value, list | dict) else value


def _frame(found: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as columns: of numbers if all values are, otherwise of text. NaN and integers beyond floats are missing."""
    names = dict.fromkeys(name for row in found for name in row)
    columns = []
    for name in names:
        values = [row.get(name) for row in found]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {bool}:
            columns.append(pl.Series(name, values, dtype=pl.Boolean))
        elif kinds <= {int, float}:
            columns.append(pl.Series(name, [_number(value) for value in values], strict=False))
        else:
            texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
            columns.append(pl.Series(name, texts, dtype=pl.String))
    return pl.DataFrame(columns)


def _number(value: int | float | None) -> int | float | None:
    if value is None or value != value:
        return None
    return value if abs(value) < 2**63 else float("inf") if abs(value) > 1e308 else float(value)
