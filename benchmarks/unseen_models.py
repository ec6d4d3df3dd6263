"""How well the law across models predicts a model that was not measured: `python benchmarks/unseen_models.py [study]`.

SIMULATED: the 13 models of a finished campaign (default results/study), and the same cells of a simulation in which
models depart from each other. PUBLISHED: ML.ENERGY v3 (Chung et al., NeurIPS D&B 2025; vLLM 0.11.1 on one H100, chat;
github ml-energy/leaderboard, commit 0cd52dab, Apache-2.0), the length of whose prompts is not published; and, with
prices from those rows alone, the H100 rows of LLM-Inference-Bench (SC24 workshops; commit 4211f5d4, BSD-3-Clause).
"""

import dataclasses
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import lsq_linear
from simulator_vs_published import LLAMA_2_7B, LLAMA_3_8B
from simulator_vs_published import PUBLISHED as TENSORRT_LLM

from sweetspot import gpus
from sweetspot.architecture import Architecture, ElementBytes
from sweetspot.engines import simulated
from sweetspot.fit import across_models as across
from sweetspot.predict import across_models as predict_across
from sweetspot.predict.laws import LAWS
from sweetspot.sensors.simulated import ACTIVE_W, CONTEXT_W
from sweetspot.table import read as table
from sweetspot.table.cells import cell_means
from sweetspot.table.schema import CELL

ROOT = Path(__file__).resolve().parent.parent
CELLS_GIVEN = (0, 3, 6, 12, 24)
PROMPT_TOKENS = 200  # not published; the errors hardly depend on it, which is printed

# Running batch, output tokens of a request (both means), J of a request with its prompt, output tokens/s.
ML_ENERGY = {
    "Qwen/Qwen3-14B": [
        (7.99, 619.5, 437.45, 627.4),
        (15.97, 621.6, 247.58, 1168.2),
        (31.92, 611.4, 149.24, 2023.2),
        (63.84, 617.2, 103.19, 3140.3),
        (95.88, 622.8, 89.39, 3774.8),
        (127.71, 613.5, 78.44, 4474.4),
        (191.66, 612.6, 70.71, 5309.1),
        (253.41, 624.6, 69.90, 5760.3),
    ],
    "Qwen/Qwen3-32B": [
        (7.99, 637.7, 1100.48, 312.0),
        (15.97, 625.5, 601.34, 589.0),
        (29.26, 629.3, 392.69, 960.5),
    ],
    "Qwen/Qwen3-8B": [
        (7.97, 646.6, 287.09, 961.7),
        (15.96, 660.1, 170.75, 1744.9),
        (31.94, 646.8, 105.62, 2927.9),
        (63.88, 644.5, 76.84, 4314.7),
        (95.82, 642.0, 66.45, 5254.7),
        (127.80, 641.4, 61.98, 5930.3),
        (191.69, 658.6, 57.01, 6932.1),
        (255.49, 654.0, 53.62, 7718.8),
        (382.98, 648.3, 48.80, 8257.5),
        (474.40, 645.1, 46.53, 8534.6),
    ],
    "google/gemma-3-12b-it": [
        (7.98, 728.0, 511.13, 604.3),
        (15.97, 723.6, 302.40, 1082.3),
        (31.94, 725.2, 196.38, 1786.6),
        (63.89, 717.7, 144.14, 2691.4),
        (95.84, 729.1, 130.13, 3224.4),
        (127.78, 723.0, 120.11, 3545.6),
    ],
    "google/gemma-3-27b-it": [
        (7.99, 719.1, 1086.46, 337.8),
        (15.97, 725.5, 626.41, 624.6),
        (31.73, 714.3, 375.12, 1088.2),
    ],
    "meta-llama/Llama-3.1-8B-Instruct": [
        (7.98, 388.7, 176.77, 1069.6),
        (15.95, 404.2, 106.21, 1953.6),
        (31.91, 390.3, 64.43, 3391.1),
        (63.92, 395.5, 46.90, 5147.2),
        (95.70, 392.8, 40.41, 6260.1),
        (127.62, 404.6, 38.48, 7036.5),
        (191.66, 396.8, 33.21, 8223.3),
        (255.19, 404.2, 30.98, 9009.6),
        (383.01, 394.3, 29.27, 9248.0),
        (510.87, 396.7, 27.84, 9805.6),
        (690.87, 397.4, 28.35, 9602.8),
    ],
}
# model, batch, latency of the whole batch in s, energy of the whole batch in J; 1024 tokens in, 1024 out
VLLM = [
    ("Llama-2-7B", 1, 7.84, 2877.4),
    ("Llama-2-7B", 16, 13.17, 6515.7),
    ("Llama-2-7B", 32, 18.99, 10448.7),
    ("Llama-2-7B", 64, 32.64, 19407.9),
    ("Llama-3-8B", 1, 8.10, 2941.7),
    ("Llama-3-8B", 16, 11.02, 4456.2),
    ("Llama-3-8B", 32, 13.06, 5681.9),
    ("Llama-3-8B", 64, 18.81, 8566.9),
]


