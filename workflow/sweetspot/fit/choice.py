"""Chooses the law to predict with, by the errors on held-out cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sweetspot.fit.heldout import FEWEST_FOR_FOLDS, SCHEMES, HeldOut, hold_out
from sweetspot.fit.solve import Array, Points, Skipped, solve, units
from sweetspot.predict.laws import LAWS, Law

# Two laws are equally good if their held-out errors differ by less than the standard error of the difference plus the
# second number, in percentage points, which is finer than any measurement repeats.
_STANDARD_ERRORS, _AS_GOOD_PERCENT = 1.0, 0.1


Schemes = Mapping[str, list[HeldOut]]


def hold_out_all(law: Law, points: Points) -> dict[str, list[HeldOut]]:
    """The folds of every scheme that holds anything out."""
    return {scheme: hold_out(law, points, scheme) for scheme in SCHEMES if scheme != "in-sample"}


def fits(law: Law, points: Points) -> list[dict[str, Any]]:
    """What `choose` needs of a law's fits: the batch of each and its terms, or why it was skipped."""
    found = ((batch, solve(law, points.take(unit))) for batch, unit in units(law, points))
    return [
        {"batch": batch, "skipped": one.reason} if isinstance(one, Skipped) else {"batch": batch, "terms": law.terms}
        for batch, one in found
    ]


def choose(
    laws: Mapping[str, list[dict[str, Any]]], held_out: Mapping[str, Schemes], points: Points
) -> tuple[str | None, str]:
    """Name of the law to predict with, and one sentence why; None if no law could be fitted.

    Candidates are the laws that may predict (see `Law`); of few cells, only those without negative prices. They cover
    the most cells and predict the most cells under 5-fold. One scheme after another then drops those
    that are worse than the best (by paired errors over the cells that both predict, beyond the noise of their
    difference). A scheme that cannot judge a law neither drops it nor lets it displace one it can judge. Of those left,
    one set of coefficients for every batch is preferred to a set per batch, then the fewest coefficients.
    """
    covered = {name: _covered(fits, points) for name, fits in laws.items() if _competes(LAWS[name], points)}
    most = max(covered.values(), default=0)
    if not most:
        asked = [laws[name] for name in covered if not LAWS[name].needs_experts]
        reasons = {fit["skipped"] for fits in asked for fit in fits}
        return None, "no law can be fitted: " + "; ".join(sorted(reasons))
    candidates = [name for name, cells in covered.items() if cells == most]
    size = {name: sum(len(fit.get("terms", ())) for fit in laws[name]) for name in candidates}
    errors = {scheme: _errors(candidates, held_out, scheme, points) for scheme in SCHEMES if scheme != "in-sample"}
    judged = [name for name in candidates if name in errors["5-fold"]]
    if not judged:
        name = min(candidates, key=lambda name: size[name])
        return name, f"fewest coefficients ({size[name]}): too few cells to hold any out, so its error is unknown"
    left = judged
    for of in errors.values():
        left = _as_good(left, of)
    several = len(np.unique(points.batch)) > 1
    fold_errors = {name: float(np.nanmean(error)) for name, error in errors["5-fold"].items()}

    def preference(name: str) -> tuple[bool, int, float]:
        # Errors are rounded because on exact tables they are rounding noise, which differs between machines.
        return several and not LAWS[name].has_batch_terms, size[name], round(fold_errors[name], 6)

    name = min(left, key=preference)
    titles = {"5-fold": "leave-one-cell-out"} if len(points) < FEWEST_FOR_FOLDS else {}
    shown = ", ".join(
        f"{titles.get(scheme, scheme)} {_shown(name, of, judged, several)}"
        for scheme, of in errors.items()
        if name in of
    )
    rivals = "laws for every batch" if several and LAWS[name].has_batch_terms else "laws"
    return name, f"held-out MAPE {shown}; {size[name]} coefficients, the fewest of the equally good {rivals}"


def _competes(law: Law, points: Points) -> bool:
    return law.predicts and (law.bounded or len(points) >= FEWEST_FOR_FOLDS)


def _errors(names: Sequence[str], held_out: Mapping[str, Schemes], scheme: str, points: Points) -> dict[str, Array]:
    """APE in percent of the held-out cells, in the same order for each law this scheme judges; NaN: not predicted."""
    everything = {}
    for name in names:
        if name in held_out and (folds := held_out[name][scheme]):
            everything[name] = np.concatenate(
                [100 * np.abs(fold.predicted / points.target - 1)[fold.mask] for fold in folds]
            )
    having = {name: error for name, error in everything.items() if _known(error)}
    if scheme == "5-fold":  # a law that cannot predict all the cells that others can does not compete
        most = max(map(_known, having.values()), default=0)
        having = {name: error for name, error in having.items() if _known(error) == most}
    return having


def _known(error: Array) -> int:
    return int(np.isfinite(error).sum())


def _as_good(names: Sequence[str], errors: Mapping[str, Array]) -> list[str]:
    """Those of `names` that are as good as the best one this scheme judges, or that it does not judge."""
    judged = sorted((name for name in names if name in errors), key=lambda name: -_known(errors[name]))
    best = next(iter(judged), "")
    for name in judged[1:]:
        shared = _shared_difference(errors[name], errors[best])
        best = name if len(shared) and shared.mean() < 0 else best
    return [name for name in names if name not in errors or not _worse(errors[name], errors[best])]


def _shared_difference(error: Array, other: Array) -> Array:
    """How much larger the errors of one law are than those of another, over the cells that both predict."""
    difference = error - other
    return difference[np.isfinite(difference)]


def _worse(error: Array, best: Array) -> bool:
    difference = _shared_difference(error, best)
    if len(difference) < 2:
        return False
    noise = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(difference.mean() > _STANDARD_ERRORS * noise + _AS_GOOD_PERCENT)


def _shown(name: str, errors: Mapping[str, Array], judged: Sequence[str], several: bool) -> str:
    """A law's error under a scheme and the lowest one, as in the validation, with the number of cells if not all."""
    rivals = [law for law in judged if law in errors]
    most = max(_known(errors[law]) for law in rivals)
    best = min(rivals, key=lambda law: np.nanmean(errors[law]))

    def said(law: str) -> str:
        part = f" over {_known(errors[law])} of {most} cells" if _known(errors[law]) < most else ""
        return f"{np.nanmean(errors[law]):.3g} %{part}"

    if best == name:
        return f"{said(name)} (lowest)"
    alone = ", fitted to each batch separately," if several and not LAWS[best].has_batch_terms else ""
    both, same = np.isfinite(errors[name]) & np.isfinite(errors[best]), ""
    if 0 < both.sum() < max(_known(errors[name]), _known(errors[best])):
        means = " and ".join(f"{errors[law][both].mean():.3g}" for law in (name, best))
        same = f"; over the {both.sum()} cells that both predict, {means} %"
    return f"{said(name)} (lowest: {best}{alone} {said(best)}{same})"


def _covered(fits: Sequence[dict[str, Any]], points: Points) -> int:
    """The number of cells whose batch has a fit."""
    batches = [fit["batch"] for fit in fits if "skipped" not in fit]
    return len(points) if None in batches else int(np.isin(points.batch, batches).sum())
