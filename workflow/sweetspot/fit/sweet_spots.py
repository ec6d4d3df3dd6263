"""The sweet spots of a fitted law: the reply of least energy per output token, how sure that is, and how flat."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweetspot.fit.solve import Array, Points, Skipped, Solution, solve, units
from sweetspot.predict.laws import Law, per_token, sweet_spot
from sweetspot.predict.predictor import waves

_LENGTHS_OF_A_MINIMUM = 3  # between two output lengths no cell shows a minimum, whatever the law says
_APART = 0.9  # where the ranks of prompts and replies correlate more, only the law's form tells one from the other
_DRAWS = 500  # of the coefficients, for the confidence set of a sweet spot
_SEED = 0
_PLATEAU = 0.01  # energies this near to the lowest are called the same
_WIDE = 1.25  # a plateau is wide where it ends at so many times its beginning
_STEPS = 481  # of the measured replies, where the KV cache breaks the law's smooth curve


def sweet_spots(
    law: Law, points: Points, fits: Sequence[Mapping[str, Any]], capacity: Sequence[Mapping[str, int]]
) -> list[dict[str, Any]]:
    """One entry for each batch and each measured input length of it.

    `fits`: of the law, as in predictor.json; `capacity`: where the KV cache was full, as there. Where it fills within
    the measured replies, more waves end what a longer reply saves: then the least of the measured range is sought.
    "not identified": the law has no term that grows with the reply, or the cells do not tell what such a term is.
    """
    spots = []
    for (_, unit), fit in zip(units(law, points), fits, strict=True):
        solution = solve(law, points.take(unit))
        if isinstance(solution, Skipped):
            continue
        shown = law.can_have_sweet_spot and _replies_vary(points.n[unit], points.m[unit])
        draws = _draws(solution, fit["interval_scale"])
        for batch in np.unique(points.batch[unit]):
            of_batch = points.take(unit & (points.batch == batch))
            chosen = float(of_batch.chosen.max()) if law.needs_experts else 1.0
            for n in np.unique(of_batch.n):
                found = _NO_SPOT
                if shown and _knows_spot(solution, n, batch):
                    replies = np.unique(np.geomspace(of_batch.m.min(), of_batch.m.max(), _STEPS).round())
                    times = np.array([waves(capacity, int(n + m), int(batch)) for m in replies], dtype=float)
                    if times.max() > 1:
                        found = _within_capacity(solution, draws, n, batch / times, replies, chosen)
                    else:
                        found = _spot(solution, draws, n, (batch, chosen), of_batch.m)
                spots.append({"batch": int(batch), "input_tokens": int(n)} | found)
    return spots


_NO_SPOT = dict.fromkeys(
    (
        "output_tokens",
        "output_tokens_low",
        "output_tokens_high",
        "plateau_low",
        "plateau_high",
        "energy_per_output_token_j",
    )
) | {"status": "not identified"}


def plateau(spot: Mapping[str, Any]) -> str:
    """ " (a plateau from A to B)" where energies within 1 % span a quarter of a length and more, or nothing."""
    low, high = spot["plateau_low"], spot["plateau_high"]
    return f" (a plateau from {low:,.0f} to {high:,.0f})" if high >= _WIDE * low else ""


def _spot(solution: Solution, draws: Array, n: float, place: tuple[float, float], measured: Array) -> dict[str, Any]:
    """The sweet spot with its 95 % confidence set, and the plateau around it. `place`: batch, k/E.

    An end of the confidence set is null where the coefficients that the cells allow give no minimum on that side.
    """
    law, (batch, _) = solution.law, place
    values = dict(zip((term.name for term in law.terms), solution.values, strict=True))
    spot = sweet_spot(law, values, n, batch)
    if spot is None:
        return _NO_SPOT | {"status": "no interior minimum"}
    powers = np.array([term.powers(n, batch) for term in law.terms])
    inverse, linear, square = (draws @ powers).T
    with np.errstate(divide="ignore", invalid="ignore"):
        # The cubic's root by a few Newton steps from the quadratic's or the cubic's own, whichever is less.
        drawn = np.minimum(np.sqrt(inverse / linear), np.cbrt(inverse / (2 * square)))
        for _ in range(20 if square.any() else 0):
            drawn -= (2 * square * drawn**3 + linear * drawn**2 - inverse) / (
                6 * square * drawn**2 + 2 * linear * drawn
            )
    drawn = np.where(inverse <= 0, 0.0, np.where(np.isfinite(drawn), drawn, np.inf))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    replies = np.geomspace(max(1.0, spot / 64), spot * 64, 2000)
    features = _features(law, n, replies, *place)
    energies = features @ solution.values
    lowest = per_token(law, values, n, spot, *place)
    flat = replies[energies <= (1 + _PLATEAU) * lowest]
    inside = measured.min() <= spot <= measured.max()
    return {
        "output_tokens": spot,
        "output_tokens_low": float(low) if low > 0 else None,
        "output_tokens_high": float(high) if np.isfinite(high) else None,
        "plateau_low": float(flat.min(initial=spot)),
        "plateau_high": float(flat.max(initial=spot)),
        "energy_per_output_token_j": lowest,
        "status": "interior" if inside else "outside measured range",
    }


def _within_capacity(
    solution: Solution, draws: Array, n: float, together: Array, replies: Array, chosen: float
) -> dict[str, Any]:
    """The sweet spot among `replies`, of which `together` requests run at once. The same entries as `_spot`."""
    features = _features(solution.law, n, replies, together, chosen)
    energies = features @ solution.values
    best = int(energies.argmin())
    if best in (0, len(replies) - 1):
        return _NO_SPOT | {"status": "no interior minimum"}
    flat = energies <= (1 + _PLATEAU) * energies[best]
    low, high = np.quantile((features @ draws.T).argmin(axis=0), [0.025, 0.975], method="nearest")
    return {
        "output_tokens": float(replies[best]),
        "output_tokens_low": float(replies[max(low - 1, 0)]),  # no finer than the steps of the search
        "output_tokens_high": float(replies[min(high + 1, len(replies) - 1)]),
        "plateau_low": float(replies[: best + 1][~flat[: best + 1]].max(initial=replies[0])),
        "plateau_high": float(replies[best:][~flat[best:]].min(initial=replies[-1])),
        "energy_per_output_token_j": float(energies[best]),
        "status": "interior",
    }


def _features(law: Law, n: float, replies: Array, batch: Array | float, chosen: float) -> Array:
    """replies × terms."""
    return np.stack([np.broadcast_to(t.value(n, replies, batch, chosen), replies.shape) for t in law.terms], axis=1)


def _draws(solution: Solution, scale: float) -> Array:
    """Coefficients that the cells allow: draws × terms, normal with their covariance, within the bounds."""
    random = np.random.default_rng(_SEED)
    sd = np.sqrt(np.diag(solution.covariance))
    units_ = np.where(sd > 0, sd, 1.0)  # coefficients differ by orders of magnitude
    spread, directions = np.linalg.eigh(solution.covariance / np.outer(units_, units_))
    normal = random.standard_normal((_DRAWS, len(spread))) * np.sqrt(np.maximum(spread, 0)) * scale
    lower = np.array([-np.inf if term.lower is None else term.lower for term in solution.law.terms])
    return np.asarray(np.maximum(solution.values + normal @ directions.T * units_, np.minimum(lower, solution.values)))


def _replies_vary(prompts: Array, replies: Array) -> bool:
    """Whether the cells show what a reply costs beside what its prompt does, whatever the law says.

    Not where a longer prompt always comes with a longer reply, or with a shorter one (as with one sum of both).
    """
    ranks = [np.unique(lengths, return_inverse=True)[1].astype(float) for lengths in (prompts, replies)]
    if ranks[1].max() + 1 < _LENGTHS_OF_A_MINIMUM:
        return False
    return ranks[0].max() == 0 or bool(abs(np.corrcoef(ranks[0], ranks[1])[0, 1]) <= _APART)


def _knows_spot(solution: Solution, n: float, batch: float) -> bool:
    """Whether the cells tell what grows with the reply from what falls with it, at this input length and batch."""
    parts = np.array([term.powers(n, batch) for term in solution.law.terms]).T
    return bool(solution.determines(parts[parts.any(axis=1)]).all())
