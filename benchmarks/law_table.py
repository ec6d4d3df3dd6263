"""Law × scheme × data set: MAPE, the worst group, and the coverage of 95 % intervals, as docs/law-table.md shows them.

`python benchmarks/law_table.py [results/study] [--llm-inference-bench CSV] [--ml-energy CSV] [--composed CSV ...]`

The simulated sets: a finished campaign as its sensors saw it, and the same with 3 % of noise a row. The
published ones are rows that nobody here measured: the eight TensorRT-LLM H100 rows of LLM-Inference-Bench are in
published.py; --llm-inference-bench takes all its power results (argonne-lcf/LLM-Inference-Bench, commit 4211f5d4,
Plots/Fig_16_a_b/power_results.csv; columns here: gpu, n_gpu, engine, model, batch, energy_j, latency_s, nin, nout), and
--ml-energy the ML.ENERGY Leaderboard v3 (ml-energy/leaderboard, commit 0cd52dab; columns model, task, arch, precision,
gpu, n_gpu, tp, ep, dp, avg_batch, avg_out, j_per_tok). ML.ENERGY states no input lengths: within a curve they are one
mix, so a constant stands in for them, and only what depends on the batch can be learned. --composed takes tables of
durations that AIConfigurator composes of kernels measured by NVIDIA (cli_estimate, mode static; columns of ours, with
experts and experts_per_token for a mixture): they are fitted in place of energies.
"""

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from published import TENSORRT_LLM

from sweetspot.fit.fit import fit_table
from sweetspot.fit.validation import validate
from sweetspot.predict.laws import CHOSEN
from sweetspot.report.words import source_label
from sweetspot.table import read as table
from sweetspot.table.schema import GROUP