def dimensions(layers: int, hidden: int, heads: int, kv: int, size: int, ffn: int, vocabulary: int) -> dict[str, Any]:
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    config = dict(zip(keys, (layers, hidden, heads, kv, size), strict=True))
    sizes = {"intermediate_size": ffn, "vocab_size": vocabulary, "max_position_embeddings": 40960}
    return {"model_type": "llama", **config, **sizes}


def gemma_3(layers: int, hidden: int, heads: int, kv: int, size: int, ffn: int) -> dict[str, Any]:
    """The text model: every sixth layer attends to everything, the others to a window of 1024."""
    kinds = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(layers)]
    config = dimensions(layers, hidden, heads, kv, size, ffn, 262208)
    return config | {"model_type": "gemma2", "sliding_window": 1024, "layer_types": kinds}


# Dimensions as in the publishers' config.json.
CONFIGS = {
    "Qwen/Qwen3-8B": dimensions(36, 4096, 32, 8, 128, 12288, 151936),
    "Qwen/Qwen3-14B": dimensions(40, 5120, 40, 8, 128, 17408, 151936),
    "Qwen/Qwen3-32B": dimensions(64, 5120, 64, 8, 128, 25600, 151936),
    "meta-llama/Llama-3.1-8B-Instruct": dimensions(32, 4096, 32, 8, 128, 14336, 128256),
    "google/gemma-3-12b-it": gemma_3(48, 3840, 16, 8, 256, 15360),
    "google/gemma-3-27b-it": gemma_3(62, 5376, 32, 16, 128, 21504),
}
ARCHITECTURES = {name: Architecture.from_config(config, name) for name, config in CONFIGS.items()}


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "results/study")
    if (study / "measurements.parquet").is_file():
        cells = cell_means(table.read([study / "measurements.parquet"]).frame)
        models, _ = across.read_architectures(study / "architectures", cells["model"].unique(maintain_order=True))
        left_out(f"SIMULATED, {study}", cells, models)
        learning_curve(cells, models)
        for spread in (0.1, 0.2):
            worlds = [depart(cells, models, spread, seed) for seed in range(5)]
            for world in worlds:
                left_out(f"SIMULATED, models depart by {spread:.0%}", world, models)
            learning_curve(worlds[0], models)
    else:
        print(f"{study}: no finished campaign; snakemake --profile local --configfile config/study.yaml")
    for prompt in (50, PROMPT_TOKENS, 400):
        left_out(f"PUBLISHED ML.ENERGY v3, prompts taken as {prompt}", ml_energy(prompt), ARCHITECTURES)
    few_rows(ml_energy(PROMPT_TOKENS))
    other_tables()


