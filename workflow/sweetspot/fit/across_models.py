"""Fits the law across models: prices shared by the models of one GPU and engine, and how far each model departs.

A mixed model on the relative error. Each cell of model j is the sum of the model's architecture terms (TERMS) at prices
p_k (1 + c_j) + u_k d_jk, with an error N(0, cell²). c_j ~ N(0, model²) is common to all prices of the model (a board's
sensor gain is part of it), d_jk ~ N(0, price²) is its departure in one price, and u_k is the size of that price.
The three spreads are estimated from predictions of left-out models, so they apply to a model that was never measured.
They also set how far a few rows of a new model pull the prices: with no rows the law is the shared one, with many it is
the model's own. Energy and time are fitted separately, in the same way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from sweetspot import gpus, models
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.fit.solve import t_quantile
from sweetspot.parallelism import Parallelism
from sweetspot.precision import element_bytes
from sweetspot.predict.across_models import EXCHANGED, LAW, TERMS, evaluate, features, waves
from sweetspot.table.schema import CELL, GROUP, group_name
from sweetspot.vocabulary import LEVEL, SIMULATED

Array = NDArray[np.float64]

SCHEME = "leave-one-model-out"
FEWEST_MODELS = 3
_TARGETS = {"energy": "energy_j", "duration": "duration_s"}
_SMALLEST_SPREAD = 1e-4  # keeps an exact table from dividing by zero
_MOST_ODD = 10  # at most one cell in this many is set aside
_RECORD_WAVES = (*SIMULATED, "measured")  # sources whose rows record the waves of a batch


@dataclass(frozen=True)
class Spread:
    """Relative standard deviations: of a model as a whole, of one of its prices, of a cell about its model's law."""

    model: float
    price: float
    cell: float


_START = Spread(0.05, 0.05, 0.02)


@dataclass(frozen=True)
class _Cells:
    """Cells of one model: amounts (cells × terms, see `features`) and measured values (cells)."""

    terms: Array
    measured: Array

    @property
    def shares(self) -> Array:
        """Terms divided by the measured value: shares @ prices is 1 where the law is exact."""
        return self.terms / self.measured[:, None]


@dataclass(frozen=True)
class _Fit:
    """Prices from all models; `without`: from all models but one, a row per model; `sizes`: u_k of each price."""

    prices: Array
    without: Array
    sizes: Array
    spread: Spread
    moments: list[Array]

    def prior(self, prices: Array, spread: Spread) -> Array:
        """Prior covariance of the prices of a model without rows."""
        return spread.model**2 * np.outer(prices, prices) + spread.price**2 * np.diag(self.sizes**2)


def fit_across_models(
    cells: pl.DataFrame, architectures: Mapping[str, Architecture]
) -> tuple[list[dict[str, Any]], pl.DataFrame]:
    """The law of each GPU, engine and bytes per element, and every cell as predicted without its model.

    `cells` comes from `cell_means`; `architectures` maps its model names. An entry is plain JSON: prices, spreads,
    errors on left-out models; one with a non-empty `reason` has no law, for that reason. Column `idle_w`, if present,
    bounds the power from below.

    The frame has group, cell, energy_j, predicted_j, low_j and high_j (95 %), ape_percent, law, scheme, held_out; and
    duration_s, predicted_s, low_s, high_s (null without durations).
    """
    # float16 and bfloat16 cost the same, fp8 and int8 do not.
    kinds = {name: "16 bits" if name in ("float16", "bfloat16") else name for name in cells["precision"]}
    keyed = cells.with_columns(_kind=pl.col("precision").replace_strict(kinds, return_dtype=pl.String))
    entries, held_out = [], []
    for group in keyed.partition_by("gpu", "engine", "parallelism", "source", "_kind", maintain_order=True):
        entry, predictions = _entry(group.drop("_kind"), architectures)
        entries.append(entry)
        held_out += predictions
    return entries, pl.concat(held_out) if held_out else pl.DataFrame()


def read_architectures(directory: Path, names: Iterable[str]) -> tuple[dict[str, Architecture], list[str]]:
    """Architectures of the models `names` in a directory: MODEL.json or MODEL/config.json, with or without the owner.

    Reads a publisher's config.json, or what a campaign resolved from one. The second value says which models cannot be
    used, and why. Raises SweetspotError if the directory does not exist.
    """
    if not directory.is_dir():
        raise SweetspotError(f"{directory}: no such directory; give one with the config.json of each model")
    found: dict[str, Architecture] = {}
    refused = []
    for model in names:
        for name in dict.fromkeys((model, model.rpartition("/")[2])):
            path = next(
                (p for p in (directory / f"{name}.json", directory / name / "config.json") if p.is_file()), None
            )
            if path and model not in found:
                try:
                    found[model] = models.load(path)
                except SweetspotError as error:
                    refused.append(f"{error}; {model} is left out of the law across models")
    return found, refused


