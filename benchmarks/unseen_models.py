"""How well the law across models predicts a model that was not measured: `python benchmarks/unseen_models.py [study]`.

SIMULATED: the 13 models of a finished campaign (default results/study), and the same cells of a roofline in which
models depart from each other. PUBLISHED: ML.ENERGY v3, chat; and, with prices from those rows alone, the H100 rows of
LLM-Inference-Bench (both in published.py).
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
from published import ARCHITECTURES, ML_ENERGY, PROMPT_TOKENS, TENSORRT_LLM, VLLM
from scipy.optimize import lsq_linear

from sweetspot import gpus
from sweetspot.architecture import Architecture
from sweetspot.engines import simulated
from sweetspot.fit import across_models as across
from sweetspot.precision import ElementBytes
from sweetspot.predict import across_models as predict_across
from sweetspot.predict.laws import LAWS
from sweetspot.report.words import source_label
from sweetspot.sensors.simulated import ACTIVE_W, CONTEXT_W
from sweetspot.table import read as table
from sweetspot.table.cells import cell_means
from sweetspot.table.schema import CELL

ROOT = Path(__file__).resolve().parent.parent
CELLS_GIVEN = (0, 3, 6, 12, 24)


def main() -> None:
    study = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "results/study")
    if (study / "measurements.parquet").is_file():
        cells = cell_means(table.read([study / "measurements.parquet"]).frame)
        models, _ = across.read_architectures(study / "architectures", cells["model"].unique(maintain_order=True))
        label = source_label(cells["source"])
        left_out(f"{label}, {study}", cells, models)
        left_out(f"{label}, without Falcon 7B", cells.filter(pl.col("model") != "falcon-7b"), models)
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
    entries, held_out = across.fit_across_models(cells, models)
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
    """Energy error on the other cells of a model left out, after some of its cells; beside its own steps-8."""
    print("  energy MAPE in % on the other cells of a new model after k of its cells (worst model; coverage); steps-8")
    entries = {}
    for model in models:
        entries[model] = across.fit_across_models(cells.filter(pl.col("model") != model), models)[0][0]
    for how in ("random", "spread"):
        line = f"  {how:<7}"
        for count in CELLS_GIVEN:
            errors, covered, own_law = [], [], []
            for model, arch in models.items():
                mine = cells.filter(pl.col("model") == model)
                given = pick(mine, count, how)
                rest = mine.filter(~pl.Series(given))
                own = pool(entries[model], arch, mine.filter(pl.Series(given))) if count else None
                error, inside = judge(entries[model], arch, rest, own)
                errors.append(error)
                covered.append(inside)
                own_law += batch_8(mine.filter(pl.Series(given)), rest)
            line += f"  {count}: {fmean(errors):.2f} ({max(errors):.1f}; {fmean(covered):.0%})"
            line += f" b8 {fmean(own_law):.2f}" if own_law else ""
        print(line)
    full = [judge(entries[m], a, mine, pool(entries[m], a, mine))[0] for m, a, mine in each(cells, models)]
    grid = [error for _, _, mine in each(cells, models) for error in batch_8(mine, mine)]
    print(f"  all cells, in-sample: {fmean(full):.2f} ({max(full):.1f}) b8 {fmean(grid):.2f}")


def pool(entry: dict[str, Any], arch: Architecture, cells: pl.DataFrame) -> dict[str, Any]:
    """The prices of energy of an entry, pulled towards some cells of a model that it was fitted without."""
    law, terms, measured = (
        entry["energy"],
        across.terms_of(cells, {cells["model"][0]: arch}),
        cells["energy_j"].to_numpy(),
    )
    prices = np.array(list(law["prices"].values()))
    miss = np.log(terms @ prices / measured)
    miss -= np.median(miss)
    usual = np.abs(miss) <= across.far(miss)
    rows = across._Cells(terms[usual], measured[usual])
    found = across._update(prices, np.array(law["covariance"]), law["relative_sd"]["cell"], rows)
    return {"energy": across._as_json(*found)}


def each(cells: pl.DataFrame, models: dict[str, Architecture]) -> Iterator[tuple[str, Architecture, pl.DataFrame]]:
    for model, arch in models.items():
        mine = cells.filter(pl.col("model") == model)
        if mine.height:
            yield model, arch, mine


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
    """MAPE in percent of the model's own steps-8 law with the same cells; empty where they are too few."""
    law = LAWS["steps-8"]

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
            requests, weights = batch / times, arch.pass_bytes(1, two)
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
    names = {
        "gpu": "NVIDIA H100 80GB HBM3",
        "engine": "vLLM",
        "precision": "bfloat16",
        "parallelism": "tp1",
        "source": "published",
    }
    return pl.DataFrame(rows).with_columns(pl.lit(value).alias(name) for name, value in names.items())


def few_rows(cells: pl.DataFrame) -> None:
    """Errors on the other rows of a model left out, after some of its rows."""
    print("  energy MAPE in % on the other rows of a left-out model after k of its rows (worst model; coverage)")
    line = "  spread "
    for count in (0, 1, 2, 3):
        found = []
        for model, arch, mine in each(cells, ARCHITECTURES):
            entry = across.fit_across_models(cells.filter(pl.col("model") != model), ARCHITECTURES)[0][0]
            middle = np.linspace(0, mine.height - 1, count + 2)[1:-1].round().astype(int)
            given = np.isin(np.arange(mine.height), middle)
            own = pool(entry, arch, mine.filter(pl.Series(given))) if count else None
            if not given.all():
                found.append(judge(entry, arch, mine.filter(~pl.Series(given)), own))
        errors, covered = zip(*found, strict=True)
        line += f"  {count}: {fmean(errors):.1f} ({max(errors):.1f}; {fmean(covered):.0%}; {len(found)} models)"
    print(line)


def other_tables() -> None:
    """Another group's rows, other lengths, models and stack, by prices of ML.ENERGY's alone."""
    entry = across.fit_across_models(ml_energy(PROMPT_TOKENS), ARCHITECTURES)[0][0]
    print("\nPUBLISHED LLM-Inference-Bench, H100, 1024 in and out, by prices from ML.ENERGY only (no row of it fitted)")
    for engine, rows in (("vLLM", VLLM), ("TensorRT-LLM", TENSORRT_LLM)):
        energies, times, inside, shown = [], [], [], []
        for name, batch, duration_s, energy_j in rows:
            answer = predict_across.predict_by(entry, ARCHITECTURES[name], 1024, 1024, batch)
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
