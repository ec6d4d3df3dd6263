"""Predicts cells that a fit has not seen: the schemes of holding out, and the calibration of intervals from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweetspot.fit.solve import Array, Mask, Points, Skipped, design, solve, t_quantile, units
from sweetspot.predict.intervals import NORMAL_95
from sweetspot.predict.laws import Law
from sweetspot.vocabulary import CONFIDENCE

SCHEMES = {
    "in-sample": "nothing",
    "5-fold": "a part of the cells in turn",
    "leave-one-length-out": "each input length and each output length in turn",
    "leave-one-batch-out": "each batch in turn",
    "leave-one-model-out": "each model in turn",
}
"""Names of the schemes and what each holds out."""

_SEED = 0
FOLDS = 5
FEWEST_FOR_FOLDS = 10  # fewer cells than this are held out one by one
_EXACT = 1e-9  # a relative half-width below this is rounding error: exact tables have no scatter
# Standard deviation of the law's own error an octave (a factor of two) beyond the measured lengths, or from the nearest
# measured batch, before any was held out; worth one octave of evidence.
EXPECTED_PER_OCTAVE = 0.02
AXES = ("lengths", "batch")


@dataclass(frozen=True)
class HeldOut:
    """One fold: what was held out, which cells that is, and how the law fitted to the other cells predicts them.

    `predicted`: per cell of the group, NaN outside `mask` and where the other cells fit no law. `variance`:
    relative, of scatter and coefficients. `quantile`: of the fit that predicted each cell. `octaves`: by axis, how far
    each cell lies beyond the fitted lengths, or from the nearest fitted batch, in factors of two.
    """

    name: str
    mask: Mask
    predicted: Array
    variance: Array
    quantile: Array
    octaves: Mapping[str, Array]

    @property
    def known(self) -> Mask:
        """The held-out cells that were predicted."""
        return self.mask & np.isfinite(self.predicted)

    def misses(self, points: Points) -> Array:
        """|measured - predicted| in half-widths of an uncalibrated 95 % interval, per cell."""
        half = np.maximum(self.quantile * np.sqrt(self.variance), _EXACT) * np.abs(self.predicted)
        return np.asarray(np.abs(points.target - self.predicted) / half)


@dataclass(frozen=True)
class Calibration:
    """What held-out cells imply for intervals.

    `scale`: factor by which the fit's own intervals must widen to cover 95 % of the held-out cells, at least 1.
    `per_octave`: relative error per factor of two beyond the measured lengths, or from the nearest measured batch.
    """

    scale: float = 1.0
    per_octave: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(AXES, EXPECTED_PER_OCTAVE))

    def as_dict(self) -> dict[str, Any]:
        """For predictor.json."""
        return {"interval_scale": self.scale, "relative_error_per_octave": dict(self.per_octave)}

    def half_widths(self, fold: HeldOut) -> Array:
        """Relative half-width of the 95 % interval of each predicted cell."""
        beyond = sum((self.per_octave[axis] * fold.octaves[axis]) ** 2 for axis in AXES)
        return np.sqrt((fold.quantile * self.scale) ** 2 * fold.variance + NORMAL_95**2 * beyond)


def folds(points: Points) -> NDArray[np.int64]:
    """Fold of each cell: 5 shuffled folds balanced over batches, or one per cell if there are fewer than 10 cells."""
    shuffled = np.random.default_rng(_SEED).permutation(len(points))
    by_batch = shuffled[np.argsort(points.batch[shuffled], kind="stable")]
    fold = np.empty(len(points), dtype=np.int64)
    fold[by_batch] = np.arange(len(points)) % (FOLDS if len(points) >= FEWEST_FOR_FOLDS else len(points))
    return fold


def masks(scheme: str, points: Points) -> Iterator[tuple[str, Mask]]:
    """The name of each fold of a scheme and the cells it holds out; none for in-sample."""
    if scheme == "5-fold":
        fold = folds(points)
        for k in np.unique(fold):
            yield f"fold {k + 1}", fold == k
    elif scheme == "leave-one-length-out":
        for name, values in (("input_tokens", points.n), ("output_tokens", points.m)):
            for value in np.unique(values):
                yield f"{name} {value:.0f}", values == value
    elif scheme == "leave-one-batch-out":
        for value in np.unique(points.batch):
            yield f"batch {value:.0f}", points.batch == value


def hold_out(law: Law, points: Points, scheme: str) -> list[HeldOut]:
    """Every fold of `scheme`. A law without batch terms has none for leave-one-batch-out."""
    if scheme == "leave-one-batch-out" and not law.has_batch_terms:
        return []
    features = design(law, points)
    return [_fold(law, points, features, name, test, ~test)[0] for name, test in masks(scheme, points)]


def fitted(law: Law, points: Points) -> tuple[HeldOut, list[str]]:
    """The in-sample fold, and why some of the law's fits are missing."""
    everything = np.ones(len(points), dtype=bool)
    return _fold(law, points, design(law, points), "nothing", everything, everything)


