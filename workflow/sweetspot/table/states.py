"""Rows that are no whole measurement or reply, by their states; and columns that are parts of a sum."""

import re
from collections.abc import Sequence
from functools import reduce
from operator import add

import polars as pl

from sweetspot.table.numbers import NO_NUMBER, blank, clues, matches, numbers, parsed
from sweetspot.table.words import FACTS, Meaning, folded, meanings


def aside(frame: pl.DataFrame) -> pl.Series:
    """Why each row is no whole run or reply, as its state, phase or label says; null for the others."""
    reasons = pl.repeat(None, frame.height, dtype=pl.String, eager=True)
    for name in (name for name in frame.columns if not frame[name].dtype.is_nested()):
        plain = "error" if ".error." in f".{name}" else folded(name.rpartition(".")[2])
        for fact in FACTS["aside"]:
            if plain in fact["headers"].split():
                text = blank(frame[name].cast(pl.String), NO_NUMBER)
                lowered = text.str.to_lowercase()
                off = matches(lowered, fact["values"]) & ~matches(lowered, fact.get("otherwise", "^$"))
                reasons = reasons.zip_with(~off | reasons.is_not_null(), f"is none to fit: {name} is " + text)
    return reasons


def summed(frame: pl.DataFrame, settled: Sequence[str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """The frame with columns that are parts, as of prefill and decode or of each board, added up; and of what each is.

    Parts stay if their sum is in the table.
    """
    sums: dict[str, str] = {}
    for fact in FACTS["sums"]:
        groups: dict[str, list[str]] = {}
        for name in frame.columns:
            whole = re.sub(rf"(?i)[ _-]*{fact['part']}(?=[ _-]|$)", "", name).strip(" _-")
            if whole not in (name, "") and any(one.kind in fact["kinds"] for one in meanings(whole)):
                groups.setdefault(whole, []).append(name)
        for whole, parts in groups.items():
            there = {one.quantity for name in frame.columns if name not in parts for one in meanings(name)}
            meant: Meaning = meanings(whole)[0]
            if len(parts) < 2 or meant.quantity in there or {*parts} & {*settled}:
                continue
            mark = "," if any(clues(frame[name]).comma for name in parts) else "."
            values = [numbers(parsed(frame[name], meant.kind, mark)[0]) for name in parts]
            frame = frame.drop(parts).with_columns(reduce(add, values).alias(whole))
            sums[whole] = " plus ".join(parts)
            if meant.kind == "power" or "gpu" in fact["part"]:
                frame = frame.with_columns(gpus=pl.lit(len(parts))) if "gpus" not in frame.columns else frame
    return frame, sums
