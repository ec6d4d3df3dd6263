"""Logs of requests: the number of requests for each pair of prompt and reply length."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.table.files import load, renamed, whole_numbers

_LENGTHS = ("input_tokens", "output_tokens")


def read(path: Path, rename: Mapping[str, str] | None = None) -> dict[tuple[int, int], int]:
    """Number of requests by (input tokens, output tokens), from a table with one request per row.

    Column `count`, if present, says how many requests a row stands for; other columns are ignored. `rename` maps
    columns of the file to these names. Raises SweetspotError if the file cannot be read, lacks a column, has no
    requests, or has values that are not whole numbers.
    """
    (frame,) = renamed([(path, load(path, comments=False))], rename or {})
    if not frame.height:
        raise SweetspotError(f"{path}: no requests; give rows with {' and '.join(_LENGTHS)}")
    if missing := [name for name in _LENGTHS if name not in frame.columns]:
        remedy = " ".join(f"--map THEIRS={name}" for name in missing)
        raise SweetspotError(
            f"{path}: column{'s' * (len(missing) > 1)} {', '.join(missing)} missing; there are "
            f"{', '.join(name for name in frame.columns if name != '_row')}; if the file has other names for them, add "
            f"{remedy}"
        )
    if "count" not in frame.columns:
        frame = frame.with_columns(count=pl.lit(1))
    frame = frame.with_columns(pl.col("count").fill_null(pl.lit(1, frame.schema["count"])))
    frame = whole_numbers(path, frame, {"input_tokens": 1, "output_tokens": 1, "count": 0})
    counted = frame.group_by(_LENGTHS).agg(pl.col("count").sum()).filter(pl.col("count") > 0)
    if not counted.height:
        raise SweetspotError(f"{path}: no requests; every count is 0")
    return {(n, m): count for n, m, count in counted.iter_rows()}