def _fold(law: Law, points: Points, features: Array, name: str, test: Mask, others: Mask) -> tuple[HeldOut, list[str]]:
    """The cells of `test` as predicted from `others`, and why some fits are missing."""
    predicted, variance, quantile = (np.full(len(points), np.nan) for _ in range(3))
    octaves = {axis: np.zeros(len(points)) for axis in AXES}
    reasons = []
    for batch, unit in units(law, points):
        train, here = unit & others, unit & test
        if not here.any() or not train.any():
            continue
        solution = solve(law, points.take(train), features[train])
        if isinstance(solution, Skipped):
            reasons.append(solution.reason if batch is None else f"batch {batch}: {solution.reason}")
            continue
        rows = features[here]
        predicted[here] = solution.predict(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance[here] = solution.relative_variance(rows, points.tokens[here])
        quantile[here] = solution.quantile
        lengths = [_beyond(values, train)[here] for values in (points.n, points.m)]
        octaves["lengths"][here] = np.maximum(*lengths)
        octaves["batch"][here] = _apart(points.in_wave[here], points.in_wave[train])
    return HeldOut(name, test, predicted, variance, quantile, octaves), reasons


def calibrate(points: Points, schemes: Mapping[str, list[HeldOut]], without: HeldOut | None = None) -> Calibration:
    """The calibration from the folds of all schemes; `without` leaves one out, so that the others can judge it."""
    inner = [fold for fold in schemes["5-fold"] if fold is not without]
    misses = np.concatenate([fold.misses(points)[fold.known] for fold in inner] or [np.array([])])
    rates = {
        "lengths": _rate(points, [fold for fold in schemes["leave-one-length-out"] if fold is not without], "lengths"),
        "batch": _rate(points, [fold for fold in schemes["leave-one-batch-out"] if fold is not without], "batch"),
    }
    return Calibration(max(1.0, _quantile(misses)), rates)


def _quantile(misses: Array) -> float:
    """The conformal 95 % quantile; of a few misses, the largest."""
    if not len(misses):
        return 1.0
    rank = min(len(misses), int(np.ceil(CONFIDENCE * (len(misses) + 1))))
    return float(np.sort(misses)[rank - 1])


def _rate(points: Points, edges: list[HeldOut], axis: str) -> float:
    """Relative error per octave from what the others measured, as far as the fits' own variances do not explain it."""
    unexplained, squares, judged = 0.0, 1.0, 3
    for fold in edges:
        beyond = fold.known & (fold.octaves[axis] > 0)
        judged += int(beyond.any())
        errors = (points.target[beyond] / fold.predicted[beyond] - 1) ** 2
        unexplained += float((errors - fold.variance[beyond]).sum())
        squares += float((fold.octaves[axis][beyond] ** 2).sum())
    # The errors within a fold are one error of the law, so few folds leave the rate itself uncertain.
    rate = np.sqrt((EXPECTED_PER_OCTAVE**2 + max(unexplained, 0.0)) / squares)
    return float(rate * t_quantile(judged) / NORMAL_95)


def _beyond(values: Array, train: Mask) -> Array:
    """How many factors of two each value lies outside the range of those in `train`; 0 inside."""
    low, high = values[train].min(), values[train].max()
    return np.asarray(np.maximum(0, np.maximum(np.log2(low / values), np.log2(values / high))))


def _apart(values: Array, fitted: Array) -> Array:
    """How many factors of two each value lies from the nearest of those `fitted`."""
    return np.asarray(np.abs(np.log2(values[:, None] / np.unique(fitted))).min(axis=1))
