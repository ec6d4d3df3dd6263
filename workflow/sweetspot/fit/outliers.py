"""Finds rows that cannot be right: set aside before any fit, named with the reason, never dropped silently.

A repetition is judged by the others of its cell. A cell with too few repetitions is a suspect if its two rows disagree,
or if it lies far from a robust smooth surface through all cells. It is an outlier if a law fitted to the other cells
agrees that it is off by a factor of two (1.5 if that law fits them well, three if there are many suspects). With too
few cells for a surface, an outlier is the one cell without which a law describes all others. Outliers are few: if more
than a tenth of the cells look wrong, the law is wrong instead, and all cells stay.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import statsmodels.api as sm

from sweetspot.fit.capacity import with_waves
from sweetspot.fit.solve import Array, Mask, Points, Solution, design, solve, units
from sweetspot.predict.laws import LAWS
from sweetspot.table.cells import cell_means
from sweetspot.table.schema import CELL, GROUP

_REPETITIONS = 3  # with fewer, the others cannot outvote one
_REPETITION_OFF, _REPETITION_SDS = 1.15, 8.0  # a factor, and robust standard deviations of all repetitions of the group
_SURFACE_OFF, _CELL_SDS = 0.35, 6.0  # of the logarithm: a difference, and robust standard deviations
_CELL_OFF, _LAW_ERRORS = (1.5, 2.0), 10.0  # factors; between them, this many mean errors of the law on the other cells
_DISAGREE = 0.3  # standard deviation of two repetitions, as a share of their mean: one is 1.5 times the other
_MOST, _MOST_SUSPECTS = 0.1, 0.3  # largest shares of the cells: outliers, and suspects
_FEWEST_CELLS = 10  # for a surface
_FAR = 3.0  # factor that counts as off with many suspects, or with too few cells for a surface
_SPARE, _DESCRIBED = 3, 0.05  # of the law without the one cell: least degrees of freedom, largest scatter
_MAD = 1.4826  # median absolute deviation to standard deviation, for normal errors


@dataclass(frozen=True)
class Screened:
    """`cells`: those to fit, averaged over the rows that stay, with their waves (see `capacity.with_waves`).

    `outliers`: the rows set aside, with the reason in `outlier`.
    """

    cells: pl.DataFrame
    outliers: pl.DataFrame


def screen(frame: pl.DataFrame) -> Screened:
    """Set aside valid rows that cannot be right, and average the others into cells. `frame`: a `table.Table.frame`."""
    rows = frame.with_row_index("_row").filter(pl.col("valid"))
    aside: dict[int, str] = {}
    for group in rows.partition_by(GROUP, maintain_order=True):
        aside |= _repetitions(group)
        aside |= _cells(group.filter(~pl.col("_row").is_in(list(aside))))
    reasons = pl.DataFrame(
        {"_row": list(aside), "outlier": list(aside.values())}, {"_row": pl.UInt32, "outlier": pl.String}
    )
    outliers = rows.join(reasons, on="_row", maintain_order="left").drop("_row")
    return Screened(with_waves(cell_means(rows.filter(~pl.col("_row").is_in(list(aside))).drop("_row"))), outliers)


def _repetitions(group: pl.DataFrame) -> dict[int, str]:
    """Row number and reason of each repetition that the others of its cell contradict."""
    median = pl.col("energy_j").median().over(CELL)
    off = group.with_columns(median.alias("_median"), pl.len().over(CELL).alias("_count")).with_columns(
        (pl.col("energy_j") / pl.col("_median")).log().abs().alias("_off")
    )
    judged = off.filter(pl.col("_count") >= _REPETITIONS)
    if not judged.height:
        return {}
    usual = _MAD * float(judged["_off"].median())  # type: ignore[arg-type]
    wrong = judged.filter(pl.col("_off") > max(np.log(_REPETITION_OFF), _REPETITION_SDS * usual))
    return {
        row["_row"]: f"{row['energy_j']:.4g} J; the median of {row['_count']} repetitions is {row['_median']:.4g} J"
        for row in wrong.iter_rows(named=True)
    }


def _cells(group: pl.DataFrame) -> dict[int, str]:
    """Row number and reason of each row of a small cell that all other cells contradict."""
    frame = cell_means(group.drop("_row"))
    points, replaceable = Points.of(frame), (frame["repetitions"] < _REPETITIONS).to_numpy()
    if frame.height < _FEWEST_CELLS:
        off = _alone(points, replaceable)
    else:
        disagree = (pl.col("energy_sd_j") > _DISAGREE * pl.col("energy_j")).fill_null(False)
        suspects = (_off_surface(points) | frame.select(disagree).to_series().to_numpy()) & replaceable
        off = _contradicted(points, suspects) if 0 < suspects.sum() <= max(1, _MOST_SUSPECTS * len(points)) else {}
    aside: dict[int, str] = {}
    places = set()
    for index, (expected, limit) in off.items():
        joules = expected * points.batch[index] * points.m[index]
        own = group.filter(pl.all_horizontal(pl.col(name) == frame[name][index] for name in CELL))
        for row in own.iter_rows(named=True):
            if abs(np.log(row["energy_j"] / joules)) > limit:
                places.add(index)
                aside[row["_row"]] = f"{row['energy_j']:.4g} J; the other cells predict about {joules:.4g} J"
    return aside if len(places) <= _few(points) else {}


def _few(points: Points) -> float:
    return max(1, _MOST * len(points))


def _contradicted(points: Points, suspects: Mask) -> dict[int, tuple[float, float]]:
    """Index of each suspect: E_tok by the other cells' law, and how far (in logarithm) a row may be from it."""
    expected, usual = _by_law(points, suspects)
    limit = float(np.clip(_LAW_ERRORS * usual, *np.log(_CELL_OFF)))
    if suspects.sum() > _few(points):  # some may be good corner cells, or have unrecorded waves
        limit = float(np.log(_FAR))
    return {int(index): (float(expected[index]), limit) for index in np.flatnonzero(suspects)}


