"""Compares random weights with others: the same cells of the same model, measured with both.

The power of a matrix product depends on its values, so rows on random weights may be off. A model that the table of
models lists twice, with different weights, is its own control.
"""

from itertools import combinations
from typing import Any

import polars as pl

from sweetspot.fit import compare
from sweetspot.table.schema import CELL
from sweetspot.vocabulary import SELECTORS

_ALIKE = ["architecture", *SELECTORS]
_ORDER = ["dummy", "gaussian", "checkpoint"]


def weight_ratios(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Energy on one kind of weights over energy on another, for each pair with cells in common.

    `frame` is the table of measurements. `ratio` is the geometric mean over the number of `cells` measured with both;
    `low` and `high` are its 95 % interval, as `compare` gives it: from the scatter of the cells, or of the repetitions
    if there is only one cell; None if there are too few. A board's gain cancels if both ran on that board. Empty
    without columns `architecture` and `weights`, or without a pair.
    """
    if not {"architecture", "weights"} <= set(frame.columns):
        return []
    found = []
    valid = frame.filter(pl.col("valid") & pl.col("architecture").is_not_null())
    for _, part in valid.group_by(_ALIKE, maintain_order=True):
        kinds = part.select("model", "weights").unique(maintain_order=True).rows()
        kinds.sort(key=lambda kind: _ORDER.index(kind[1]) if kind[1] in _ORDER else len(_ORDER))
        for one, other in combinations(kinds, 2):
            cells = compare.ratios(_cells(part, *other), _cells(part, *one))
            if cells and one[1] != other[1]:
                names = {"model": one[0], "weights": one[1], "reference_model": other[0], "reference_weights": other[1]}
                ratio = compare.region(cells)
                found.append(names | {name: getattr(ratio, name) for name in ("cells", "ratio", "low", "high")})
    return found


def _cells(part: pl.DataFrame, model: str, weights: str) -> dict[compare.Cell, compare.Energy]:
    own = part.filter(pl.col("model") == model, pl.col("weights") == weights).group_by(CELL)
    energy = pl.col("energy_j")
    return compare.means(own.agg(energy.mean(), energy_sd_j=energy.std(), repetitions=pl.len()))
