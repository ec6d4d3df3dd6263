"""Fitting the energy laws to measured cells, and choosing the law that predicts.

One machinery for every law: least squares on the RELATIVE error (each row divided by its energy), because energies span
orders of magnitude and an error is judged in percent, with the bounds that physics gives. All laws are linear in their
coefficients, so nothing iterates towards a local optimum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import lsq_linear

from sweetspot import __version__
from sweetspot.errors import SweetspotError
from sweetspot.laws import FORMS, LAWS, Law, per_token, sweet_spot
from sweetspot.table import CELL, GROUP, Table, cells, group_name

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SCHEMA_VERSION = 1
_SEED = 0
_FOLDS = 5
_FEWEST_FOR_FOLDS = 10  # fewer cells than this are held out one by one
_DEPENDENT = 1e-8  # a column this near (relative to its length) to a combination of others is no column of its own
# Two laws whose held-out errors differ by less than this are equally good; then the fewer coefficients win. The second
# number (percentage points) keeps rounding errors on exact tables from deciding.
_AS_GOOD_RELATIVE, _AS_GOOD_PERCENT = 1.05, 0.01
_LENGTHS_OF_A_MINIMUM = 3  # between two output lengths no cell shows a minimum, whatever the law says
NO_FIT = "nothing to fit: TDP times the measured duration"


@dataclass(frozen=True)
class Points:
    """Cells of one group as float arrays of one length: input and output tokens, batch, E_tok in joules."""

    n: Array
    m: Array
    batch: Array
    energy: Array

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "Points":
        """From the cells of one group (see `table.cells`)."""
        batch, n, m = (frame[name].cast(pl.Float64).to_numpy() for name in CELL)
        return cls(n, m, batch, frame["energy_j"].to_numpy() / (batch * m))

    def take(self, mask: Mask) -> "Points":
        """Those cells where `mask` is true."""
        return Points(self.n[mask], self.m[mask], self.batch[mask], self.energy[mask])

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.energy)


@dataclass(frozen=True)
class Skipped:
    """A law that cannot be fitted here, and why."""

    reason: str


@dataclass(frozen=True)
class Solution:
    """Coefficients of a law.

    `values`: one per term, 0 for a dropped term. `kept`: indices of the terms that the cells can tell apart.
    `dependences`: for each dropped term the combination of kept ones that equals it in these cells (weights per term).
    `at_bound`: per term.
    """

    law: Law
    values: Array
    kept: tuple[int, ...]
    dependences: dict[int, Array]
    at_bound: Mask

    def determines(self, features: Array) -> Mask:
        """Which rows of `features` (rows × terms) the fitted cells have a say on.

        A row is undetermined when it would need coefficients apart that the cells only know together.
        """
        determined = np.ones(len(features), dtype=bool)
        for dropped, weights in self.dependences.items():
            parts = features * weights
            size = np.abs(parts).sum(axis=1) + np.abs(features[:, dropped])
            determined &= np.abs(features[:, dropped] - parts.sum(axis=1)) <= 1e-6 * size
        return determined


def design(law: Law, points: Points) -> Array:
    """Features of a law: cells × terms, so that E_tok = design @ coefficients."""
    columns = [term.value(points.n, points.m, points.batch) for term in law.terms]
    return np.stack(columns, axis=1)


def solve(law: Law, points: Points) -> Solution | Skipped:
    """Least squares on the relative error with the law's bounds. Skipped when the cells cannot carry the law."""
    features = design(law, points)
    if law.has_batch_terms and len(np.unique(points.batch)) < 2:
        return Skipped("needs two batches or more; with one, paper-6 is the same law")
    kept, dependences = _independent(law, features)
    if len(points) <= len(kept):
        return Skipped(f"needs more than {len(kept)} cells for its coefficients and their error; has {len(points)}")
    lower = np.array([-np.inf if term.lower is None else term.lower for term in law.terms])
    for dropped, weights in dependences.items():
        # A kept coefficient now stands for the dropped one as well, whose sign may be free or count against it.
        lower[(weights < 0) | ((weights != 0) & np.isinf(lower[dropped]))] = -np.inf
    relative = features[:, kept] / points.energy[:, None]
    scale = np.linalg.norm(relative, axis=0)
    bounds = (lower[list(kept)], np.inf)
    result = lsq_linear(relative / scale, np.ones(len(points)), bounds, method="bvls", tol=1e-12, max_iter=1000)
    values, at_bound = np.zeros(len(law.terms)), np.zeros(len(law.terms), dtype=bool)
    values[list(kept)] = result.x / scale
    at_bound[list(kept)] = (result.active_mask == -1) | (result.x <= bounds[0])
    return Solution(law, values, kept, dependences, at_bound)