NOISE = 0.03
FEWEST = 5  # rows of a curve; with fewer no three coefficients can be judged
# Experts of a layer and how many a token activates, from the publishers' config.json.
MIXTURES = {
    "Qwen3-.*30B-A3B": (128, 8),
    "Qwen3-.*235B-A22B": (128, 8),
    "gpt-oss-20b": (32, 4),
    "gpt-oss-120b": (128, 4),
    "Llama-4-Scout-17B-16E": (16, 1),
    "Llama-4-Maverick-17B-128E": (128, 1),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, default=Path("results/study"))
    parser.add_argument("--llm-inference-bench", type=Path)
    parser.add_argument("--ml-energy", type=Path)
    parser.add_argument("--composed", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    sets = {"LLM-Inference-Bench, 8 rows": eight_rows()}
    if (options.study / "measurements.parquet").is_file():
        rows = pl.read_parquet(options.study / "measurements.parquet")
        noise = np.exp(np.random.default_rng(1).normal(0, NOISE, rows.height))
        label = source_label(rows["source"]) or "MEASURED"
        sets[label] = rows
        sets[f"{label}, +{100 * NOISE:.0f} % noise"] = rows.with_columns(pl.col("energy_j") * pl.Series(noise))
    if options.llm_inference_bench:
        sets["LLM-Inference-Bench, all"] = llm_inference_bench(options.llm_inference_bench)
    if options.ml_energy:
        curves = ml_energy(options.ml_energy)
        sets["ML.ENERGY H100, dense"] = curves.filter(pl.col("experts").is_null())
        sets["ML.ENERGY H100, experts"] = curves.filter(pl.col("experts").is_not_null())
    for path in options.composed:
        rows = pl.read_csv(path)
        sets[f"COMPOSED of measured kernels: {rows['model'][0]}, {rows['precision'][0]}"] = rows.with_columns(
            energy_j="duration_s", source=pl.lit("simulated-kernels")
        ).drop("duration_s")
    for name, rows in sets.items():
        show(name, rows)


def show(name: str, rows: pl.DataFrame) -> None:
    """Print one data set: how often each law is chosen, and the errors of all, the chosen ones first."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.parquet"
        rows.write_parquet(path)
        read = table.read([path])
    groups = fit_table(read)["groups"]
    errors = validate(read)[0].filter(pl.col("mape_percent").is_not_null())
    laws = pl.DataFrame([{**{key: group[key] for key in GROUP}, "law": group["law"]} for group in groups])
    nested = errors.filter(pl.col("law") == CHOSEN).with_columns(law=pl.lit("CHOSEN, nested"))
    chosen = errors.join(laws, on=[*GROUP, "law"]).with_columns(law=pl.lit("CHOSEN"))
    shown = (
        pl.concat([nested, chosen, errors.filter(pl.col("law") != CHOSEN)])
        .group_by("law", "scheme", maintain_order=True)
        .agg(
            pl.len().alias("groups"),
            pl.col("mape_percent").mean().round(2).alias("mean MAPE"),
            pl.col("mape_percent").max().round(2).alias("worst group"),
            pl.col("worst_ape_percent").max().round(1).alias("worst cell"),
            pl.col("coverage_percent").mean().round(1).alias("coverage"),
        )
        .with_columns(pl.col(pl.Float64).cast(pl.String).fill_null("–"))
    )
    counts = ", ".join(f"{law} {count}" for law, count in laws["law"].value_counts(sort=True).iter_rows())
    print(f"\n## {name}\n\n{len(groups)} groups, {sum(group['cells'] for group in groups)} cells; chosen: {counts}.\n")
    with pl.Config(
        tbl_rows=-1,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN",
        fmt_str_lengths=30,
    ):
        print(shown)


def eight_rows() -> pl.DataFrame:
    """The eight TensorRT-LLM H100 rows of LLM-Inference-Bench."""
    return pl.DataFrame(
        {
            "model": model,
            "gpu": "NVIDIA H100 80GB HBM3",
            "batch": batch,
            "input_tokens": 1024,
            "output_tokens": 1024,
            "duration_s": duration_s,
            "energy_j": energy_j,
            "source": "published",
        }
        for model, batch, duration_s, energy_j in TENSORRT_LLM
    )


def llm_inference_bench(path: Path) -> pl.DataFrame:
    """All rows of its power results that one GPU made."""
    rows = pl.read_csv(path).filter(pl.col("n_gpu") == 1)
    return rows.select(
        *("model", "gpu", "engine", "batch", "energy_j"),
        input_tokens="nin",
        output_tokens="nout",
        duration_s="latency_s",
        source=pl.lit("published"),
    )


def ml_energy(path: Path, gpu: str = "H100") -> pl.DataFrame:
    """Curves of energy against running batch on one kind of GPU, with constant lengths in place of each curve's mix."""
    curve = ["model", "task", "precision", "n_gpu", "tp", "ep", "dp"]
    rows = pl.read_csv(path).filter(pl.col("gpu") == gpu).filter(pl.len().over(curve) >= FEWEST)
    output = pl.col("avg_out").mean().over(curve).round()
    batch = pl.col("avg_batch").round().cast(pl.Int64)
    mixture = {
        model: next((value for pattern, value in MIXTURES.items() if re.search(pattern, model)), None)
        for model in rows["model"].unique()
    }
    dense = pl.col("arch").str.contains("Dense")
    if unknown := {m for m in rows.filter(~dense)["model"].unique() if mixture[m] is None}:
        print("left out, experts not known here:", ", ".join(sorted(unknown)))
        rows = rows.filter(~pl.col("model").is_in(list(unknown)))
    experts, per_token = ({model: value and value[i] for model, value in mixture.items()} for i in range(2))
    return rows.select(
        model=pl.format("{} {}", "model", "task"),
        gpu=pl.format("{} x " + gpu, "n_gpu"),
        engine=pl.format("vLLM tp{} ep{} dp{}", "tp", "ep", "dp"),
        precision="precision",
        batch=batch,
        input_tokens=pl.lit(1024),
        output_tokens=output.cast(pl.Int64),
        energy_j=pl.col("j_per_tok") * batch * output.cast(pl.Int64),
        source=pl.lit("published"),
        experts=pl.col("model").replace_strict(experts, return_dtype=pl.Int64),
        experts_per_token=pl.col("model").replace_strict(per_token, return_dtype=pl.Int64),
    )


if __name__ == "__main__":
    main()
