"""JSON as a table: an array of rows, rows one after another, columns, or one result; nested names have dots."""

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from sweetspot.table.texts import TextError
from sweetspot.table.words import FACTS


def rows(text: str) -> pl.DataFrame:
    """The rows of a JSON text. Raises TextError, naming the line or the row, if it is none."""
    try:
        found = list(_values(text.strip()))
        found = _of_one(found[0]) if len(found) == 1 else found
        for number, row in enumerate(found, 1):
            if not isinstance(row, dict):
                raise TextError(f"row {number} is not a JSON object")
        return _frame([dict(_flat(row)) for row in found])
    except RecursionError:
        raise TextError("line 1: nested too deeply for a table") from None


def _values(text: str) -> Iterator[Any]:
    """The JSON values in a text, one after another."""
    decoder, place = json.JSONDecoder(), 0
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
    for name in FACTS["rows"]:
        inner = value.get(name)
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner):
            beside = {key: part for key, part in value.items() if key != name and not isinstance(part, list)}
            return [beside | row for row in inner]
    return [value]


def _flat(row: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict | list):
            value = value[0]
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.dumps(value) if isinstance(value, list | dict) else value


def _frame(found: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as columns: of numbers if all values are, otherwise of text. NaN and integers beyond floats are missing."""
    columns: dict[str, pl.Series] = {}
    for name in dict.fromkeys(name for row in found for name in row):
        values = [row.get(name) for row in found]
        kinds = {type(value) for value in values if value is not None}
        if kinds in (set(), {bool}):
            columns[name] = pl.Series(values)
        elif kinds <= {int, float}:
            columns[name] = pl.Series([_number(value) for value in values], strict=False)
        else:
            texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
            columns[name] = pl.Series(texts, dtype=pl.String)
    return pl.DataFrame(columns)


def _number(value: Any) -> int | float | None:
    if value is None or value != value:
        return None
    return value if abs(value) < 2**63 else float("inf") if abs(value) > 1e308 else float(value)
