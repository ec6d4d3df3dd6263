"""The requests that a service gets: their lengths and how many there are of each. Standard library only."""

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError

_REQUIRED = ("input_tokens", "output_tokens")
_SHOWN = 5  # problems listed before the rest are counted
_MOST_PAIRS = 2000
_BUCKETS = (1.05, 1.1, 1.2, 1.3)  # the narrowest that leaves few enough pairs is taken


@dataclass(frozen=True)
class Workload:
    """`lengths` has (input tokens, output tokens, number of requests); `notes` says what was assumed about them."""

    lengths: tuple[tuple[int, int, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return sum(count for _, _, count in self.lengths)

    @property
    def input_tokens(self) -> int:
        """Mean prompt length, rounded."""
        return max(1, round(sum(n * count for n, _, count in self.lengths) / self.requests))

    @property
    def output_tokens(self) -> int:
        """Mean reply length, rounded."""
        return max(1, round(sum(m * count for _, m, count in self.lengths) / self.requests))

    @property
    def is_mix(self) -> bool:
        """Whether the requests have different lengths."""
        return len(self.lengths) > 1


def of_pair(input_tokens: int, output_tokens: int) -> Workload:
    """Requests that are all alike. Raises SweetspotError for a length below 1."""
    for name, value in zip(("--input-tokens", "--output-tokens"), (input_tokens, output_tokens), strict=True):
        if not 1 <= value < 2**31:
            raise SweetspotError(f"{name} {value}: give a whole number of at least 1")
    return Workload(((input_tokens, output_tokens, 1),))


def read(path: Path, rename: Mapping[str, str] | None = None) -> Workload:
    """Read a CSV or JSON Lines file with one request a row: input_tokens, output_tokens and, optionally, count.

    `rename` maps a column of the file to the one it stands for. Other columns are ignored. Raises SweetspotError for a
    file that cannot be read, has no rows or lacks a column, and for values that are not whole numbers of at least 1
    (count: 0), naming the row (the first data row is 1).
    """
    rename = rename or {}
    counted: Counter[tuple[int, int]] = Counter()
    problems: list[str] = []
    seen: set[tuple[str, ...]] = set()
    try:
        for number, row in enumerate(_rows(path), 1):
            if tuple(row) not in seen:
                _check_columns(path, number, row, rename)
                seen.add(tuple(row))
            row = {rename.get(name, name): value for name, value in row.items()} if rename else row
            values = [_whole(row, name) for name in _REQUIRED] + [_whole(row, "count", least=0, default=1)]
            problems += [f"{path}, row {number}: {value}" for value in values if isinstance(value, str)]
            if not any(isinstance(value, str) for value in values):
                n, m, count = map(int, values)
                counted[n, m] += count
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SweetspotError(f"{path}: cannot be read ({reason}); give a CSV or JSON Lines file") from None
    if problems:
        rest = f"\nand {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise SweetspotError("\n".join(problems[:_SHOWN]) + rest + "\nmend or remove these rows")
    if not counted.total():
        raise SweetspotError(f"{path}: no requests; give rows with {' and '.join(_REQUIRED)}")
    lengths = tuple(sorted((n, m, count) for (n, m), count in counted.items() if count))
    return Workload(lengths) if len(lengths) <= _MOST_PAIRS else _bucketed(lengths)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate((line for line in file if line.strip()), 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise SweetspotError(f"{path}, row {number}: not a JSON object; is the file cut short?")
                yield row
    elif path.suffix in (".csv", ".tsv", ".txt"):
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            for row in csv.DictReader(file, delimiter=max(",;\t", key=header.count), skipinitialspace=True):
                yield {(name or "").strip(): value for name, value in row.items()}
    else:
        raise SweetspotError(f"{path}: a file of requests ends in .csv, .tsv or .jsonl")


def _check_columns(path: Path, number: int, row: Mapping[str, Any], rename: Mapping[str, str]) -> None:
    """In CSV every row has the header's columns; a JSON object may lack one that another has."""
    there = ", ".join(name for name in row if name)
    for theirs, ours in rename.items():
        if theirs not in row:
            raise SweetspotError(
                f"{path}, row {number}: --map {theirs}={ours}, but there is no {theirs!r}; there are {there}"
            )
        if theirs != ours and ours in row and ours not in rename:
            raise SweetspotError(f"{path}: --map {theirs}={ours}, but there is a column {ours!r} already; map one")
    missing = [name for name in _REQUIRED if name not in {rename.get(name, name) for name in row}]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        remedy = " ".join(f"--map THEIRS={name}" for name in missing)
        raise SweetspotError(
            f"{path}, row {number}: column{plural} {', '.join(missing)} missing; there are {there}; "
            f"if the file names them otherwise, add {remedy}"
        )


def _whole(row: Mapping[str, Any], name: str, least: int = 1, default: int | None = None) -> int | str:
    """The number, or what is wrong with it."""
    value = row.get(name, default)
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"{name} is missing"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not least <= number < 2**31 or number != int(number):
        return f"{name} is {value}: must be a whole number of at least {least}"
    return int(number)


def _bucketed(lengths: tuple[tuple[int, int, int], ...]) -> Workload:
    """Near lengths as one, at their mean, so that a day's log is answered at once.

    Means keep what is linear in the lengths; of what is quadratic a bucket of relative width w loses w²/12 at most,
    under 1 % at the widest. A prompt or reply close to a limit falls on the side of its bucket's mean.
    """
    merged: Counter[tuple[int, int]] = Counter()
    for width in _BUCKETS:
        buckets: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
        for n, m, count in lengths:
            buckets[int(math.log(n, width)), int(math.log(m, width))].append((n, m, count))
        if len(buckets) <= _MOST_PAIRS:
            break
    for inside in buckets.values():
        total = sum(count for _, _, count in inside)
        means = [round(sum(row[axis] * row[2] for row in inside) / total) for axis in (0, 1)]
        merged[means[0], means[1]] += total
    note = (
        f"{len(lengths):,} length pairs taken as {len(merged):,}: lengths within {width - 1:.0%} of each other as one"
    )
    return Workload(tuple(sorted((n, m, count) for (n, m), count in merged.items())), (note,))
