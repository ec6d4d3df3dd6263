"""Numbers as people write them: decimal points or commas, separators of thousands, units in cells, no value."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from sweetspot.table.words import FACTS, UNITS

# Ways of writing that a value is missing, in lower case.
NOTHING: list[str] = FACTS["nothing"]
NO_NUMBER: list[str] = [*NOTHING, *FACTS["no_number"]]
_SPACES = r"[\s\u00a0\u2007\u2009\u202f]"
_GROUP_MARKS = r"[\s\u00a0\u2007\u2009\u202f'’_]"
_SPACED = rf"^([+-]?\d{{1,3}}(?:{_GROUP_MARKS}\d{{3}})+)(.*)$"
_VALUE = r"^([+-]?[\d.,]*\d[.,]?(?:[eE][+-]?\d+)?)"
_UNIT = rf"{_VALUE}{_SPACES}*([A-Za-zµ][A-Za-zµ/ ]*)$"
_GROUPS = r"^[+-]?\d{1,3}(?:MARK\d{2,3})*MARK\d{3}"
# Hours, minutes and seconds: 0:01:30, 1m30s; not 1:30, which may be hours and minutes.
_CLOCK, _SURE = r"^(?:(\d+) ?(?::|h) ?)?(\d{1,2}) ?(?::|m|min) ?(\d{1,2}(?:[.,]\d+)?) ?s?$", r"[hm]|:.*:|:\d+[.,]"
_UNCLEAR = r"^[+-]?[1-9]\d{0,2}([.,])\d{3}$"
# A number whose decimal mark can only be this one: 0.64, 1,024.5, 1,234,567.
_CLEAR = (
    r"^[+-]?(?:\d*MARK(?:\d{1,2}|\d{4,})|0+MARK\d+|\d{4,}MARK\d{3}|\d*MARK\d+[eE][+-]?\d+"
    r"|\d{1,3}(?:OTHER\d{3})+MARK\d*|\d{1,3}(?:OTHER\d{3}){2,})$"
)


class Clues(NamedTuple):
    """Values that show what point and comma mean: a decimal point, a decimal comma, and one that may be either."""

    point: str | None = None
    comma: str | None = None
    unclear: str | None = None


def blank(series: pl.Series, words: Sequence[str] = NO_NUMBER) -> pl.Series:
    """The series with text that says nothing as null; of floats, NaN."""
    if series.dtype == pl.String:
        stripped = series.str.replace_all("\u00a0", " ").str.strip_chars()
        return stripped.set(stripped.str.to_lowercase().is_in(list(words)), None)
    return series.fill_nan(None) if series.dtype.is_float() else series


def matches(series: pl.Series, pattern: str) -> pl.Series:
    """Which texts fit a pattern; a missing one does not."""
    return series.str.contains(pattern).fill_null(False)


def clues(series: pl.Series) -> Clues:
    """What the values of a text column show of its decimal mark; nothing for other columns."""
    if series.dtype != pl.String or not (marked := series.filter(matches(series, "[.,]"))).len():
        return Clues()
    value = _closed(blank(marked)).str.extract(_VALUE).unique(maintain_order=True)
    marks = ((r"\.", ","), (",", r"\."))
    patterns = [*(_CLEAR.replace("MARK", mark).replace("OTHER", other) for mark, other in marks), _UNCLEAR]
    return Clues(*(next(iter(value.filter(matches(value, pattern))), None) for pattern in patterns))


def parsed(series: pl.Series, kind: str, decimal: str = ".", factor: float = 1.0) -> tuple[pl.Series, list[str]]:
    """The numbers of a text column in our unit, and notes; unchanged if they are plain numbers already.

    `kind` is the dimension of `words.UNITS`, `decimal` the mark that the file uses. A value that is not understood
    stays as text, so that its row is reported as written.
    """
    if series.dtype != pl.String:
        return (series if factor == 1 or not series.dtype.is_numeric() else series.cast(pl.Float64) * factor), []
    given = blank(series)
    odd = given.is_not_null() & given.cast(pl.Float64, strict=False).is_null()
    if factor == 1 and not odd.any() and not (decimal == "," and matches(given, _UNCLEAR).any()):
        return given, []
    if kind == "time" and (clock := matches(given, _CLOCK) & matches(given, _SURE)).any():
        parts = given.str.extract_groups(_CLOCK).struct.unnest()
        hours, minutes, seconds = (part.str.replace(",", ".").cast(pl.Float64, strict=False) for part in parts)
        total = (hours.fill_null(0.0) * 3600 + minutes * 60 + seconds) / factor
        given = given.set(clock, None).fill_null(total.cast(pl.String).str.replace(".", decimal, literal=True))
    closed = _closed(given)
    value, unit = closed.str.extract(_VALUE), closed.str.extract(_UNIT, 2).str.strip_chars()
    value = value.set((value + unit.fill_null("") != closed.str.replace_all(_SPACES, "")) & unit.is_null(), None)
    mark = "," if decimal == "." else "."  # of thousands
    grouped = matches(value, _GROUPS.replace("MARK", f"[{mark}]"))
    value = value.set(~grouped & matches(value, f"[{mark}]"), None)
    value = value.str.replace_all(mark, "", literal=True).str.replace(decimal, ".", literal=True)
    known = UNITS[kind]
    lowered = {name.casefold(): number for name, number in known.items() if name not in ("mJ", "MJ", "mW")}
    scale = unit.replace_strict(known, default=None, return_dtype=pl.Float64)
    scale = scale.fill_null(unit.str.to_lowercase().replace_strict(lowered, default=None, return_dtype=pl.Float64))
    number = value.cast(pl.Float64, strict=False) * scale.set(unit.is_null(), factor)
    notes = [f"units are written in the cells: {', '.join(sorted(found))}"] if (found := set(unit.drop_nulls())) else []
    if not (given.is_not_null() & number.is_null()).any():
        return number, notes
    return number.cast(pl.String).fill_null(given), notes


def as_text(series: pl.Series, odd: bool = False) -> pl.Series:
    """The series as text, lists and bytes as Python writes them; if `odd`, only those."""
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        return pl.Series(series.name, [None if value is None else str(value) for value in series.to_list()], pl.String)
    return series if odd else series.cast(pl.String)


def numbers(series: pl.Series) -> pl.Series:
    """The series as floats; null for anything that is not a finite number. Booleans, dates and lists are not."""
    if series.dtype != pl.String and not series.dtype.is_numeric():
        return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)
    converted = series.cast(pl.Float64, strict=False)
    return converted.set(~converted.is_finite(), None)


def _closed(text: pl.Series) -> pl.Series:
    """The text with numbers closed up: "12 699,8 J" is "12699,8 J"."""
    closed = text.str.extract(_SPACED).str.replace_all(_GROUP_MARKS, "") + text.str.extract(_SPACED, 2)
    return closed.fill_null(text)