def summary(entries: Sequence[Mapping[str, Any]]) -> str:
    """For people: how well each entry predicts a model it has not seen."""
    lines = []
    for entry in entries:
        name = group_name([entry["gpu"], entry["engine"], "/".join(entry["precisions"]), entry["parallelism"]])
        text = f"across models ({name}): {entry['reason']}" if name else f"across models: {entry['reason']}"
        if not entry["reason"]:
            known = [(target, entry[target]["leave_one_model_out"]) for target in _TARGETS if entry[target]]
            errors = (
                f"{target} of a left-out model is off by {error['mape_percent']:.2f} %, of {error['worst_model']} by "
                f"{error['worst_model_mape_percent']:.2f} %; {LEVEL} intervals cover {error['coverage_percent']:.0f} %"
                for target, error in known
            )
            text += f"{len(entry['models'])} models; " + "; ".join(errors)
        lines.append(text)
    return "\n".join(lines)


def _entry(cells: pl.DataFrame, architectures: Mapping[str, Architecture]) -> tuple[dict[str, Any], list[pl.DataFrame]]:
    first = cells.row(0, named=True)
    everyone = cells["model"].unique(maintain_order=True).to_list()
    models = [model for model in everyone if model in architectures]
    cells = cells.filter(pl.col("model").is_in(models))
    board = gpus.find(first["gpu"])
    entry: dict[str, Any] = {name: first[name] for name in ("gpu", "engine", "parallelism", "source")}
    entry |= {
        "precisions": cells["precision"].unique(maintain_order=True).to_list() or [first["precision"]],
        "without_architecture": [model for model in everyone if model not in architectures],
        "reason": _reason(models, everyone, cells),
        "models": {},
        "power_cap_w": Parallelism.parse(first["parallelism"]).gpus * board.tdp_w if board else None,
        "idle_w": cells["idle_w"].min() if "idle_w" in cells.columns else None,
    }
    if entry["reason"]:
        return entry, []
    entry["measured_range"] = {name: [cells[name].min(), cells[name].max()] for name in CELL}
    sizes = [architectures[model].parameters for model in models]
    entry["measured_range"]["parameters"] = [min(sizes), max(sizes)]
    entry["models"] = {
        model: {
            "cells": rows.height,
            "precision": rows["precision"][0],
            "architecture": architectures[str(model)].as_dict(),
            "odd_cells": [],
            **dict.fromkeys(_TARGETS),
        }
        for (model,), rows in cells.group_by("model", maintain_order=True)
    }
    terms = terms_of(cells, architectures)
    predictions: dict[str, Any] = {}
    for target, column in _TARGETS.items():
        known = cells[column].is_not_null().to_numpy()
        columns = np.full((cells.height, 3), np.nan)
        entry[target], columns[known] = _law(terms[known], cells.filter(pl.Series(known)), column, entry["models"])
        names = (f"{name}_{column.rpartition('_')[2]}" for name in ("predicted", "low", "high"))
        predictions |= dict(zip(names, columns.T, strict=True))
    frame = cells.select(*GROUP, "source", *CELL, *_TARGETS.values()).with_columns(
        *(pl.Series(name, values, nan_to_null=True) for name, values in predictions.items()),
        held_out=pl.lit("model ") + pl.col("model"),
        law=pl.lit(LAW),
        scheme=pl.lit(SCHEME),
    )
    return entry, [frame.with_columns(ape_percent=100 * (pl.col("predicted_j") / pl.col("energy_j") - 1).abs())]


def _reason(models: Sequence[str], everyone: Sequence[str], cells: pl.DataFrame) -> str:
    if len(models) < FEWEST_MODELS:
        unknown = ", ".join(model for model in everyone if model not in models)
        missing = f"; no architecture for {unknown}" if unknown else ""
        return f"needs {FEWEST_MODELS} models of known architecture; has {len(models)}{missing}"
    prices = len(TERMS) + (Parallelism.parse(cells["parallelism"][0]).gpus > 1)
    return "" if cells.height > prices else f"needs more than {prices} cells for its prices; has {cells.height}"


