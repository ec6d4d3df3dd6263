"""Logs of requests: how many there are of each pair of prompt and reply length, and when they arrived.

Any log whose columns `words` knows is read: OpenAI's `usage` objects, those of LiteLLM and vLLM (nested or flat), the
Azure LLM inference traces (github.com/Azure/AzurePublicDataset: ContextTokens, GeneratedTokens), BurstGPT
(github.com/HPMLL/BurstGPT: "Request tokens", "Response tokens", 0 for a failure) and Mooncake's traces
(github.com/kvcache-ai/Mooncake: input_length, output_length, timestamp in milliseconds beside hash_ids).
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table.files import read_file, renamed, shortened, whole_numbers
from sweetspot.table.numbers import blank, clues, numbers, parsed
from sweetspot.table.readings import ambiguous, hints
from sweetspot.table.states import aside
from sweetspot.table.words import FACTS, folded, meanings

_LISTS = ("inputlens", "outputlens")
_LENGTHS = ("input_tokens", "output_tokens")
_TIMES, _CACHED = FACTS["log"]["times"].split(), FACTS["log"]["cached"].split()
_MOST_ABORTED = 0.5  # share of requests without a reply up to which that is no mistake
# Numbers of this size are seconds, milliseconds, microseconds or nanoseconds since 1970, or seconds from a start.
_SINCE_1970 = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3), (0.0, 1.0))
_DAYS = (36_526, 73_050)  # since 1900, from 2000 to 2099, as a spreadsheet counts them


@dataclass(frozen=True)
class Log:
    """`counts`: number of requests by (input tokens, output tokens). `times_s`: of each request, in s after the first,
    in the file's order; None if the log has no times. `notes`: what was left out or assumed.
    """

    counts: dict[tuple[int, int], int]
    times_s: pl.Series | None
    notes: tuple[str, ...] = ()


def read(path: Path, rename: Mapping[str, str] | None = None) -> Log:
    """The requests of a table with one request per row.

    Column `count`, if present, says how many requests a row stands for; other columns are ignored. `rename` maps
    columns of the file to these names. Aborted requests, which have no reply, are left out and counted. Raises
    SweetspotError if the file cannot be read, lacks a column, has no requests, or has other values than whole numbers.
    """
    loaded = read_file(path, comments=False)
    (frame,) = renamed([(path, loaded.frame)], rename or {})
    notes = list(loaded.notes)
    if not frame.height:
        raise SweetspotError(f"{path}: no requests; give rows with {' and '.join(_LENGTHS)}")
    frame = _spread(frame)
    columns = _columns(path, frame)
    if theirs := [f"{column} as {ours}" for ours, column in columns.items() if folded(column) != folded(ours)]:
        notes.append(f"read {', '.join(theirs)}")
    # A count has no decimals: in 1.024 the point separates thousands.
    seen = [] if loaded.typed else [clues(frame[name]) for name in columns.values()]
    mark = "," if any(one.comma or ("." in (one.unclear or "") and not one.point) for one in seen) else "."
    given = {ours: blank(parsed(frame[column], "count", mark)[0]) for ours, column in columns.items()}
    prompt, reply = given["input_tokens"], given["output_tokens"]
    for name in (name for name in frame.columns if folded(name.rpartition(".")[2]) in _CACHED):
        if (cached := numbers(frame[name]).fill_null(0.0)).sum():
            prompt = numbers(prompt) + cached
            notes.append(f"{name} is added to the prompts: tokens from a cache cost less than is predicted")
    counts = given.get("count", pl.repeat(1, frame.height, eager=True))
    kept = frame.select("_row", _time=_times(frame, notes), input_tokens=prompt, output_tokens=reply, count=counts)
    kept = kept.with_columns(pl.col("count").fill_null(pl.lit(1, counts.dtype)))
    lost = aside(frame).is_not_null() | (numbers(reply) == 0).fill_null(False)
    silent = reply.is_null() & (prompt.is_null() | numbers(prompt).is_not_null()) & ~lost
    if (lost | silent).sum() <= _MOST_ABORTED * frame.height:
        lost = lost | silent
    elif lost.all():
        raise SweetspotError(f"{path}: no requests; all {kept.height} were aborted or have a reply of 0 tokens")
    if lost.any():
        notes.append(
            f"{lost.sum()} of {kept.height} requests were aborted or have no reply (first in row "
            f"{kept.filter(lost)['_row'][0]}): left out"
        )
    kept = whole_numbers(path, kept.filter(~lost), {"input_tokens": 1, "output_tokens": 1, "count": 0})
    counted = kept.group_by(_LENGTHS).agg(pl.col("count").sum()).filter(pl.col("count") > 0)
    if not counted.height:
        raise SweetspotError(f"{path}: no requests; every count is 0")
    times = None if kept["_time"].null_count() else kept["_time"] - kept["_time"].min()
    return Log({(n, m): count for n, m, count in counted.iter_rows()}, times, tuple(notes))


def _columns(path: Path, frame: pl.DataFrame) -> dict[str, str]:
    """The columns of lengths and counts, ours to theirs."""
    there = [name for name in frame.columns if not name.startswith("_")]
    found: dict[str, str] = {}
    for ours in (*_LENGTHS, "count"):
        names = [name for name in there if any(one.quantity == ours for one in meanings(name))]
        names = [ours] if ours in names else [name for name in names if frame[name].count()] or names
        names = [name for name in names if not folded(name).startswith("max")]  # a limit
        if differing := [name for name in names[1:] if not frame[name].equals(frame[names[0]])]:
            raise ambiguous(str(path), [names[0], differing[0]], ours)
        if names:
            found[ours] = names[0]
    for name in [name for name in there if any(one.quantity == "requests" for one in meanings(name))]:
        if "count" not in found and (numbers(frame[name]) > 1).any():
            raise SweetspotError(
                f"{path}: {name} counts requests; if a row stands for so many requests of the same lengths, add --map "
                f"{shlex.quote(f'{name}=count')}; sums over requests are no log of requests"
            )
    if missing := [name for name in _LENGTHS if name not in found]:
        spare = [name for name in there if name not in found.values() and (numbers(frame[name]) % 1 == 0).any()]
        spare = [name for name in spare if not re.match("max|total|sum|mean|avg|average", folded(name))]
        maps = [shlex.quote(f"{next(iter(hints(name, spare)), 'THEIRS')}={name}") for name in missing]
        raise SweetspotError(
            f"{path}: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing; there are "
            f"{shortened(there, ', ', 30)}; if the file has other names for them, add --map {' --map '.join(maps)}"
        )
    return found


def _spread(frame: pl.DataFrame) -> pl.DataFrame:
    """One row for each request of a result that lists their lengths."""
    lists = [name for name, kind in frame.schema.items() if kind == pl.List and folded(name) in _LISTS]
    if len(lists) < 2:
        return frame
    errors = [name for name, kind in frame.schema.items() if name == "errors" and kind == pl.List]
    return frame.select("_row", *lists, *errors).explode(*lists, *errors).rename(dict.fromkeys(errors, "error"))


def _times(frame: pl.DataFrame, notes: list[str]) -> pl.Series:
    """When each request arrived, in s; null throughout if no column says, or one that is not understood."""
    for name in (name for name in frame.columns if folded(name.rpartition(".")[2]).removesuffix("ms") in _TIMES):
        series = frame[name]
        if series.dtype.is_temporal() and series.dtype != pl.Duration:
            return series.cast(pl.Datetime("us")).dt.timestamp("us").cast(pl.Float64) * 1e-6
        values = numbers(series)
        if not values.null_count():
            size = float(values.abs().max() or 0.0)  # type: ignore[arg-type]
            relative_ms = "hash_ids" in frame.columns or folded(name).endswith("ms")
            if values.is_between(*_DAYS).all():
                return values * 86_400.0
            return values * (1e-3 if relative_ms else next(factor for least, factor in _SINCE_1970 if size >= least))
        if series.dtype == pl.String:
            plain = series.str.strip_chars().str.replace(r" ?(Z|UTC|GMT|[+-]\d\d:?\d\d)$", "")
            plain = plain.str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ").str.replace(r"^(\d\d?:\d\d:)", "1970-01-01 $1")
            offset = series.str.extract_groups(r"([+-]\d\d):?(\d\d)$").struct.unnest().cast(pl.Float64).fill_null(0.0)
            hours, minutes = offset.get_columns()
            zone = hours + minutes / 60 * hours.sign()
            for form in FACTS["log"]["written"]:
                read = plain.str.to_datetime(form, strict=False, time_unit="ns")
                if not read.null_count():
                    return read.dt.timestamp("ns").cast(pl.Float64) * 1e-9 - zone * 3600.0
        notes.append(f"times in column {name} are not understood, for example {series.drop_nulls().head(1).to_list()}")
    return pl.repeat(None, frame.height, dtype=pl.Float64, eager=True)
