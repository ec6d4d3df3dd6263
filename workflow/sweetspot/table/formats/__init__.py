"""The result formats of the field, one TOML file each: keys that recognise it, its columns, a sample, and right values.

A column is a name in the file (nested names joined by dots, `*` for any part), with a unit in brackets if the name
states none: `"energy_consumed [kWh]"`. A list names alternatives, of which the first that is there counts; `+` adds;
`sum(…)` adds all columns that `*` fits, `first(…)` takes the first.
"""

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib.resources import files
from operator import add
from typing import Any

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table.numbers import blank, numbers, parsed
from sweetspot.table.schema import COLUMNS
from sweetspot.table.words import NUMBERS, UNITS, Meaning, meanings

_ALIKE = 0.01  # relative difference up to which two columns are one


@dataclass(frozen=True)
class Format:
    """A format as its file describes it. `keys`: sets of names, of which one must be there whole.

    `once`: the column that names a run, of whose rows only the last would hold its totals.
    """

    name: str
    source: str
    says: str
    keys: Sequence[Sequence[str]]
    columns: Mapping[str, str | Sequence[str]]
    constants: Mapping[str, str]
    choose: Mapping[str, Sequence[str]]
    sample: Mapping[str, Any]
    once: str

    def read(self, place: str, frame: pl.DataFrame, settled: Sequence[str]) -> tuple[pl.DataFrame, list[str]]:
        """Our columns and quantities, without those that the format does not name, except ours; and their names.

        `settled`: those that `--map` gave. Raises SweetspotError if columns differ of which only a person can choose.
        """
        if self.once in frame.columns and (again := frame.filter(pl.col(self.once).is_duplicated())).height:
            raise SweetspotError(
                f"{place} is of {self.name}: rows {', '.join(map(str, again['_row'][:5]))} have one {self.once}: "
                "running totals of one run; keep its last row, or write the differences between rows under other names"
            )
        found: dict[str, pl.Series] = {}
        given = {one.quantity for name in settled for one in meanings(name)}
        sources = {name: [told] if isinstance(told, str) else told for name, told in self.columns.items()}
        for quantity in [name for name in self.choose if name not in given]:
            several = {name: _column(frame, quantity, name) for name in self.choose[quantity]}
            there = {name: series for name, series in several.items() if series is not None and (series > 0).any()}
            one, *others = there.values()
            if any(((other - one).abs() > _ALIKE * one).any() for other in others):
                ways = [name.replace("]", "").split(" [") for name in there]
                maps = [f"--map {name}={Meaning(quantity, 0.0, unit).header}" for name, unit in ways]
                raise SweetspotError(
                    f"{place} is of {self.name}: {self.says}; {' and '.join(name for name, _ in ways)} differ, and "
                    f"only you can say which counts: {' or '.join(maps)}"
                )
            sources[quantity] = [*there]
        for quantity in [name for name in sources if name not in given]:
            series = (_column(frame, quantity, name) for name in sources[quantity])
            first = next((each for each in series if each is not None and each.count()), None)
            if first is not None:
                found[quantity] = first
        ours = {*COLUMNS, *NUMBERS, *settled}
        kept = frame.select(name for name in frame.columns if name.startswith("_") or name in ours)
        for name in self.constants.keys() - found.keys() - {*kept.columns}:
            found[name] = pl.repeat(self.constants[name], frame.height, eager=True)
        return kept.with_columns(series.alias(name) for name, series in found.items()), [*found]


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format, the most particular first."""
    found = []
    for path in files(__name__).iterdir():
        if path.name.endswith(".toml"):
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            found.append(Format(**{"constants": {}, "choose": {}, "sample": {}, "once": ""} | content))
    return tuple(sorted(found, key=lambda form: (-max(map(len, form.keys)), form.name)))


def recognised(names: Sequence[str]) -> Format | None:
    """The format of a table with these columns; None if it is of none."""
    fits = (
        form for form in all_formats() if any(all(fnmatch.filter(names, key) for key in keys) for keys in form.keys)
    )
    return next(fits, None)


def _column(frame: pl.DataFrame, quantity: str, source: str) -> pl.Series | None:
    expression, unit = re.fullmatch(r"(.*?)(?: \[([^]]+)\])?", source).groups()  # type: ignore[union-attr]
    kind = NUMBERS.get(quantity, "text")
    factor = UNITS[kind][unit] if unit else 1.0
    names = expression.split(" + ")
    if many := re.fullmatch(r"(sum|first|count)\((.*)\)", expression):
        names = fnmatch.filter(frame.columns, many[2])[: 1 if many[1] == "first" else None]
        if names and many[1] == "count":
            return pl.repeat(float(len(names)), frame.height, eager=True)
    if not names or not all(name in frame.columns for name in names):
        return None
    if kind == "text":
        return blank(frame[names[0]].cast(pl.String))
    values = [parsed(blank(frame[name]), kind, ".", factor)[0] for name in names]
    return values[0] if len(values) == 1 else reduce(add, map(numbers, values))
