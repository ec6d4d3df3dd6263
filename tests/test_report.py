"""The figures and the page: what they say, and that they say it of the right rows."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot import table
from sweetspot.fit import fit_table
from sweetspot.validation import validate

FOUR = ("opt-6.7b", "llama-3.1-8b", "gemma-2-9b", "qwen2-7b")
LENGTHS = (64, 256, 512, 1024, 2048)


@dataclass
class Results:
    """What a campaign leaves behind, in the order that `figures.draw_all` and `report.write` take it."""

    measurements: pl.DataFrame
    predictor: dict[str, Any]
    validation: pl.DataFrame
    predictions: pl.DataFrame
    plan: pl.DataFrame | None
    campaign: dict[str, Any] | None


def results(
    directory: Path,
    models: tuple[str, ...] = FOUR,
    lengths: tuple[int, ...] = LENGTHS,
    batches: tuple[int, ...] = (1, 64),
    source: str = "simulated",
) -> Results:
    """A campaign whose rows obey batch-8 within 1 %: one row invalid, one cell of each model without any valid row."""
    rng = random.Random(1)
    rows, plan = [], []
    for index, model in enumerate(models):
        scale = 0.6 + 0.2 * index
        for batch in batches:
            for n in lengths:
                for m in lengths:
                    fits = n + m <= (2048 if model.startswith(("opt", "falcon")) else 4096 * 4)
                    reason = "" if fits else f"{n + m} positions, {model} has 2048"
                    flags = "power_capped" if batch > 32 and n >= 1024 else ""
                    cell = {"model": model, "batch": batch, "input_tokens": n, "output_tokens": m}
                    plan.append({**cell, "status": "run" if fits else "skipped", "reason": reason, "flags": flags})
                    lost = (n, m) == (lengths[1], lengths[1]) and batch == batches[-1]
                    rows += [_row(cell, scale, r, rng, source, flags, lost) for r in range(3) if fits]
    rows[4] |= {"valid": False, "reasons": "counter_vs_integral"}
    path = directory / f"{source}-{len(models)}.parquet"
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    read = table.read([path])
    validation, predictions = validate(read)
    protocol = {"window_s": 10.0, "repetitions": 3, "version": 1}
    campaign = {
        "schema_version": 1,
        "campaign": "synthetic",
        "sweetspot_version": "0.1.0",
        "config": {"engine": {"name": "simulated"}, "gpu": "NVIDIA H100 80GB HBM3", "protocol": protocol, "seed": 1},
        "python": "3.13.0",
        "platform": "Linux",
        "models": [
            {
                "name": model,
                "source": f"https://example.org/{model}/config.json",
                "precision": "bfloat16",
                "parameters": 7_000_000_000,
                "family": model.split("-")[0],
                "layers": 32,
                "hidden": 4096,
                "heads": 32,
                "kv_heads": 8,
                "attention": "GQA",
            }
            for model in models
        ],
    }
    return Results(read.frame, fit_table(read), validation, predictions, pl.DataFrame(plan), campaign)


def _row(
    cell: dict[str, Any], scale: float, repetition: int, rng: random.Random, source: str, flags: str, lost: bool
) -> dict[str, Any]:
    batch, n, m = cell["batch"], cell["input_tokens"], cell["output_tokens"]
    per_token = 0.02 + 6 / batch + 2e-7 * n * n / m + 2e-5 * n + 0.02 * n / m + 1e-5 * m + (0.3 + 5 / batch) / m
    energy = scale * per_token * batch * m * rng.gauss(1, 0.01)
    return {
        "schema_version": 1,
        "campaign": "synthetic",
        **cell,
        "repetition": repetition,
        "energy_j": energy,
        "duration_s": energy / 500,
        "temperature_c": 55.0,
        "valid": not lost,
        "reasons": "counter_stuck" if lost else "",
        "flags": flags,
        "gpu": "NVIDIA H100 80GB HBM3",
        "engine": "simulated" if source == "simulated" else "tensorrt-llm",
        "engine_version": "0.1",
        "driver_version": "580.1",
        "precision": "bfloat16",
        "weights": "dummy",
        "source": source,
    }
