"""Fits one law to the cells of one group.

Every law is fitted the same way: least squares on the RELATIVE error (each row divided by its energy), because energies
span orders of magnitude and errors are judged in percent, within the bounds that physics sets. All laws are linear in
their coefficients, so there is no local optimum to get stuck in.

How well cells determine a coefficient is a matter of degree. Each coefficient has a normal prior, in units of the price
of a decode step (`laws.PRIORS`), whose scale the cells set: cells that determine a coefficient override it, and where
they are silent it keeps the answer, and its interval, within what GPUs do. With normal errors this is the posterior
mean of a linear model; the covariance is that of the coefficients without their bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear
from scipy.stats import t as student

from sweetspot.predict.intervals import NORMAL_95
from sweetspot.predict.laws import Law
from sweetspot.table.schema import CELL
from sweetspot.vocabulary import CONFIDENCE

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST = 2  # cells: one sets the scale, one more says something about the error
# Scatter expected before any cell: as much evidence as this many degrees of freedom, of this relative size.
_PRIOR_FREEDOM, _PRIOR_SD = 1.0, 0.01
_SILENT = 0.7  # share of the prior's standard deviation that is left
_START_SD, _ROUNDS = 0.05, 5  # of weighing the prior by the scatter that the last round left; it settles in three
_POWERS = np.linspace(0.0, 1.0, 11)  # tried for how scatter falls with the size of a run
_FEWEST_FOR_POWER, _EVIDENCE = 12, 8.0  # cells, and twice the gain in log-likelihood, before it is believed


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

    @property
    def tokens(self) -> Array:
        """Output tokens of a batch run; the target times this is its energy or duration."""
        return self.batch * self.m

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.target)


@dataclass(frozen=True)
class Skipped:
    """A law that cannot be fitted here, and why."""

    reason: str


@dataclass(frozen=True)
class Solution:
    """Coefficients of a law and how well they are known; arrays have one entry per term, `covariance` terms × terms.

    `from_prior`: coefficients about which the cells say little: they leave most of the prior's standard deviation.
    `at_bound`: held at the bound of physics. `covariance` is such that `quantile` standard deviations are a 95 %
    interval.
    `relative_sd`: scatter of the cells about the law as a share of their energy, with `freedom` degrees of freedom, for
    a run of `size` (J or s of a batch); for others it is multiplied by (size / theirs)^`power`. `rms`: what the cells
    alone leave, without the scatter expected before them.
    """

    law: Law
    values: Array
    from_prior: Mask
    at_bound: Mask
    covariance: Array
    relative_sd: float
    freedom: float
    size: float
    power: float
    rms: float

    @property
    def quantile(self) -> float:
        """Half-width of a two-sided 95 % interval, in standard deviations (Student's t)."""
        return t_quantile(self.freedom)

    def predict(self, features: Array) -> Array:
        """The target of each row of `features`; NaN where it is not above 0."""
        target = features @ self.values
        return np.where(target > 0, target, np.nan)

    def relative_variance(self, features: Array, tokens: Array) -> Array:
        """Variance of a new cell about its prediction, relative to the prediction squared: scatter + coefficients.

        `tokens`: output tokens of each batch run (see `Points.tokens`).
        """
        predicted = features @ self.values
        coefficients = np.einsum("ij,jk,ik->i", features, self.covariance, features)
        scatter = self.relative_sd * (self.size / np.maximum(predicted * tokens, 1e-300)) ** self.power
        return np.asarray(scatter**2 + np.maximum(coefficients, 0) / predicted**2)


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
    """The law's coefficients within its bounds. Skipped if the cells cannot support the law.

    `features`: `design(law, points)`, if already computed.
    """
    if law.needs_experts and not np.isfinite(points.chosen).all():
        return Skipped("a law for mixtures of experts: needs columns experts and experts_per_token")
    if len(points) < FEWEST:
        return Skipped(f"needs at least {FEWEST} cells; has {len(points)}")
    features = design(law, points) if features is None else features
    shares = features / points.target[:, None]
    prior = _prior(law, points, shares)
    scale = np.linalg.norm(shares, axis=0)
    scale[scale == 0] = 1.0  # a term without a part in any cell: only the prior speaks of it
    if prior is None:
        if len(points) <= len(law.terms):
            return Skipped(f"needs more than {len(law.terms)} cells; has {len(points)}")
        if np.linalg.matrix_rank(shares / scale, tol=1e-5) < len(law.terms):
            return Skipped("these cells do not determine its coefficients")
        mean, sd = np.zeros(len(law.terms)), np.full(len(law.terms), np.inf)
    else:
        mean, sd = prior
    total = points.target * points.tokens
    size = float(np.exp(np.log(total).mean()))
    found = _fit(law, shares / scale, np.ones(len(points)), mean * scale, sd * scale)
    residuals = shares / scale @ found.values - 1
    if power := power_of_size(residuals**2, np.log(total / size)):
        weights = (total / size) ** power
        weights /= np.sqrt((weights**2).mean())
        found = _fit(law, shares / scale, weights, mean * scale, sd * scale)
    return replace(
        found,
        values=found.values / scale,
        covariance=found.covariance / np.outer(scale, scale),
        relative_sd=found.relative_sd * float(np.sqrt(((total / size) ** (2 * power)).mean())),
        size=size,
        power=power,
    )


def _prior(law: Law, points: Points, shares: Array) -> tuple[Array, Array] | None:
    """Mean and standard deviation of each coefficient, in its own unit; None if the law has no prior.

    The scale is the price of a decode step with which the expected coefficients describe the cells best.
    """
    batch = float(points.in_wave.mean())
    expected = [term.expected(batch) for term in law.terms]
    if None in expected:
        return None
    mean, sd = np.array(expected, dtype=float).T
    whole = shares @ mean
    step = float(whole.sum() / (whole @ whole))
    return step * mean, step * sd


def _fit(law: Law, shares: Array, weights: Array, mean: Array, sd: Array) -> Solution:
    """Shares @ values = 1 as well as scatter and prior allow; all in units in which the columns have length 1."""
    lower = np.array([-np.inf if term.lower is None else term.lower for term in law.terms])
    rotated, triangle = np.linalg.qr(shares * weights[:, None])
    right = rotated.T @ weights
    spread, count = _START_SD, len(weights)
    prior = np.diag(1 / sd)
    for _ in range(_ROUNDS if np.isfinite(sd).any() else 1):
        system, target = (
            np.vstack([triangle / spread, prior]),
            np.r_[right / spread, np.where(np.isinf(sd), 0, mean / sd)],
        )
        orthogonal, upper = np.linalg.qr(system)
        values = solve_triangular(upper, orthogonal.T @ target, check_finite=False)
        bounded = values < lower
        if bounded.any():
            values, bounded = _bounded(upper, orthogonal.T @ target, lower)
        residuals = weights * (shares @ values - 1)
        squares = float(residuals @ residuals)
        used = float((orthogonal[: len(triangle)] ** 2).sum())
        freedom = max(count - used, 0.0)
        settled, spread = spread, float(np.sqrt((_PRIOR_FREEDOM * _PRIOR_SD**2 + squares) / (_PRIOR_FREEDOM + freedom)))
        if abs(spread / settled - 1) < 1e-3:
            break
    inverse = solve_triangular(upper, np.eye(len(upper)), check_finite=False)
    if np.isinf(sd).all():
        inverse = inverse * (spread / settled)
    rms = float(np.sqrt(squares / max(freedom, 1.0)))
    posterior, freedom = inverse @ inverse.T, _PRIOR_FREEDOM + freedom
    seen = posterior @ triangle.T / spread
    # The prior's part is not estimated from scatter, so the factor of Student's t by which it will be multiplied is
    # taken out of it.
    narrow = (NORMAL_95 / t_quantile(freedom)) ** 2
    covariance = (1 - narrow) * seen @ seen.T + narrow * posterior
    silent = np.sqrt(np.diag(posterior)) > _SILENT * sd
    return Solution(law, values, silent, bounded, covariance, spread, freedom, 1.0, 0.0, rms)


def _bounded(upper: Array, right: Array, lower: Array) -> tuple[Array, Mask]:
    result = lsq_linear(upper, right, (lower, np.inf), method="bvls", tol=1e-12, max_iter=1000)
    return result.x, (result.active_mask == -1) | (result.x <= lower)


def power_of_size(squares: Array, sizes: Array, weights: Array | float = 1.0) -> float:
    """How scatter falls with the size of a run: the likeliest power, or 0 without clear evidence.

    `squares`: squared relative deviations. `sizes`: logarithms of the sizes, of (weighted) mean 0. `weights`: degrees
    of freedom of each.
    """
    weights = np.broadcast_to(weights, squares.shape)
    if weights.sum() < _FEWEST_FOR_POWER:
        return 0.0
    total = weights.sum()
    scaled = [(weights * (squares + 1e-18) * np.exp(2 * power * sizes)).sum() / total for power in _POWERS]
    surprise = total * np.log(scaled)
    best = int(np.argmin(surprise))
    return float(_POWERS[best]) if surprise[0] - surprise[best] > _EVIDENCE else 0.0


def number(batch: float) -> float:
    """A batch as an integer if it is whole, as it is in a table of static batches."""
    return int(batch) if batch == int(batch) else float(batch)


def units(law: Law, points: Points) -> Iterator[tuple[float | None, Mask]]:
    """Which cells share coefficients: all for a law with batch terms, else those of each batch (and its number)."""
    if law.has_batch_terms:
        yield None, np.ones(len(points), dtype=bool)
        return
    for batch in np.unique(points.batch):
        yield number(batch), points.batch == batch


def as_json(solution: Solution, points: Points, features: Array) -> dict[str, Any]:
    """A solution as an entry of predictor.json (docs: its schema)."""
    errors = np.sqrt(np.diag(solution.covariance))
    terms = {
        term.name: {
            "value": float(solution.values[index]),
            "standard_error": float(errors[index]),
            "at_bound": bool(solution.at_bound[index]),
            "from_prior": bool(solution.from_prior[index]),
        }
        for index, term in enumerate(solution.law.terms)
    }
    return {
        "terms": terms,
        "covariance": solution.covariance.tolist(),
        "relative_residual_sd": solution.relative_sd,
        "residual_size": solution.size,
        "residual_power": solution.power,
        "degrees_of_freedom": solution.freedom,
        "t_quantile_95": solution.quantile,
        "in_sample_mape_percent": float(100 * np.mean(np.abs(features @ solution.values / points.target - 1))),
    }