def left_out(name: str, cells: pl.DataFrame, models: dict[str, Architecture]) -> None:
    """Errors on models left out."""
    entries, held_out = across.fit_and_hold_out(cells, models)
    entry = entries[0]
    print(f"\n{name}: {len(entry['models'])} models, {cells.height} cells; each model predicted by the others")
    for target in ("energy", "duration"):
        error = entry[target]["leave_one_model_out"]
        print(
            f"  {target:<9} mean {error['mape_percent']:.2f} %, worst model {error['worst_model_mape_percent']:.2f} % "
            f"({error['worst_model']}), worst cell {error['worst_ape_percent']:.1f} %, "
            f"95 % intervals hold {error['coverage_percent']:.1f} %; in-sample "
            f"{entry[target]['in_sample_mape_percent']:.2f} %"
        )
    power = (held_out["predicted_j"] / held_out["predicted_s"]).to_numpy()
    print(f"  power predicted: {power.min():.0f} to {power.max():.0f} W")


def learning_curve(cells: pl.DataFrame, models: dict[str, Architecture]) -> None:
    """Energy error on the other cells of a model left out, after some of its cells; beside its own batch-8."""
    print("  energy MAPE in % on the other cells of a new model after k of its cells (worst model; coverage); batch-8")
    entries = {}
    for model in models:
        entries[model] = across.fit_across_models(cells.filter(pl.col("model") != model), models)[0]
    for how in ("random", "spread"):
        line = f"  {how:<7}"
        for count in CELLS_GIVEN:
            errors, covered, own_law = [], [], []
            for model, arch in models.items():
                mine = cells.filter(pl.col("model") == model)
                given = pick(mine, count, how)
                rest = mine.filter(~pl.Series(given))
                own = across.pool(entries[model], arch, mine.filter(pl.Series(given))) if count else None
                error, inside = judge(entries[model], arch, rest, own)
                errors.append(error)
                covered.append(inside)
                own_law += batch_8(mine.filter(pl.Series(given)), rest)
            line += f"  {count}: {fmean(errors):.2f} ({max(errors):.1f}; {fmean(covered):.0%})"
            line += f" b8 {fmean(own_law):.2f}" if own_law else ""
        print(line)
    full = [judge(entries[m], a, mine, across.pool(entries[m], a, mine))[0] for m, a, mine in each(cells, models)]
    grid = [error for _, _, mine in each(cells, models) for error in batch_8(mine, mine)]
    print(f"  all cells, in-sample: {fmean(full):.2f} ({max(full):.1f}) b8 {fmean(grid):.2f}")


def each(cells: pl.DataFrame, models: dict[str, Architecture]) -> Iterator[tuple[str, Architecture, pl.DataFrame]]:
    for model, arch in models.items():
        yield model, arch, cells.filter(pl.col("model") == model)


def judge(entry: dict[str, Any], arch: Architecture, rest: pl.DataFrame, own: Any) -> tuple[float, float]:
    """MAPE in percent and share of cells inside their intervals."""
    law, rows = entry["energy"], across.terms_of(rest, {rest["model"][0]: arch})
    found = np.array(
        [dataclasses.astuple(predict_across.evaluate(law, own and own["energy"], row.tolist())[0]) for row in rows]
    )
    true = rest["energy_j"].to_numpy()
    return float(100 * np.mean(np.abs(found[:, 0] / true - 1))), float(
        np.mean((found[:, 1] <= true) & (true <= found[:, 2]))
    )


def pick(mine: pl.DataFrame, count: int, how: str) -> np.ndarray:
    """Which cells are given: at random, or each as far as can be from those before it in log batch and lengths."""
    given = np.zeros(mine.height, dtype=bool)
    if how == "random":
        given[np.random.default_rng(len(mine["model"][0])).choice(mine.height, count, replace=False)] = True
        return given
    place = np.log(mine.select(CELL).to_numpy().astype(float))
    place = (place - place.mean(axis=0)) / place.std(axis=0)
    distance = (place**2).sum(axis=1)
    for _ in range(count):
        given[distance.argmax()] = True
        nearest = [((place - place[i]) ** 2).sum(axis=1) for i in np.flatnonzero(given)]
        distance = np.min(nearest, axis=0)
    return given