def terms_of(cells: pl.DataFrame, architectures: Mapping[str, Architecture]) -> Array:
    """cells × terms. Waves are as recorded; for tables from elsewhere, which record none, the KV cache implies them."""
    rows = []
    for row in cells.iter_rows(named=True):
        model, (batch, n, m) = architectures[row["model"]], (row[name] for name in CELL)
        times = row.get("waves") or 1.0
        if times == 1 and ("waves" not in row or row["source"] not in _RECORD_WAVES):
            try:
                times = waves(model, row["gpu"], row["precision"], n, m, batch, row["parallelism"])
            except SweetspotError:
                times = 1  # it did run, so it had more memory than such boards
        rows.append(features(model, element_bytes(row["precision"]), n, m, batch, times, row["parallelism"]))
    return np.array(rows)


def _law(
    terms: Array, cells: pl.DataFrame, column: str, models: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any] | None, Array]:
    """The law, and each cell's prediction (value, low, high) without its model; completes the entries of `models`."""
    names = cells["model"].unique(maintain_order=True).to_list()
    owner = np.array([names.index(name) for name in cells["model"]])
    measured = cells[column].to_numpy()
    if len(names) < FEWEST_MODELS or cells.height <= terms.shape[1]:
        return None, np.full((cells.height, 3), np.nan)
    odd = _odd(terms / measured[:, None], owner)
    for row in cells.filter(pl.Series(odd)).iter_rows(named=True):
        models[row["model"]]["odd_cells"].append([column, *(row[name] for name in CELL)])
    groups = [_Cells(terms[mine & ~odd], measured[mine & ~odd]) for mine in (owner == j for j in range(len(names)))]
    fit = _fit(groups)
    predicted, errors = np.empty((len(measured), 3)), {}
    target = next(target for target in _TARGETS if _TARGETS[target] == column)
    for j, (name, group) in enumerate(zip(names, groups, strict=True)):
        spread = _spread(fit.moments[:j] + fit.moments[j + 1 :], fit.spread)
        prior = fit.prior(fit.without[j], spread)
        folded = _law_json(fit.without[j], prior, spread, len(names) - 1)
        mine = owner == j
        predicted[mine] = [astuple(evaluate(folded, None, row.tolist())[0]) for row in terms[mine]]
        errors[name] = float(100 * np.mean(np.abs(predicted[mine, 0] / measured[mine] - 1)))
        models[name][target] = _as_json(*_update(fit.without[j], prior, spread.cell, group))
    error = 100 * np.abs(predicted[:, 0] / measured - 1)
    inside = (predicted[:, 1] <= measured) & (measured <= predicted[:, 2])
    worst = max(errors, key=lambda name: errors[name])
    return _law_json(fit.prices, fit.prior(fit.prices, fit.spread), fit.spread, len(names)) | {
        "in_sample_mape_percent": float(100 * np.mean(np.abs(terms @ fit.prices / measured - 1))),
        "leave_one_model_out": {
            "mape_percent": float(np.mean(list(errors.values()))),
            "worst_model": worst,
            "worst_model_mape_percent": errors[worst],
            "worst_ape_percent": float(error.max()),
            "coverage_percent": float(100 * inside.mean()),
            "models": errors,
        },
    }, predicted


def _law_json(prices: Array, covariance: Array, spread: Spread, models: int) -> dict[str, Any]:
    return _as_json(prices, covariance) | {"relative_sd": asdict(spread), "quantile": t_quantile(max(models - 1, 2))}


def _as_json(prices: Array, covariance: Array) -> dict[str, Any]:
    named = zip((*TERMS, EXCHANGED), prices.tolist(), strict=False)
    return {"prices": dict(named), "covariance": covariance.tolist()}


