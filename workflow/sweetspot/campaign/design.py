"""Chooses the cells to measure next: the most informative about the law per second of GPU time.

The law is linear in its coefficients, so how well a set of cells determines it depends only on guessed energies, not on
measurements. Cells are added greedily: each is the one that lowers the mean variance of the predictions over the whole
grid most per second of GPU time (Bayesian I-optimal design). The prior of an unknown coefficient has a standard
deviation as large as its guess.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from sweetspot.campaign.campaign import Campaign
from sweetspot.campaign.survey import simulated_spec
from sweetspot.engines import simulated
from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.fit.solve import Array, Mask, Points, Skipped, design, solve
from sweetspot.measure.protocol import Protocol
from sweetspot.predict.laws import LAWS, Law
from sweetspot.predict.predictor import predict
from sweetspot.table.read import Table
from sweetspot.table.schema import CELL

NOISE = 0.01  # relative standard deviation of a measured cell about its law, before any measurement
_GUESS = 1.0  # relative standard deviation of a coefficient before any measurement
_LEAST_SHARE = 0.05  # every term is assumed to be at least this share of the energy of some cell


def propose(
    law: Law, values: Array, grid: Points, seconds: Array, measured: Mask, count: int, noise: float = NOISE
) -> list[int]:
    """The indices of the next `count` cells of `grid`, best first; fewer if the grid has no more.

    `values`: guessed coefficients of `law`. `grid`: all cells that can be measured, with guessed energies as the
    target. `seconds`: GPU time of each cell. `measured`: which cells are measured already.
    """
    shares = design(law, grid) / grid.target[:, None]
    size = np.maximum(np.abs(values), _LEAST_SHARE / shares.max(axis=0))
    shares = shares * size
    known = shares[measured]
    covariance = np.linalg.inv(np.eye(shares.shape[1]) / _GUESS**2 + known.T @ known / noise**2)
    left = ~measured
    proposed: list[int] = []
    while left.any() and len(proposed) < count:
        between = shares @ covariance @ shares.T
        gain = (between**2).mean(axis=0) / (noise**2 + np.diag(between))
        best = int(np.argmax(np.where(left, gain / seconds, -np.inf)))
        row = covariance @ shares[best]
        covariance = covariance - np.outer(row, row) / (noise**2 + shares[best] @ row)
        left[best] = False
        proposed.append(best)
    return proposed


@dataclass(frozen=True)
class Design:
    """The design for one model.

    `cells`: measured cells, then proposed ones (columns model, batch, input_tokens, output_tokens, proposed).
    `half_width`: mean relative half-width of the 95 % intervals over the grid, from the rows so far; None without a
    validated law. `reached`: whether it is small enough. `seconds` and `joules`: GPU time and energy of the proposed
    cells. `grid_seconds`: GPU time of the whole grid.
    """

    model: str
    cells: pl.DataFrame
    half_width: float | None
    reached: bool
    seconds: float
    grid_seconds: float
    joules: float


def next_cells(campaign: Campaign, rows: Table | None, count: int, accuracy: float) -> list[Design]:
    """For each model of the campaign, up to `count` more cells of its grid; none if `accuracy` is reached.

    `rows`: everything measured so far. `accuracy`: the wanted mean relative half-width of 95 % intervals over the grid.
    The simulator stands in for the energies and durations of unmeasured cells.
    """
    try:
        fitted = fit_table(rows) if rows else None
    except SweetspotError:  # too few cells for any law yet
        fitted = None
    return [_of_model(campaign, name, rows, fitted, count, accuracy) for name in campaign.models]


def _of_model(
    campaign: Campaign, model: str, rows: Table | None, fitted: Mapping[str, Any] | None, count: int, accuracy: float
) -> Design:
    frame = _grid(campaign, model)
    measured = pl.DataFrame(schema={name: pl.Int64 for name in CELL})
    if rows is not None:
        own = rows.frame.filter(pl.col("model") == model, pl.col("valid"))
        measured = own.group_by(CELL, maintain_order=True).agg(pl.col("energy_j", "duration_s").mean())
        frame = frame.update(measured.drop_nulls(), on=CELL)
        measured = measured.select(CELL)
    half_width = _half_width(fitted, model, frame)
    reached = half_width is not None and half_width <= accuracy
    grid = Points.of(frame)
    law = LAWS["steps-8" if len(np.unique(grid.in_wave)) > 1 else "steps-5"]
    guess = solve(law, grid)
    if isinstance(guess, Skipped):
        raise SweetspotError(f"{model}: the grid is too small for a design: {guess.reason}")
    target = design(law, grid) @ guess.values
    seconds = np.array([cell_seconds(run_s, campaign.config.protocol) for run_s in frame["duration_s"]])
    there = frame.join(measured.with_columns(_there=True), on=CELL, how="left", maintain_order="left")
    mask = there["_there"].fill_null(False).to_numpy()
    grid = dataclasses.replace(grid, target=target)
    chosen = [] if reached else propose(law, guess.values, grid, seconds, mask, count)
    runs = seconds[chosen] / frame["duration_s"].to_numpy()[chosen]
    more = frame[chosen].select(CELL).with_columns(proposed=pl.lit(True))
    cells = pl.concat([measured.with_columns(proposed=pl.lit(False)), more])
    return Design(
        model,
        cells.select(pl.lit(model).alias("model"), *CELL, "proposed"),
        half_width,
        reached,
        float(seconds[chosen].sum()),
        float(seconds.sum()),
        float((runs * frame["energy_j"].to_numpy()[chosen]).sum()),
    )


def _grid(campaign: Campaign, model: str) -> pl.DataFrame:
    """The cells of the grid that can run, with simulated energy, duration and waves."""
    cells = [cell for cell in campaign.grid if cell.model == model and cell.status == "run"]
    longest = max((cell.input_tokens + cell.output_tokens for cell in cells), default=0)
    rows = []
    for cell in cells:
        spec = simulated_spec(campaign, model, cell.batch, longest)
        energy_j, duration_s, waves = simulated.expected(spec, cell.input_tokens, cell.output_tokens)
        place = {name: getattr(cell, name) for name in CELL}
        rows.append({**place, "energy_j": energy_j, "duration_s": duration_s, "waves": float(waves)})
    if not rows:
        raise SweetspotError(f"{model}: no cell of its grid can run")
    nothing = [pl.lit(None, dtype=pl.Int64).alias(name) for name in ("experts", "experts_per_token")]
    return pl.DataFrame(rows).with_columns(nothing)


def _half_width(fitted: Mapping[str, Any] | None, model: str, frame: pl.DataFrame) -> float | None:
    """Mean relative half-width of the 95 % intervals of the grid's cells; None before a law can be validated."""
    groups = [group for group in fitted["groups"] if group["model"] == model] if fitted else []
    if fitted is None or len(groups) != 1 or "held-out" not in groups[0]["chosen_because"]:
        return None
    widths = []
    for batch, n, m in frame.select(CELL).iter_rows():
        try:
            parts = predict(fitted, model, n, m, batch).interval_parts
        except SweetspotError:  # no law extends to this unmeasured batch
            return None
        widths.append(np.hypot(parts["law"], parts["distance"]))
    return float(np.mean(widths))


def cell_seconds(run_s: float, protocol: Protocol) -> float:
    """GPU time of a cell whose batch runs take `run_s`: warm-up and all repetitions of the protocol."""
    window_s = max(protocol.window_s, min(protocol.window_runs * run_s, protocol.window_max_s), run_s)
    return max(protocol.warmup_s, protocol.warmup_runs * run_s) + protocol.repetitions * window_s
