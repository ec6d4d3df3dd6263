"""A GPU left out: its energies predicted from another GPU's law, with prices scaled by the two data sheets.

`python benchmarks/other_gpus.py [--llm-inference-bench CSV] [--ml-energy CSV]`, with the files of law_table.py.

What moves bytes (steps of a batch, experts, tokens of context) takes time in inverse proportion to the bandwidth of
memory, what computes (requests of a step, prompts) in inverse proportion to FLOP/s, and all take power in proportion
to the boards' limits. So a price in joules is multiplied by the ratio of power limits over the ratio of rates. Printed:
the mean error over the rows of each pair, how often they lie in the interval, and the same without scaling.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from law_table import llm_inference_bench, ml_energy

from sweetspot import gpus
from sweetspot.fit.fit import fit_table
from sweetspot.fit.outliers import screen
from sweetspot.fit.solve import Points, Skipped, design, solve
from sweetspot.predict.laws import LAWS
from sweetspot.table import read as table

COMPUTED = {"u", "t1", "t3"}
"""Prices of arithmetic; all others are of bytes, or of time in general."""
_MODEL_ERROR = 0.15  # standard deviation assumed of the scaling itself, before any pair was seen


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm-inference-bench", type=Path)
    parser.add_argument("--ml-energy", type=Path)
    options = parser.parse_args()
    if options.llm_inference_bench:
        show("LLM-Inference-Bench", llm_inference_bench(options.llm_inference_bench), ("A100", "H100", "GH200"))
    if options.ml_energy:
        both = [ml_energy(options.ml_energy, gpu) for gpu in ("H100", "B200")]
        show("ML.ENERGY", pl.concat(both, how="diagonal"), ("H100", "B200"))


def show(name: str, rows: pl.DataFrame, kinds: tuple[str, ...]) -> None:
    """Print the errors of each ordered pair of GPUs in one data set."""
    with tempfile.TemporaryDirectory() as directory:
        rows.write_parquet(Path(directory) / "rows.parquet")
        read = table.read([Path(directory) / "rows.parquet"])
    laws = {(g["model"], g["engine"], g["gpu"]): g["law"] for g in fit_table(read)["groups"]}
    cells = screen(read.frame).cells.partition_by("model", "engine", "gpu", as_dict=True)
    print(f"\n## {name}\n\n| from | to | models | rows | scaled | not scaled | in 95 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in kinds:
        for other in kinds:
            pairs = [
                (of, cells[model, engine, to], laws[model, engine, gpu])
                for (model, engine, gpu), of in cells.items()
                for (same, there, to) in cells
                if (model, engine) == (same, there) and kind(gpu) == one != other == kind(to)
            ]
            found = [error for pair in pairs if (error := errors(*pair, one, other)) is not None]
            if found:
                scaled, plain, inside = map(np.concatenate, zip(*found, strict=True))
                print(
                    f"| {one} | {other} | {len(found)} | {len(scaled)} | {100 * scaled.mean():.1f} % | "
                    f"{100 * plain.mean():.1f} % | {100 * inside.mean():.0f} % |"
                )


def kind(gpu: str) -> str:
    """The short name of a GPU in these tables."""
    return next((name for name in ("GH200", "H100", "A100", "B200") if name in gpu), gpu)


def errors(of: pl.DataFrame, to: pl.DataFrame, law: str | None, one: str, other: str) -> tuple[np.ndarray, ...] | None:
    """Relative errors on the rows of the other GPU, scaled and not, and whether they lie in the interval."""
    if law is None or isinstance(solution := solve(LAWS[law], Points.of(of)), Skipped):
        return None
    points, source, target = Points.of(to), gpus.find(one), gpus.find(other)
    assert source
    assert target
    power = target.tdp_w / source.tdp_w
    moved = power * source.bandwidth_bytes_per_s / target.bandwidth_bytes_per_s
    computed = power * source.peak_flops["bfloat16"] / target.peak_flops["bfloat16"]
    factors = np.array([computed if term.name in COMPUTED else moved for term in LAWS[law].terms])
    features = design(LAWS[law], points)
    scaled, plain = features @ (solution.values * factors), features @ solution.values
    variance = solution.relative_variance(features, points.tokens) + _MODEL_ERROR**2
    inside = np.abs(points.target / scaled - 1) <= solution.quantile * np.sqrt(variance)
    return np.abs(scaled / points.target - 1), np.abs(plain / points.target - 1), inside


if __name__ == "__main__":
    main()