def _odd(shares: Array, owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Cells that no law of this form explains, found one by one: left out of the fits, counted in the errors."""
    odd = np.zeros(len(shares), dtype=bool)
    for _ in range(len(shares) // _MOST_ODD):
        kept = shares[~odd]
        miss = np.log(np.maximum(shares @ _bounded(kept.T @ kept, kept.sum(axis=0)), 1e-9))
        for j in np.unique(owner):
            if (~odd[owner == j]).any():
                miss[owner == j] -= np.median(miss[(owner == j) & ~odd])
        miss[odd] = 0
        worst = np.abs(miss).argmax()
        if abs(miss[worst]) <= far(miss):
            break
        odd[worst] = True
    return odd


def far(miss: Array) -> float:
    """The logarithmic error beyond which a cell is odd: a factor of two, and far larger than usual."""
    return max(float(np.log(2)), 10 * float(np.median(np.abs(miss))))


def _fit(groups: Sequence[_Cells]) -> _Fit:
    """Ordinary least squares first, then generalised least squares with the spreads it leaves."""
    rows = [group.shares for group in groups]
    grams = [(share.T @ share, share.sum(axis=0)) for share in rows]
    fit = _with_and_without(groups, grams)
    grams = []
    for share in rows:
        departures = np.column_stack([fit.spread.model * share @ fit.prices, fit.spread.price * share * fit.sizes])
        inner = np.eye(departures.shape[1]) * fit.spread.cell**2 + departures.T @ departures
        right = np.column_stack([share, np.ones(len(share))])
        weighted = (right - departures @ np.linalg.solve(inner, departures.T @ right)) / fit.spread.cell**2
        grams.append((share.T @ weighted[:, :-1], share.T @ weighted[:, -1]))
    return _with_and_without(groups, grams)


def _with_and_without(groups: Sequence[_Cells], grams: Sequence[tuple[Array, Array]]) -> _Fit:
    square, right = (np.sum(parts, axis=0) for parts in zip(*grams, strict=True))
    prices = _bounded(square, right)
    without = np.array([_bounded(square - gram, right - vector) for gram, vector in grams])
    sizes = np.maximum(prices, without.max(axis=0))
    moments = []
    for group, others in zip(groups, without, strict=True):
        expected = group.terms @ others
        parts = np.column_stack([np.ones(len(expected)), group.terms * sizes / expected[:, None]])
        both = np.column_stack([parts, group.measured / expected - 1])
        moments.append(np.vstack([both.T @ both, np.full(both.shape[1], len(expected))]))
    return _Fit(prices, without, sizes, _spread(moments), moments)


def _bounded(square: Array, right: Array) -> Array:
    """Non-negative solution of the normal equations square @ prices = right."""
    scale = np.sqrt(np.diag(square))
    scale[scale == 0] = 1
    values, vectors = np.linalg.eigh(square / np.outer(scale, scale))
    root = np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    return np.asarray(nnls((vectors * root).T, (vectors / root).T @ (right / scale))[0] / scale)


def _spread(moments: Sequence[Array], start: Spread = _START) -> Spread:
    """Maximum-likelihood spreads from each left-out model's residuals and their parts (second moments)."""
    stacked = np.stack([moment[:-1] for moment in moments])
    counts = np.array([moment[-1, 0] for moment in moments])
    gram, cross, square = stacked[:, :-1, :-1], stacked[:, :-1, -1], stacked[:, -1, -1]
    identity = np.eye(gram.shape[1])

    def surprise(logarithms: Array) -> float:
        model, price, cell = np.maximum(np.exp(logarithms), _SMALLEST_SPREAD)
        variance = np.r_[model**2, np.full(gram.shape[1] - 1, price**2)] / cell**2
        inner = identity + variance[:, None] * gram
        solved = np.linalg.solve(inner, (variance * cross)[:, :, None])[:, :, 0]
        fit = (square - (cross * solved).sum(axis=1)) / cell**2
        return float(np.sum(2 * counts * np.log(cell) + np.linalg.slogdet(inner)[1] + fit))

    origin = np.log(np.maximum([start.model, start.price, start.cell], 0.01))
    simplex = np.vstack([origin, origin + 0.3 * np.eye(3)])
    options = {"xatol": 0.02, "fatol": 0.01, "initial_simplex": simplex}
    found = minimize(surprise, origin, method="Nelder-Mead", options=options)
    return Spread(*(float(value) for value in np.maximum(np.exp(found.x), _SMALLEST_SPREAD)))


def _update(prices: Array, covariance: Array, cell_sd: float, rows: _Cells) -> tuple[Array, Array]:
    """Prices and their covariance, updated with the rows of a model; prices stay non-negative."""
    scale = np.sqrt(np.diag(covariance))
    used = scale > 0
    correlation = covariance[np.ix_(used, used)] / np.outer(scale[used], scale[used])
    whiten = np.linalg.inv(np.linalg.cholesky(correlation + 1e-9 * np.eye(len(correlation))))
    system = np.vstack([rows.shares[:, used] * scale[used] / cell_sd, whiten])
    target = np.r_[np.full(len(rows.measured), 1 / cell_sd), whiten @ (prices[used] / scale[used])]
    updated, spread = np.zeros(len(prices)), np.zeros_like(covariance)
    updated[used] = nnls(system, target)[0] * scale[used]
    spread[np.ix_(used, used)] = np.linalg.inv(system.T @ system) * np.outer(scale[used], scale[used])
    return updated, spread