def _alone(points: Points, replaceable: Mask) -> dict[int, tuple[float, float]]:
    """As `_contradicted`, for the one cell without which a law describes all others; empty if there is none."""
    found, best = {}, _DESCRIBED
    for law in LAWS.values():
        if not law.terms or (len(np.unique(points.in_wave)) > 1) != law.has_batch_terms:
            continue
        features = design(law, points)
        for index in range(len(points)):
            others = np.arange(len(points)) != index
            solution = solve(law, points.take(others), features[others])
            if not isinstance(solution, Solution) or solution.freedom < _SPARE or solution.rms >= best:
                continue
            best, expected = solution.rms, float(solution.predict(features[[index]])[0])
            far = replaceable[index] and abs(np.log(points.target[index] / expected)) > np.log(_FAR)
            found = {index: (expected, float(np.log(_FAR)))} if far else {}
    return found


def _off_surface(points: Points) -> Mask:
    """Cells far from a robust surface: log E_tok quadratic in the logs of lengths and batch, as far as they vary."""
    logs = [np.log(values) for values in (points.n, points.m, points.in_wave) if len(np.unique(values)) > 1]
    columns = [np.ones(len(points)), *logs]
    columns += [
        a * b
        for i, a in enumerate(logs)
        for b in logs[i:]
        if a is not b or len(np.unique(a)) > 2  # two values determine no curvature
    ]
    surface = np.stack(columns, axis=1)
    if np.linalg.matrix_rank(surface) < surface.shape[1]:  # too few cells, or collinear: use a plane
        surface = surface[:, : 1 + len(logs)]
    if len(points) <= surface.shape[1] + 2 or np.linalg.matrix_rank(surface) < surface.shape[1]:
        return np.zeros(len(points), dtype=bool)
    with np.errstate(all="ignore"):
        found = sm.RLM(np.log(points.target), surface, M=sm.robust.norms.TukeyBiweight()).fit()
    return np.asarray(np.abs(found.resid) > max(_SURFACE_OFF, _CELL_SDS * float(found.scale)))


def _by_law(points: Points, suspects: Mask) -> tuple[Array, float]:
    """E_tok of the suspects by the law that fits the other cells best, and its mean relative error on those.

    NaN where the law does not determine it, and for all other cells.
    """
    best, expected = np.inf, np.full(len(points), np.nan)
    for law in LAWS.values():
        values = np.full(len(points), np.nan)
        errors = []
        for _, unit in units(law, points):
            train, test = unit & ~suspects, unit & suspects
            solution = solve(law, points.take(train)) if law.terms and train.any() else None
            if not isinstance(solution, Solution):
                break
            features = design(law, points)
            errors.append(features[train] @ solution.values / points.target[train] - 1)
            values[test] = solution.predict(features[test])
        else:
            if errors and (error := float(np.abs(np.concatenate(errors)).mean())) < best:
                best, expected = error, values
    return expected, best
