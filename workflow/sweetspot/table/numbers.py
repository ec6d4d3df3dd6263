"""Numbers as people write them: decimal points or commas, separators of thousands, units in cells, no value."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from sweetspot.table.words import UNITS

# Ways of writing that a value is missing, in lower case.
NOTHING: tuple[str, ...] = (
    "",
    "na",
    "nan",
    "n/a",
    "n.a.",
    "#n/a",
    "<na>",
    "-",
    "--",
    "—",
    "–",
    "null",
    "nil",
    "?",
    "nd",
    "n/d",
    "unknown",
)
NOTHING += (
    "[n/a]",
    "[not supported]",
    "[unknown error]",
    "[insufficient permissions]",
    "not available",
    "not measured",
)
NO_NUMBER = (
    *NOTHING,
    "none",
    "[none]",
    "missing",
    "not supported",
    "tbd",
    "err",
    "#div/0!",
    "#value!",
    "#ref!",
    "#num!",
)
_SPACES = r"[\s\u00a0\u2007\u2009\u202f]"
_GROUP_MARKS = r"[\s\u00a0\u2007\u2009\u202f'’_]"
_SPACED = rf"^([+-]?\d{{1,3}}(?:{_GROUP_MARKS}\d{{3}})+)(.*)$"
_VALUE = r"^([+-]?[\d.,]*\d[.,]?(?:[eE][+-]?\d+)?)"
_UNIT = rf"{_VALUE}{_SPACES}*([A-Za-zµ][A-Za-zµ/ ]*)$"
_POINT_GROUPS, _COMMA_GROUPS = (rf"^[+-]?\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}" for mark in (r"\.", ","))
_UNCLEAR = r"^[+-]?[1-9]\d{0,2}([.,])\d{3}$"


def _decimal(mark: str, other: str) -> str:
    """What a number looks like whose decimal mark can only be this one: 0.64, 1,024.5, 1,234,567."""
    parts = [
        rf"\d*{mark}(?:\d{{1,2}}|\d{{4,}})",
        rf"0+{mark}\d+",
        rf"\d{{4,}}{mark}\d{{3}}",
        rf"\d*{mark}\d+[eE][+-]?\d+",
    ]
    parts += [rf"\d{{1,3}}(?:{other}\d{{3}})+{mark}\d*", rf"\d{{1,3}}(?:{other}\d{{3}}){{2,}}"]
    return rf"^[+-]?(?:{'|'.join(parts)})$"


@dataclass(frozen=True)
class Clues:
    """Values that show what point and comma mean: a decimal point, a decimal comma, and one that may be either."""

    point: str | None = None
    comma: str | None = None
    unclear: str | None = None

    def __or__(self, other: "Clues") -> "Clues":
        """Those of two columns."""
        return Clues(self.point or other.point, self.comma or other.comma, self.unclear or other.unclear)


def blank(series: pl.Series, words: Sequence[str] = NO_NUMBER) -> pl.Series:
    """The series with text that says nothing as null; of floats, NaN."""
    if series.dtype == pl.String:
        stripped = series.str.replace_all("\u00a0", " ").str.strip_chars()
        return stripped.set(stripped.str.to_lowercase().is_in(list(words)), None)
    return series.fill_nan(None) if series.dtype.is_float() else series


def clues(series: pl.Series) -> Clues:
    """What the values of a text column show of its decimal mark; nothing for other columns."""
    if series.dtype != pl.String:
        return Clues()
    marked = series.filter(series.str.contains(r"[.,]").fill_null(False))
    if not marked.len():
        return Clues()
    value = _closed(blank(marked)).str.extract(_VALUE).unique()

    def first(pattern: str) -> str | None:
        found = value.filter(value.str.contains(pattern).fill_null(False))
        return str(found[0]) if found.len() else None

    return Clues(first(_decimal(r"\.", ",")), first(_decimal(",", r"\.")), first(_UNCLEAR))


def parsed(series: pl.Series, kind: str, decimal: str = ".", factor: float = 1.0) -> tuple[pl.Series, list[str]]:
    """The numbers of a text column in our unit, and notes; unchanged if they are plain numbers already.

    `kind` is the dimension of `words.UNITS`, `decimal` the mark that the file uses. A value that is not understood
    stays as text, so that its row is reported as written.
    """
    if series.dtype != pl.String:
        if factor == 1 or not series.dtype.is_numeric():
            return series, []
        return series.cast(pl.Float64) * factor, []
    given = blank(series)
    plain = given.cast(pl.Float64, strict=False)
    odd = given.is_not_null() & plain.is_null()
    unclear = given.str.contains(_UNCLEAR).fill_null(False) if decimal == "," else pl.Series([False])
    if factor == 1 and not odd.any() and not unclear.any():
        return given, []
    closed = _closed(given)
    value, unit = closed.str.extract(_VALUE), closed.str.extract(_UNIT, 2).str.strip_chars()
    value = value.set((value + unit.fill_null("") != closed.str.replace_all(_SPACES, "")) & unit.is_null(), None)
    thousands, groups = (",", _COMMA_GROUPS) if decimal == "." else (".", _POINT_GROUPS)
    grouped = value.str.contains(groups).fill_null(False)
    value = value.set(~grouped & value.str.contains(thousands, literal=True).fill_null(False), None)
    value = value.str.replace_all(thousands, "", literal=True)
    if decimal == ",":
        value = value.str.replace(",", ".", literal=True)
    known = UNITS[kind]
    lowered = {name.casefold(): number for name, number in known.items() if name not in ("mJ", "MJ", "mW")}
    scale = unit.replace_strict(known, default=None, return_dtype=pl.Float64)
    scale = scale.fill_null(unit.str.to_lowercase().replace_strict(lowered, default=None, return_dtype=pl.Float64))
    number = value.cast(pl.Float64, strict=False) * scale.set(unit.is_null(), factor)
    notes = [f"units are written in the cells: {', '.join(sorted(found))}"] if (found := set(unit.drop_nulls())) else []
    if not (given.is_not_null() & number.is_null()).any():
        return number, notes
    return number.cast(pl.String).fill_null(given), notes


def numbers(series: pl.Series) -> pl.Series:
    """The series as floats; null for anything that is not a finite number. Booleans, dates and lists are not."""
    if series.dtype != pl.String and not series.dtype.is_numeric():
        return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)
    converted = series.cast(pl.Float64, strict=False)
    return converted.set(~converted.is_finite(), None)


def _closed(text: pl.Series) -> pl.Series:
    """The text with numbers closed up: "12 699,8 J" is "12699,8 J"."""
    spaced = text.str.contains(_SPACED).fill_null(False)
    if not spaced.any():
        return text
    frame = pl.DataFrame({"text": text}).with_columns(
        closed=pl.col("text").str.extract(_SPACED).str.replace_all(_GROUP_MARKS, "")
        + pl.col("text").str.extract(_SPACED, 2)
    )
    return frame.select(pl.when(spaced).then("closed").otherwise("text").alias(text.name)).to_series()
