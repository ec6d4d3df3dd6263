"""Compares random weights with others: the same cells of the same model, measured with both.

The power of a matrix product depends on its values, so rows on random weights may be off. A model that the table of
models lists twice, with different weights, is its own control.
"""

from collections.abc import Mapping
from itertools import combinations
from math import exp, sqrt
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from sweetspot.fit.solve import t_quantile
from sweetspot.table.schema import CELL
from sweetspot.vocabulary import CONFIDENCE, SELECTORS

_ALIKE = ["architecture", *SELECTORS]
_ORDER = ["dummy", "gaussian", "checkpoint"]


def weight_ratios(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Energy on one kind of weights over energy on another, for each pair with cells in common.

    `frame` is the table of measurements. `ratio` is the geometric mean over the number of `cells` measured with both;
    `low` and `high` are its 95 % interval: Student's t over the log ratios of the cells, or Welch's t over the
    repetitions if there is only one cell; None if there are too few. A board's gain cancels if both ran on that board.
    Empty without columns `architecture` and `weights`, or without a pair.
    """
    if not {"architecture", "weights"} <= set(frame.columns):
        return []
    found = []
    valid = frame.filter(pl.col("valid") & pl.col("architecture").is_not_null())
    for _, part in valid.group_by(_ALIKE, maintain_order=True):
        kinds = part.select("model", "weights").unique(maintain_order=True).rows()
        kinds.sort(key=lambda kind: _ORDER.index(kind[1]) if kind[1] in _ORDER else len(_ORDER))
        for one, other in combinations(kinds, 2):
            if one[1] != other[1] and (ratio := _ratio(_of(part, *one), _of(part, *other))):
                names = {"model": one[0], "weights": one[1], "reference_model": other[0], "reference_weights": other[1]}
                found.append(names | ratio)
    return found


def _of(part: pl.DataFrame, model: str, weights: str) -> dict[tuple[int, ...], list[float]]:
    """Log energies of the repetitions of each cell."""
    own = part.filter(pl.col("model") == model, pl.col("weights") == weights)
    cells = own.group_by(CELL).agg(pl.col("energy_j").log())
    return {tuple(cell): energies for *cell, energies in cells.rows()}


def _ratio(one: Mapping[Any, list[float]], other: Mapping[Any, list[float]]) -> dict[str, float | None] | None:
    common = sorted(one.keys() & other.keys())
    if not common:
        return None
    logs = [float(np.mean(one[cell]) - np.mean(other[cell])) for cell in common]
    center, half = float(np.mean(logs)), None
    if len(logs) > 1:
        half = t_quantile(len(logs) - 1) * float(np.std(logs, ddof=1)) / sqrt(len(logs))
    elif len(one[common[0]]) > 1 and len(other[common[0]]) > 1:
        interval = stats.ttest_ind(one[common[0]], other[common[0]], equal_var=False).confidence_interval(CONFIDENCE)
        half = float(interval.high - interval.low) / 2
    low, high = (None, None) if half is None else (exp(center - half), exp(center + half))
    return {"cells": len(common), "ratio": exp(center), "low": low, "high": high}
