"""Estimates how many tokens the KV cache holds, for tables that do not record in how many waves a batch ran.

Engines admit requests until the KV cache is full: a batch of B requests of n + m tokens on a cache of C tokens runs in
ceil(B / floor(C / (n + m))) waves, each a batch of its own. Public tables record neither C nor waves, but the energies
reveal C: without waves no law fits, and with the right C one does. C is one number per group, estimated once from all
cells, so held-out cells contribute to it. Waves are whole numbers, so the cells leave a range of capacities: those with
which they run in the same number of waves, or in others that fit equally well.
"""

from dataclasses import replace

import numpy as np
import polars as pl

from sweetspot.fit.solve import Array, Points, Solution, solve
from sweetspot.predict.laws import LAWS
from sweetspot.table.schema import GROUP

_STEPS, _REFINEMENTS = 64, 2
_BETTER = 0.7  # scatter about the best law must fall below this share of the scatter without a limit
_EVIDENCE = 30.0  # and the sum of squares by this many mean squares: far more than a search finds in noise
_TELLING = 10.0  # mean squares above the best rule out a capacity: three standard errors, because many are tried
_LEAST_STEP = 1 / 256  # share of the capacity, in the search for those that are ruled out
_FREEDOM = 8  # fewer degrees of freedom cannot separate queueing from scatter, and leave too few held-out cells
_WELL = 0.1  # above this relative scatter, the law is wrong about more than the batch
_UNKNOWN = pl.lit(None, pl.List(pl.Int64))


def with_waves(cells: pl.DataFrame) -> pl.DataFrame:
    """Add `kv_tokens`, the estimated capacity in tokens, to cells (see `cell_means`): [least, likely, exclusive bound].

    If it can be estimated, `waves` and `in_flight` follow from it. It is null, and the cells stay as they are, for
    groups that record waves or requests in flight and for groups whose energies show no limit.
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
        in_flight=pl.Series(np.ceil(np.minimum(points.batch, together)), dtype=frame.schema["in_flight"]),
    )


def _limited(points: Points, capacity: float) -> Points:
    return replace(points, waves=_waves(points.batch, np.floor(capacity / (points.n + points.m))))


def _same_waves(points: Points, capacity: float) -> tuple[int, int]:
    """The least capacity that gives all cells the same waves as this one, and the next larger one that does not."""
    tokens = points.n + points.m
    waves = _limited(points, capacity).waves
    fewer = np.maximum(waves - 1, 1)
    least = (tokens * np.ceil(points.batch / waves)).max()
    below = (tokens * np.ceil(points.batch / fewer))[waves > 1].min(initial=(tokens * points.batch).max() + 1)
    return int(least), int(below)


def _waves(batch: Array, together: Array) -> Array:
    return np.ceil(batch / np.maximum(together, 1))


def _scatter(points: Points) -> tuple[float, float]:
    """Relative scatter about the best law with batch terms, and its degrees of freedom."""
    solutions = [solve(law, points) for law in LAWS.values() if law.has_batch_terms]
    found = [(one.rms, one.freedom) for one in solutions if isinstance(one, Solution)]
    return min(found, key=lambda pair: pair[0], default=(np.inf, 0.0))
