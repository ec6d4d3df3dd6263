"""How much of a GPU's allocated time is measuring: `python benchmarks/gpu_duty.py [--load-s 120]` (seconds, no GPU).

A block of qwen2-7b on the simulated H100 in virtual time, with a load as long as a real engine's. Duty is the time in
windows and warm-ups over that from the start of the job to its end. Goal: 90 %.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweetspot import models
from sweetspot.engines import simulated
from sweetspot.measure.journal import Place
from sweetspot.measure.protocol import Protocol
from sweetspot.measure.session import Block, build

ROOT = Path(__file__).resolve().parent.parent
MODEL = "qwen2-7b"
LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]
# Python and vLLM's imports, 15 GB of weights, KV cache and CUDA graphs: one to two minutes, with compilation more.
LOAD_S = 120.0


def duty(cells: list[tuple[int, int]], batch: int, load_s: float) -> tuple[float, float, int]:
    """Share of windows and warm-ups in the time of one job, that time in s, and the visits made."""
    opened = simulated.open_device
    clocks = []

    def slow(*arguments: Any) -> Any:
        device = opened(*arguments)
        device[2].sleep(load_s)
        clocks.append(device[2])
        return device

    engine = {
        "name": "simulated",
        "gpu": "NVIDIA H100 80GB HBM3",
        "precision": "bfloat16",
        "weights": "none",
        "kv_cache_fraction": 0.9,
        "seed": 1,
    }
    job = {"campaign": "duty", "model": MODEL, "batch": batch, "engine": engine, "seed": 1}
    job |= {"protocol": asdict(Protocol())}
    job |= {"cells": [{"input_tokens": n, "output_tokens": m, "flags": ""} for n, m in cells]}
    resolved = {"architecture": models.load(ROOT / f"resources/architectures/{MODEL}.json").as_dict()}
    limits = {"max_input_tokens": max(LENGTHS), "max_output_tokens": max(LENGTHS)}
    simulated.open_device = slow  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as place:
            where = Place(Path(place), MODEL, batch, "grid")
            build({**job, "limits": limits}, resolved, where)
            block = Block(json.loads(json.dumps(job)), resolved, where)
            block.run(block.pending())
    finally:
        simulated.open_device = opened
    visits = [record for record in block.records if "rows" in record]
    # Of a visit, what is neither warm-up nor window is waiting for the counter: 2.5 steps of 0.1 s a window on average.
    waiting_s = 0.25 * sum(len(record["rows"]) for record in visits)
    total_s = sum(clock.now() for clock in clocks)
    return (sum(record["took_s"] for record in visits) - waiting_s) / total_s, total_s, len(visits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load-s", type=float, default=LOAD_S)
    load_s = parser.parse_args().load_s
    print(f"SIMULATED, {MODEL}, a load of {load_s:.0f} s; goal 90 %")
    grids = {
        "7 x 7 lengths in one job": [(n, m) for n in LENGTHS for m in LENGTHS],
        "5 x 5 lengths in one job": [(n, m) for n in LENGTHS[:5] for m in LENGTHS[:5]],
        "one cell a job (512 -> 256)": [(512, 256)],
    }
    for name, cells in grids.items():
        for batch in (1, 32):
            share, total_s, visits = duty(cells, batch, load_s)
            print(f"{name}, batch {batch}: {share:.1%} of {total_s / 60:.0f} minutes, {visits} visits")


if __name__ == "__main__":
    main()