def batch_8(given: pl.DataFrame, rest: pl.DataFrame) -> list[float]:
    """MAPE in percent of the model's own batch-8 law with the same cells; empty where they are too few."""
    law = LAWS["batch-8"]

    def design(frame: pl.DataFrame) -> Any:
        batch, n, m = frame.select(CELL).to_numpy().astype(float).T
        times = frame["waves"].to_numpy() if "waves" in frame.columns else 1.0
        return np.stack([term.value(n, m, batch / times) for term in law.terms], axis=1) * (batch * m)[:, None]

    if given.height <= len(law.terms):
        return []
    share = design(given) / given["energy_j"].to_numpy()[:, None]
    scale = np.linalg.norm(share, axis=0)
    lower = [-np.inf if term.lower is None else term.lower for term in law.terms]
    found = lsq_linear(share / scale, np.ones(given.height), (lower, np.inf), method="bvls").x / scale
    return [float(100 * np.mean(np.abs(design(rest) @ found / rest["energy_j"].to_numpy() - 1)))]


def depart(cells: pl.DataFrame, models: dict[str, Architecture], spread: float, seed: int) -> pl.DataFrame:
    """The cells again, by the simulator's roofline with every constant of a model off by `spread` (s.d.) or so."""
    gpu, draw, rows = gpus.find("H100"), random.Random(seed), []
    assert gpu
    for _, arch, mine in each(cells, models):

        def off(value: float, by: float = 1.0) -> float:
            return value * float(np.exp(draw.gauss(0, by * spread)))

        memory, compute = off(simulated.MEMORY_EFFICIENCY, 0.5), off(simulated.COMPUTE_EFFICIENCY, 0.5)
        launch, layer, request = (
            off(value, 2) for value in (simulated.LAUNCH_S, simulated.LAYER_S, simulated.REQUEST_S)
        )
        half, flop, byte = off(simulated.HALF_TOKENS), off(simulated.J_PER_FLOP), off(simulated.J_PER_BYTE)
        static, gain = off(CONTEXT_W + ACTIVE_W, 0.2), 1 + draw.uniform(-0.05, 0.05)
        for row in mine.iter_rows(named=True):
            batch, n, m = (row[name] for name in CELL)
            times = row.get("waves") or predict_across.waves(arch, row["gpu"], row["precision"], n, m, batch)
            energy, duration, two = 0.0, 0.0, ElementBytes(2, 2)
            requests, weights = batch / times, 2 * arch.matmul_weights()
            chunks = -(-requests * n // simulated.CHUNK_TOKENS)
            cache = requests * arch.kv_bytes(n, 2)
            passes = [(chunks, requests, requests * n, requests * arch.prefill_flops(n), chunks * weights + cache)]
            for first in range(1, m, 256):
                count = min(256, m - first)
                context = n + first + count // 2
                moved = count * arch.decode_bytes(context, 1, two) + count * (requests - 1) * (
                    arch.decode_bytes(context, 1, two) - weights
                )
                passes.append(
                    (count, count * requests, count * requests, count * requests * arch.decode_flops(context), moved)
                )
            for count, emitted, tokens, flops, moved in passes:
                reached = compute * tokens / (tokens + half * count)
                took = max(flops / (gpu.peak_flops["bfloat16"] * reached), moved / gpu.bandwidth_bytes_per_s / memory)
                took += count * (launch + layer * arch.layers) + request * emitted
                spent = static * took + flop * flops + byte * moved
                if spent > gpu.tdp_w * took:  # clocks fall, and power with their square
                    took *= np.sqrt((spent / took - static) / (gpu.tdp_w - static))
                    spent = gpu.tdp_w * took
                energy, duration = energy + times * spent, duration + times * took
            noisy = energy * gain * np.exp(draw.gauss(0, 0.01)), duration * np.exp(draw.gauss(0, 0.005))
            rows.append({**row, "energy_j": noisy[0], "duration_s": noisy[1], "waves": float(times)})
    return pl.DataFrame(rows)


def ml_energy(prompt: int) -> pl.DataFrame:
    """A running batch and what it needs until each of its requests has its mean reply."""
    rows = [
        {"model": model, "batch": batch, "input_tokens": prompt, "output_tokens": round(out)}
        | {"energy_j": joules * batch, "duration_s": batch * out / rate}
        for model, measured in ML_ENERGY.items()
        for batch, out, joules, rate in measured
    ]
    names = {"gpu": "NVIDIA H100 80GB HBM3", "engine": "vLLM", "precision": "bfloat16", "source": "published"}
    return pl.DataFrame(rows).with_columns(pl.lit(value).alias(name) for name, value in names.items())


def few_rows(cells: pl.DataFrame) -> None:
    """Errors on the other rows of a model left out, after some of its rows."""
    print("  energy MAPE in % on the other rows of a left-out model after k of its rows (worst model; coverage)")
    line = "  spread "
    for count in (0, 1, 2, 3):
        found = []
        for model, arch, mine in each(cells, ARCHITECTURES):
            entry = across.fit_across_models(cells.filter(pl.col("model") != model), ARCHITECTURES)[0]
            middle = np.linspace(0, mine.height - 1, count + 2)[1:-1].round().astype(int)
            given = np.isin(np.arange(mine.height), middle)
            own = across.pool(entry, arch, mine.filter(pl.Series(given))) if count else None
            if not given.all():
                found.append(judge(entry, arch, mine.filter(~pl.Series(given)), own))
        errors, covered = zip(*found, strict=True)
        line += f"  {count}: {fmean(errors):.1f} ({max(errors):.1f}; {fmean(covered):.0%}; {len(found)} models)"
    print(line)


def other_tables() -> None:
    """Another group's rows, other lengths, models and stack, by prices of ML.ENERGY's alone."""
    entry = across.fit_across_models(ml_energy(PROMPT_TOKENS), ARCHITECTURES)[0]
    models = {"Llama-2-7B": LLAMA_2_7B, "Llama-3-8B": LLAMA_3_8B}
    print("\nPUBLISHED LLM-Inference-Bench, H100, 1024 in and out, by prices from ML.ENERGY only (no row of it fitted)")
    tensorrt_llm = [(name, batch, duration_s, energy_j) for name, _, batch, duration_s, energy_j in TENSORRT_LLM]
    for engine, rows in (("vLLM", VLLM), ("TensorRT-LLM", tensorrt_llm)):
        energies, times, inside, shown = [], [], [], []
        for name, batch, duration_s, energy_j in rows:
            arch = Architecture.from_config(models[name], name)
            answer = predict_across.predict_by(entry, arch, 1024, 1024, batch)
            assert answer.duration_s
            energies.append(abs(answer.energy_batch_j / energy_j - 1))
            times.append(abs(answer.duration_s / duration_s - 1))
            low, high = answer.energy_per_request_low_j * batch, answer.energy_per_request_high_j * batch
            inside.append(low <= energy_j <= high)
            shown.append(f"{name} x{batch} {answer.energy_batch_j / energy_j - 1:+.0%}")
        print(
            f"  {engine:<13} energy {fmean(energies):.1%} (worst {max(energies):.1%}), time {fmean(times):.1%}, ",
            end="",
        )
        print(f"{sum(inside)} of {len(inside)} inside their intervals\n    {', '.join(shown)}")


if __name__ == "__main__":
    main()
