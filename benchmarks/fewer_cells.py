"""Accuracy against the number of cells: `python benchmarks/fewer_cells.py [results/study] [--noise 0.02]`.

Takes a finished campaign with the whole grid and fits laws to a part of each model's cells: chosen by
`sweetspot.campaign.design` (the guess of the energies comes from ANOTHER model of the campaign), at random, or all. The
error is that of the other cells, which the fit has not seen; of the full grid it is the 5-fold error. --noise adds
noise to each cell.
"""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from sweetspot.campaign.design import cell_seconds, propose
from sweetspot.fit.heldout import hold_out
from sweetspot.fit.solve import Array, Points, Solution, design, solve
from sweetspot.measure.protocol import Protocol
from sweetspot.predict.laws import LAWS, Law
from sweetspot.report.words import source_label
from sweetspot.table import read as table
from sweetspot.table.cells import cell_means

COUNTS = (8, 10, 12, 16, 24, 36)
DRAWS = 10  # random choices of cells


def main() -> None:
    """Print a table for one batch (49 cells) and one for all batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, default=Path("results/study"))
    parser.add_argument("--noise", type=float, default=0.02)
    options = parser.parse_args()
    rows = table.read([options.study / "measurements.parquet"]).frame
    cells = cell_means(rows)
    print(f"{source_label(rows['source']) or 'MEASURED'}, {100 * options.noise:g} % noise added to each cell")
    batches = sorted(cells["batch"].unique())
    middle = batches[len(batches) // 2]
    show(LAWS["paper-6"], cells.filter(pl.col("batch") == middle), options.noise)
    show(LAWS["steps-8"], cells, options.noise)


def show(law: Law, cells: pl.DataFrame, noise: float) -> None:
    """Print mean held-out error over the models by number of cells."""
    random = np.random.default_rng(1)
    groups = cells.partition_by("model", maintain_order=True)
    lines: dict[int, list[tuple[float, float, float]]] = {count: [] for count in COUNTS}
    whole = []
    for index, frame in enumerate(groups):
        exact = Points.of(frame)
        points = dataclasses.replace(exact, target=exact.target * np.exp(random.normal(0, noise, len(exact))))
        other = solve(law, Points.of(groups[(index + len(groups) // 2) % len(groups)]))
        assert isinstance(other, Solution)
        seconds = np.array([cell_seconds(run_s, Protocol()) for run_s in frame["duration_s"]])
        guess = dataclasses.replace(points, target=design(law, points) @ other.values)
        nothing = np.zeros(len(points), dtype=bool)
        order = propose(law, other.values, guess, seconds, nothing, max(COUNTS), noise or 0.01)
        folds = hold_out(law, points, "5-fold")
        whole.append(np.mean([error for fold in folds for error in ape(points, fold.predicted)[fold.known]]))
        for count, line in lines.items():
            chance = [unseen(law, points, list(random.permutation(len(points))[:count])) for _ in range(DRAWS)]
            share = 100 * seconds[order[:count]].sum() / seconds.sum()
            line.append((unseen(law, points, order[:count]), mean_of_known(chance), share))
    most = max(len(frame) for frame in groups)
    print(f"\n{law.name}, {len(groups)} models, at most {most} cells each; held-out MAPE in percent")
    print(f"{'cells':>6}{'designed':>10}{'random':>10}{'full grid':>11}{'GPU time of the full grid':>28}")
    for count, line in lines.items():
        few, at_random, share = (mean_of_known(column) for column in zip(*line, strict=True))
        print(f"{count:>6}{few:>10.2f}{at_random:>10.2f}{np.mean(whole):>11.2f}{share:>26.1f} %")


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of what is not NaN."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def unseen(law: Law, points: Points, chosen: list[int]) -> float:
    """Mean error in percent of the cells that are not chosen; NaN where the chosen cannot carry the law."""
    mask = np.isin(np.arange(len(points)), chosen)
    solution = solve(law, points.take(mask))
    if mask.all() or not isinstance(solution, Solution):
        return float("nan")
    return float(ape(points, design(law, points) @ solution.values)[~mask].mean())


def ape(points: Points, predicted: Array) -> Array:
    """Absolute error of each cell, in percent."""
    return 100 * np.abs(predicted / points.target - 1)


if __name__ == "__main__":
    main()
