"""The simulator against rows that others measured: `python benchmarks/simulator_vs_published.py`.

The eight TensorRT-LLM rows on one H100 of LLM-Inference-Bench (SC24 workshops; argonne-lcf/LLM-Inference-Bench, commit
4211f5d4, BSD-3-Clause): 1024 tokens in, 1024 out; energy is average power times latency. One set of constants for all
rows; goal: 15 % mean error in energy, the gain of the simulated sensor included. Prints the CPU time of a cell as well.
"""

import tempfile
import time
from pathlib import Path
from statistics import fmean

from sweetspot import engines
from sweetspot.architecture import Architecture
from sweetspot.measure.protocol import Protocol, measure_idle, open_meter
from sweetspot.measure.visit import visit_cell

LLAMA_2_7B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
LLAMA_3_8B = {
    **LLAMA_2_7B,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
# model, batch, latency of the whole batch in s, energy of the whole batch in J
PUBLISHED = [
    ("Llama-2-7B", LLAMA_2_7B, 1, 7.188, 2967.9),
    ("Llama-2-7B", LLAMA_2_7B, 16, 11.633, 5218.0),
    ("Llama-2-7B", LLAMA_2_7B, 32, 15.931, 7196.0),
    ("Llama-2-7B", LLAMA_2_7B, 64, 32.587, 14641.7),
    ("Llama-3-8B", LLAMA_3_8B, 1, 7.729, 3198.9),
    ("Llama-3-8B", LLAMA_3_8B, 16, 10.157, 4566.5),
    ("Llama-3-8B", LLAMA_3_8B, 32, 12.493, 5596.6),
    ("Llama-3-8B", LLAMA_3_8B, 64, 17.483, 7844.5),
]


def main() -> None:
    """Print the table."""
    protocol, errors, late, costs = Protocol(), [], [], []
    print(f"{'model':<12}{'batch':>6}{'s':>9}{'simulated':>11}{'J':>10}{'simulated':>11}{'error':>9}   SIMULATED")
    for name, config, batch, duration_s, energy_j in PUBLISHED:
        arch = Architecture.from_config(config, name)
        gpu = "NVIDIA H100 80GB HBM3"
        spec = engines.EngineSpec("simulated", arch, "float16", "none", gpu, batch, 1024, 1024, 0.9, 1)
        with tempfile.TemporaryDirectory() as directory:
            engines.build(spec, Path(directory))
            engine, sensor, clock = engines.open_device(spec, Path(directory))
        meter = open_meter(sensor, clock, protocol)
        idle_w, _ = measure_idle(meter, protocol)
        start = time.perf_counter()
        cell = {"input_tokens": 1024, "output_tokens": 1024, "flags": ""}
        rows = [done.row for done in visit_cell(engine, meter, spec, cell, protocol, idle_w, visit=0)]
        costs.append(1000 * (time.perf_counter() - start))
        energy, duration = fmean(row["energy_j"] for row in rows), fmean(row["duration_s"] for row in rows)
        errors.append(abs(energy / energy_j - 1))
        late.append(abs(duration / duration_s - 1))
        error = f"{100 * (energy / energy_j - 1):+.1f} %"
        print(f"{name:<12}{batch:>6}{duration_s:>9.2f}{duration:>11.2f}{energy_j:>10.0f}{energy:>11.0f}{error:>9}")
    print(f"mean error in energy {100 * fmean(errors):.1f} %, worst {100 * max(errors):.1f} %")
    print(f"mean error in duration {100 * fmean(late):.1f} %, worst {100 * max(late):.1f} %")
    print(f"CPU time of a simulated cell: mean {fmean(costs):.0f} ms, worst {max(costs):.0f} ms")


if __name__ == "__main__":
    main()