def _independent(law: Law, features: Array) -> tuple[tuple[int, ...], dict[int, Array]]:
    """Indices of the terms that these cells tell apart, and what each other term equals."""
    scale = np.linalg.norm(features, axis=0)
    unit = features / scale
    everything = tuple(range(len(law.terms)))
    if np.linalg.matrix_rank(unit, tol=1e3 * _DEPENDENT) == len(everything):
        return everything, {}
    order = sorted(everything, key=lambda i: (list(FORMS).index(law.terms[i].form), law.terms[i].per_batch))
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
    """What one set of coefficients covers: every cell for a law with batch terms, else each batch (and its number)."""
    if law.has_batch_terms:
        yield None, np.ones(len(points), dtype=bool)
        return
    for batch in np.unique(points.batch):
        yield int(batch), points.batch == batch


def folds(points: Points) -> NDArray[np.int64]:
    """Fold of each cell: 5 shuffled folds balanced over batches, or one a cell where there are fewer than 10 cells."""
    shuffled = np.random.default_rng(_SEED).permutation(len(points))
    by_batch = shuffled[np.argsort(points.batch[shuffled], kind="stable")]
    fold = np.empty(len(points), dtype=np.int64)
    fold[by_batch] = np.arange(len(points)) % (_FOLDS if len(points) >= _FEWEST_FOR_FOLDS else len(points))
    return fold


def predict_held_out(law: Law, points: Points, test: Mask) -> Array:
    """E_tok of the cells in `test`, each predicted by the law fitted to the others.

    Shape: one per cell of `points`; NaN outside `test` and where the others cannot determine the cell.
    """
    predicted = np.full(len(points), np.nan)
    for _, unit in units(law, points):
        if not (unit & test).any():
            continue
        solution = solve(law, points.take(unit & ~test))
        if isinstance(solution, Solution):
            features = design(law, points.take(unit & test))
            predicted[unit & test] = np.where(solution.determines(features), features @ solution.values, np.nan)
    return predicted


