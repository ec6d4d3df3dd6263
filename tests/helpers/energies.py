"""Tables of energies that a law would give, with coefficients that are known."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from sweetspot.predict.laws import LAWS, per_token
from sweetspot.predict.sweet_spots import sweet_spot

GRID = (64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 8, 32, 128)
MIXTURE = (128, 8)  # experts, and how many a token activates
TRUTH = {
    "linear": {"c0": 3.0, "c1": 0.02, "c2": 1.5},
    "wilkins": {"a0": 0.02, "a1": 1.5, "a2": 1e-4},
    "paper-5": {"t0": 1.5, "t1": 4e-6, "t2": 1e-4, "t3": 0.02, "t4": 3e-5},
    "paper-6": {"t0": 1.5, "t1": 4e-6, "t2": 1e-4, "t3": 0.02, "t4": 3e-5, "t5": 20.0},
    "steps-5": {"t0": 1.5, "t2": 1e-4, "t1": 4e-6, "t3": 0.02, "t5": 20.0},
    "steps-8": {"u": 0.02, "v": 1.5, "t2": 1e-4, "a": 1e-5, "t1": 4e-6, "t3": 0.02, "w": 0.1, "x": 20.0},
    "experts-10": {"u": 0.02, "v": 0.5, "c": 0.3, "y": 3.0, "z": 1.0, **dict(t2=1e-4, t1=4e-6, t3=0.02, w=0.1, x=20.0)},
    "skewed-9": {"u": 0.02, "v": 0.5, "c": 0.3, "y": 3.0, **dict(t2=1e-4, t1=4e-6, t3=0.02, w=0.1, x=20.0)},
}


def measured(
    law: str = "steps-5",
    inputs: Iterable[int] = GRID,
    outputs: Iterable[int] = GRID,
    batches: Iterable[int] = (8,),
    noise: float = 0.0,
    seed: int = 1,
    cells: Iterable[tuple[int, int, int]] | None = None,
    values: dict[str, float] | None = None,
    capacity: int | None = None,
    **columns: Any,
) -> pl.DataFrame:
    """Rows that a law would give, with log-normal noise; `cells` (input, output, batch) replaces the full grid.

    `capacity`: tokens that the KV cache holds; a batch that does not fit runs in equal waves.
    """
    random = np.random.default_rng(seed)
    rows = []
    for n, m, batch in cells or itertools.product(inputs, outputs, batches):
        waves = 1 if capacity is None else math.ceil(batch / (capacity // (n + m)))
        token = per_token(LAWS[law], values or TRUTH[law], n, m, batch / waves, MIXTURE[1] / MIXTURE[0])
        token *= math.exp(random.normal(0, noise))
        row = {"model": "m", "batch": batch, "input_tokens": n, "output_tokens": m, "energy_j": token * m * batch}
        if LAWS[law].needs_experts:
            row |= dict(zip(("experts", "experts_per_token"), MIXTURE, strict=True))
        if capacity is not None:
            row |= {"waves": waves, "in_flight": min(batch, capacity // (n + m))}
        rows.append(row | columns)
    return pl.DataFrame(rows)


def energy(n: int, m: int, batch: int) -> float:
    """Joules of a batch run by a law of the right form."""
    per_token = 0.05 + 2.5 / batch + 2e-6 * n * n / m + 1e-5 * n + 0.03 * n / m + 5e-6 * m + (0.5 + 3 / batch) / m
    return per_token * batch * m


def spot_of(law: str, values: Mapping[str, float], n: float, batch: float) -> float | None:
    """The sweet spot of a law where the KV cache never is full and every reply was measured."""
    return sweet_spot(LAWS[law], values, n, batch, (1, 1e12)).output_tokens
