"""Fits one law to the cells of one group.

Every law is fitted the same way: least squares on the RELATIVE error (each row divided by its energy), because energies
span orders of magnitude and errors are judged in percent, within the bounds that physics sets. All laws are linear in
their coefficients, so there is no local optimum to get stuck in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear
from scipy.stats import t as student

from sweetspot.predict.laws import FORMS, Law
from sweetspot.table.schema import CELL
from sweetspot.vocabulary import CONFIDENCE

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_DEPENDENT = 1e-8  # a column this near (relative to its norm) to a combination of others counts as dependent


@dataclass(frozen=True)
class Points:
    """Cells of one group as float arrays of equal length: input and output tokens, batch, waves, and a target.

    The target is what the laws predict, per output token of one request: the energy in J, or the time in s (duration of
    the batch divided by batch × output tokens). `chosen`: the share of its experts that a token activates, k/E; NaN
    if the model is not a mixture of experts.
    """

    n: Array
    m: Array
    batch: Array
    waves: Array
    chosen: Array
    target: Array

    @classmethod
    def of(cls, frame: pl.DataFrame, column: str = "energy_j") -> "Points":
        """From the cells of one group (see `cell_means`)."""
        batch, n, m = (frame[name].cast(pl.Float64).to_numpy() for name in CELL)
        waves = frame["waves"].to_numpy()
        experts, per_token = (frame[name].cast(pl.Float64).to_numpy() for name in ("experts", "experts_per_token"))
        return cls(n, m, batch, waves, per_token / experts, frame[column].to_numpy() / (batch * m))

    def take(self, mask: Mask) -> "Points":
        """The cells where `mask` is true."""
        return Points(*(getattr(self, field.name)[mask] for field in fields(self)))

    @property
    def in_wave(self) -> Array:
        """Requests that run together: B in the laws."""
        return self.batch / self.waves

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.target)


@dataclass(frozen=True)
class Skipped:
    """A law that cannot be fitted here, and why."""

    reason: str


@dataclass(frozen=True)
class Solution:
    """Coefficients of a law and how well they are known.

    `values`: one per term, 0 for a dropped term. `kept`: indices of the terms that the cells can separate.
    `dependences`: for each dropped term, the combination of kept ones that equals it in these cells (weights per term).
    `at_bound`: per term. `covariance`: terms × terms, zero for terms dropped or at their bound. `relative_sd`: scatter
    of the cells about the law as a share of their energy, with `freedom` degrees of freedom.
    """

    law: Law
    values: Array
    kept: tuple[int, ...]
    dependences: dict[int, Array]
    at_bound: Mask
    covariance: Array
    relative_sd: float
    freedom: int

    @property
    def quantile(self) -> float:
        """Half-width of a two-sided 95 % interval, in standard deviations (Student's t)."""
        return t_quantile(self.freedom)

    def determines(self, features: Array) -> Mask:
        """Which rows of `features` (rows × terms) the fitted cells determine.

        A row is undetermined if it needs coefficients separately that the cells determine only in combination.
        """
        determined = np.ones(len(features), dtype=bool)
        for dropped, weights in self.dependences.items():
            parts = features * weights
            size = np.abs(parts).sum(axis=1) + np.abs(features[:, dropped])
            determined &= np.abs(features[:, dropped] - parts.sum(axis=1)) <= 1e-6 * size
        return determined

    def predict(self, features: Array) -> Array:
        """The target of each row of `features`; NaN where it is not determined, or not above 0."""
        target = features @ self.values
        return np.where(self.determines(features) & (target > 0), target, np.nan)

    def relative_variance(self, features: Array) -> Array:
        """Variance of a new cell about its prediction, relative to the prediction squared: scatter + coefficients."""
        predicted = features @ self.values
        coefficients = np.einsum("ij,jk,ik->i", features, self.covariance, features)
        return np.asarray(self.relative_sd**2 + np.maximum(coefficients, 0) / predicted**2)


@cache
def t_quantile(freedom: float) -> float:
    """Half the width of an interval at the confidence level, in standard errors (Student's t)."""
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


def design(law: Law, points: Points) -> Array:
    """Features of a law: cells × terms, so that target = design @ coefficients."""
    n = law.prompt(points.n, points.in_wave)
    columns = [term.value(n, points.m, points.in_wave, points.chosen) for term in law.terms]
    return np.stack(columns, axis=1)


def solve(law: Law, points: Points, features: Array | None = None) -> Solution | Skipped:
    """Least squares on the relative error within the law's bounds. Skipped if the cells cannot support the law.

    `features`: `design(law, points)`, if already computed.
    """
    if law.needs_experts and not np.isfinite(points.chosen).all():
        return Skipped("a law for mixtures of experts: needs columns experts and experts_per_token")
    features = design(law, points) if features is None else features
    if law.has_batch_terms and not law.one_batch and len(np.unique(points.in_wave)) < 2:
        return Skipped("needs at least two batches; with one, its single-batch form is the same law")
    kept, dependences = _independent(law, features)
    freedom = len(points) - len(kept)
    if freedom < 1:
        return Skipped(f"needs more than {len(kept)} cells for its coefficients and their error; has {len(points)}")
    lower = np.array([-np.inf if term.lower is None else term.lower for term in law.terms])
    for dropped, weights in dependences.items():
        # A kept coefficient also absorbs the dropped one, which may have a free sign or a negative weight; then its
        # bound is lifted. A free sign does not lift it in a mixture's law: v and y, both bytes that a step reads, are
        # nearly the same function of the batch, and without bounds they would offset each other.
        free = np.isinf(lower[dropped]) and not law.needs_experts
        lower[(weights < 0) | ((weights != 0) & free)] = -np.inf
    lower = lower[list(kept)]
    relative = features[:, kept] / points.target[:, None]
    scale = np.linalg.norm(relative, axis=0)
    relative /= scale
    rotated, triangle = np.linalg.qr(relative)
    right = rotated.sum(axis=0)
    found = solve_triangular(triangle, right, check_finite=False)
    bounded = np.zeros(len(kept), dtype=bool)
    if (found < lower).any():
        result = lsq_linear(triangle, right, (lower, np.inf), method="bvls", tol=1e-12, max_iter=1000)
        found, bounded = result.x, (result.active_mask == -1) | (result.x <= lower)
    free = np.flatnonzero(~bounded)
    freedom = len(points) - len(free)
    residual = relative @ found - 1
    relative_sd = float(np.sqrt(residual @ residual / freedom))
    inverse = np.linalg.pinv(triangle[:, free])
    indices = np.array(kept)[free]
    covariance = np.zeros((len(law.terms), len(law.terms)))
    covariance[np.ix_(indices, indices)] = relative_sd**2 * inverse @ inverse.T / np.outer(scale[free], scale[free])
    values, at_bound = np.zeros(len(law.terms)), np.zeros(len(law.terms), dtype=bool)
    values[list(kept)] = found / scale
    at_bound[list(kept)] = bounded
    return Solution(law, values, kept, dependences, at_bound, covariance, relative_sd, freedom)


def _independent(law: Law, features: Array) -> tuple[tuple[int, ...], dict[int, Array]]:
    """Indices of the terms that these cells can separate, and what each other term equals."""
    scale = np.linalg.norm(features, axis=0)
    unit = features / scale
    everything = tuple(range(len(law.terms)))
    if np.linalg.matrix_rank(unit, tol=1e3 * _DEPENDENT) == len(everything):
        return everything, {}
    forms = list(FORMS)
    order = sorted(everything, key=lambda i: (forms.index(law.terms[i].form), law.terms[i].per_batch, i))
    kept: list[int] = []
    dependences: dict[int, Array] = {}
    for index in order:
        weights = np.linalg.lstsq(unit[:, kept], unit[:, index])[0]
        if np.linalg.norm(unit[:, index] - unit[:, kept] @ weights) > _DEPENDENT:
            kept.append(index)
            continue
        weights[np.abs(weights) < _DEPENDENT] = 0
        dependences[index] = np.zeros(len(everything))
        dependences[index][kept] = weights * scale[index] / scale[kept]
    return tuple(sorted(kept)), dependences


def units(law: Law, points: Points) -> Iterator[tuple[int | None, Mask]]:
    """Which cells share coefficients: all for a law with batch terms, else those of each batch (and its number)."""
    if law.has_batch_terms:
        yield None, np.ones(len(points), dtype=bool)
        return
    for batch in np.unique(points.batch):
        yield int(batch), points.batch == batch


def named(law: Law, weights: Array) -> dict[str, float]:
    """The non-zero weights, by the names of their terms."""
    return {term.name: float(weight) for term, weight in zip(law.terms, weights, strict=True) if weight != 0}


def as_json(solution: Solution, points: Points, features: Array) -> dict[str, Any]:
    """A solution as an entry of predictor.json (docs: its schema)."""
    law, kept = solution.law, list(solution.kept)
    errors = np.sqrt(np.diag(solution.covariance))
    terms = {
        law.terms[index].name: {
            "value": float(solution.values[index]),
            "standard_error": None if solution.at_bound[index] else float(errors[index]),
            "at_bound": bool(solution.at_bound[index]),
        }
        for index in kept
    }
    merged = {law.terms[index].name: named(law, weights) for index, weights in solution.dependences.items()}
    return {
        "terms": terms,
        "covariance": solution.covariance[np.ix_(kept, kept)].tolist(),
        "relative_residual_sd": solution.relative_sd,
        "degrees_of_freedom": solution.freedom,
        "t_quantile_95": solution.quantile,
        "in_sample_mape_percent": float(100 * np.mean(np.abs(features @ solution.values / points.target - 1))),
        "merged": merged,
        "note": "; ".join(f"{term} cannot be separated from {' and '.join(into)}" for term, into in merged.items())
        + (" in these cells: counted together" if merged else ""),
    }
