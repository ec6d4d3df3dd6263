"""How many tokens the KV cache holds, where a table does not say in how many waves a batch ran.

Engines admit requests until their cache is full: a batch of B requests of n + m tokens on a cache of C tokens runs in
ceil(B / floor(C / (n + m))) waves, each a batch of its own. Public tables record neither C nor waves, but the energies
know: without waves no law fits, and with the right C one does. One number for a group, estimated once from all its
cells; so where it is estimated, held-out cells have helped to find it. Waves are whole numbers, so cells leave a range
of capacities: with all of them they run in the same waves, or in others that fit as well.
"""

import numpy as np
import polars as pl

from sweetspot.fit.solve import Array, Points, Solution, design, solve
from sweetspot.predict.laws import LAWS
from sweetspot.table.schema import GROUP

_STEPS, _REFINEMENTS = 64, 2
_BETTER = 0.7  # the scatter about the best law must fall below this share of what it is without a limit
_EVIDENCE = 30.0  # and the sum of squares by this many times its mean square: far beyond what a search finds in noise
_TELLING = 10.0  # times its mean square rule out a capacity beside the best: three standard errors, as many are tried
_LEAST_STEP = 1 / 256  # of the capacity, in the search for those that are ruled out
_FREEDOM = 8  # fewer degrees of freedom cannot tell queueing from scatter, and the held-out cells would be too few
_WELL = 0.1  # relative scatter above which the law is wrong in more than the batch
_UNKNOWN = pl.lit(None, pl.List(pl.Int64))


def with_waves(cells: pl.DataFrame) -> pl.DataFrame:
    """Cells (see `cell_means`) with `kv_tokens`, the estimated capacity in tokens: [least, likely, below which it is].

    It is null where none is estimated. Where there is one, `waves` and `in_flight` follow from it. Groups that record
    waves, or requests in flight, and those whose energies show no limit, stay as they are.
    """
    frames = [_estimated(frame) for frame in cells.partition_by(GROUP, maintain_order=True)]
    return pl.concat(frames) if frames else cells.with_columns(kv_tokens=_UNKNOWN)


def _estimated(frame: pl.DataFrame) -> pl.DataFrame:
    unknown = frame.with_columns(kv_tokens=_UNKNOWN)
    if (frame["waves"] != 1).any() or frame["in_flight"].is_not_null().any() or frame["batch"].n_unique() < 2:
        return unknown
    points = Points.of(frame)
    tokens = points.n + points.m
    free, freedom = _scatter(points)
    if freedom - 1 < _FREEDOM:
        return unknown
    low, high = tokens.max(), (tokens * points.batch).max()
    grid = np.geomspace(low, high, _STEPS)
    best, capacity = free, np.nan
    for _ in range(1 + _REFINEMENTS):
        found = [_scatter(_limited(points, value))[0] for value in grid]
        index = int(np.argmin(found))
        if found[index] < best:
            best, capacity = found[index], grid[index]
        grid = np.geomspace(grid[max(index - 1, 0)], grid[min(index + 1, len(grid) - 1)], _STEPS // 4)
    if np.isnan(capacity) or best > min(_WELL, _BETTER * free):
        return unknown
    if best > 0 and (freedom - 1) * (free**2 / best**2 - 1) < _EVIDENCE:
        return unknown
    least, below = _same_waves(points, capacity)
    likely = (least + below) // 2
    ruled_out = best * np.sqrt(1 + _TELLING / (freedom - 1))
    while least > low and _scatter(_limited(points, least - 1))[0] < ruled_out:
        least = min(_same_waves(points, least - 1)[0], int(least * (1 - _LEAST_STEP)))
    while below < high and _scatter(_limited(points, below))[0] < ruled_out:
        below = max(_same_waves(points, below)[1], int(below * (1 + _LEAST_STEP)))
    together = np.floor(likely / tokens)
    return frame.with_columns(
        kv_tokens=pl.lit([least, likely, below], pl.List(pl.Int64)),
        waves=pl.Series(_waves(points.batch, together)),
        in_flight=pl.Series(np.minimum(points.batch, together), dtype=frame.schema["in_flight"]),
    )


def _limited(points: Points, capacity: float) -> Points:
    waves = _waves(points.batch, np.floor(capacity / (points.n + points.m)))
    return Points(points.n, points.m, points.batch, waves, points.chosen, points.target)


def _same_waves(points: Points, capacity: float) -> tuple[int, int]:
    """The least capacity with which all cells run in the same waves as with this one, and the next with which not."""
    tokens = points.n + points.m
    waves = _waves(points.batch, np.floor(capacity / tokens))
    fewer = np.maximum(waves - 1, 1)
    least = (tokens * np.ceil(points.batch / waves)).max()
    below = (tokens * np.ceil(points.batch / fewer))[waves > 1].min(initial=(tokens * points.batch).max() + 1)
    return int(least), int(below)


def _waves(batch: Array, together: Array) -> Array:
    return np.ceil(batch / np.maximum(together, 1))


def _scatter(points: Points) -> tuple[float, int]:
    """Relative scatter about the best law for every batch, and its degrees of freedom."""
    best, freedom = np.inf, 0
    for law in LAWS.values():
        if law.has_batch_terms:
            solution = solve(law, points, design(law, points))
            if isinstance(solution, Solution) and solution.relative_sd < best:
                best, freedom = solution.relative_sd, solution.freedom
    return best, freedom