def fit_table(table: Table) -> dict[str, Any]:
    """Fit every law to every group of a table: the content of predictor.json (docs: its schema).

    Raises SweetspotError when no group has cells enough for any law.
    """
    groups = [fit_group(frame, table.frame) for frame in cells(table.frame).partition_by(GROUP, maintain_order=True)]
    if not any(group["law"] for group in groups):
        reasons = [f"{group_name(group[name] for name in GROUP)}: {group['chosen_because']}" for group in groups]
        raise SweetspotError("\n".join(reasons or ["no valid row: every row is marked invalid"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "sweetspot-predictor",
        "created_by": f"sweetspot {__version__}",
        "groups": groups,
    }


def fit_group(frame: pl.DataFrame, rows: pl.DataFrame) -> dict[str, Any]:
    """Fit every law to the cells of one group, choose one, and find the sweet spots. `rows` is the whole table."""
    identity = frame.row(0, named=True)
    points = Points.of(frame)
    laws = {name: _fits(law, points) for name, law in LAWS.items()}
    chosen, because = choose(laws, points)
    own = rows.filter(pl.all_horizontal(pl.col(name) == identity[name] for name in GROUP) & pl.col("valid"))
    return {
        **{name: identity[name] for name in (*GROUP, "source")},
        "cells": frame.height,
        "rows": own.height,
        "batches": [int(batch) for batch in np.unique(points.batch)],
        "measured_range": {
            "input_tokens": _range(points.n),
            "output_tokens": _range(points.m),
            "batch": _range(points.batch),
            "total_tokens": _range(points.n + points.m),
        },
        "law": chosen,
        "chosen_because": because,
        "laws": laws,
        "sweet_spots": _sweet_spots(LAWS[chosen], points) if chosen else [],
    }


def choose(laws: dict[str, list[dict[str, Any]]], points: Points) -> tuple[str | None, str]:
    """Name of the law to predict with and one sentence why; None where no law could be fitted.

    The lowest held-out MAPE wins among the laws that cover the most cells; among equally good laws the fewest fitted
    coefficients, all batches together.
    """
    covered = {name: _covered(fits, points) for name, fits in laws.items()}
    most = max(int(mask.sum()) for mask in covered.values())
    if not most:
        reasons = {fit["skipped"] for fits in laws.values() for fit in fits if fit["skipped"] != NO_FIT}
        return None, "no law can be fitted: " + "; ".join(sorted(reasons))
    candidates = [name for name, mask in covered.items() if mask.sum() == most]
    size = {name: sum(len(fit.get("terms", ())) for fit in laws[name]) for name in candidates}
    fold = folds(points)
    errors = {}
    for name in candidates:
        predicted = np.full(len(points), np.nan)
        for test in (fold == k for k in np.unique(fold)):
            predicted[test] = predict_held_out(LAWS[name], points, test)[test]
        error = 100 * np.abs(predicted / points.energy - 1)[covered[name]]
        if np.isfinite(error).all():
            errors[name] = float(error.mean())
    if not errors:
        name = min(candidates, key=lambda name: size[name])
        return name, f"fewest coefficients ({size[name]}): too few cells to hold any out and compare"
    best = min(errors, key=lambda name: errors[name])
    good = [name for name in errors if errors[name] <= errors[best] * _AS_GOOD_RELATIVE + _AS_GOOD_PERCENT]
    name = min(good, key=lambda name: (size[name], errors[name]))
    scheme = f"{_FOLDS}-fold" if len(points) >= _FEWEST_FOR_FOLDS else "leave-one-cell-out"
    if name != best:
        return name, (
            f"held-out MAPE {errors[name]:.3g} % ({scheme}), as good as the lowest ({best}, {errors[best]:.3g} %) "
            f"with {size[name]} instead of {size[best]} coefficients"
        )
    others = ", ".join(f"{other} {errors[other]:.3g} %" for other in errors if other != name)
    return name, f"lowest held-out MAPE, {errors[name]:.3g} % ({scheme})" + (f"; {others}" if others else "")


def _fits(law: Law, points: Points) -> list[dict[str, Any]]:
    if not law.terms:
        return [{"law": law.name, "batch": None, "skipped": NO_FIT}]
    return [{"law": law.name, "batch": batch} | _fit(law, points.take(unit)) for batch, unit in units(law, points)]


def _fit(law: Law, points: Points) -> dict[str, Any]:
    solution = solve(law, points)
    if isinstance(solution, Skipped):
        return {"skipped": solution.reason}
    features = design(law, points)
    free = [index for index in solution.kept if not solution.at_bound[index]]
    relative = features[:, free] / points.energy[:, None]
    scale = np.linalg.norm(relative, axis=0)
    result = sm.OLS(np.ones(len(points)), relative / scale).fit()
    covariance = np.zeros((len(law.terms), len(law.terms)))
    covariance[np.ix_(free, free)] = result.cov_params() / np.outer(scale, scale)
    kept = list(solution.kept)
    terms = {
        law.terms[index].name: {
            "value": float(solution.values[index]),
            "standard_error": float(np.sqrt(covariance[index, index])) if index in free else None,
            "at_bound": index not in free,
        }
        for index in kept
    }
    merged = {law.terms[index].name: _named(law, weights) for index, weights in solution.dependences.items()}
    return {
        "terms": terms,
        "covariance": covariance[np.ix_(kept, kept)].tolist(),
        "relative_residual_sd": float(np.sqrt(result.scale)),
        "degrees_of_freedom": int(result.df_resid),
        "t_quantile_95": float(stats.t.ppf(0.975, result.df_resid)),
        "in_sample_mape_percent": float(100 * np.mean(np.abs(features @ solution.values / points.energy - 1))),
        "merged": merged,
        "note": "; ".join(f"{term} cannot be told from {' and '.join(into)}" for term, into in merged.items())
        + (" in these cells: counted together" if merged else ""),
    }


def _named(law: Law, weights: Array) -> dict[str, float]:
    return {term.name: float(weight) for term, weight in zip(law.terms, weights, strict=True) if weight != 0}


def _covered(fits: Sequence[dict[str, Any]], points: Points) -> Mask:
    covered = np.zeros(len(points), dtype=bool)
    for fit in fits:
        if "skipped" not in fit:
            covered |= np.ones(len(points), dtype=bool) if fit["batch"] is None else points.batch == fit["batch"]
    return covered


def _range(values: Array) -> list[int]:
    return [int(values.min()), int(values.max())]


def _sweet_spots(law: Law, points: Points) -> list[dict[str, Any]]:
    """One entry for each batch and each measured input length of it."""
    spots = []
    for _, unit in units(law, points):
        solution = solve(law, points.take(unit))
        if isinstance(solution, Skipped):
            continue
        values = dict(zip((term.name for term in law.terms), solution.values, strict=True))
        lengths = np.unique(points.m[unit])
        for batch in np.unique(points.batch[unit]):
            of_batch = points.take(unit & (points.batch == batch))
            for n in np.unique(of_batch.n):
                spot = sweet_spot(law, values, n, batch)
                if len(lengths) < _LENGTHS_OF_A_MINIMUM or not _knows_spot(solution, n, batch):
                    spot, status = None, "not identified"
                elif spot is None:
                    status = "no interior minimum"
                else:
                    inside = of_batch.m.min() <= spot <= of_batch.m.max()
                    status = "interior" if inside else "outside measured range"
                spots.append(
                    {
                        "batch": int(batch),
                        "input_tokens": int(n),
                        "output_tokens": spot,
                        "energy_per_output_token_j": spot and per_token(law, values, n, spot, batch),
                        "status": status,
                    }
                )
    return spots


def _knows_spot(solution: Solution, n: float, batch: float) -> bool:
    """Whether the cells tell what grows with the reply from what falls with it, at this input length and batch.

    Both parts of the closed form, the coefficient of m and the sum of those over m, have to be determined.
    """
    forms = [{"n^2/m": n * n, "n/m": n, "1/m": 1.0}, {"m": 1.0}]
    parts = [
        [form.get(term.form, 0.0) / (batch if term.per_batch else 1) for term in solution.law.terms] for form in forms
    ]
    return bool(solution.determines(np.array(parts)).all())
