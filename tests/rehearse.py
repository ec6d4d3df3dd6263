"""Rehearses half an hour on an offline GPU machine, with the real vLLM on this machine's CPU: `make rehearse`.

As there, a command gets ten minutes, a transfer 64 MiB, and the machine is another one each time: only what was packed
comes back. The models are two narrow ones, energy comes from the real NVML bindings on a stub library, and the protocol
is shortened. It fails unless the probe and the first model's cells come first, then the second model's, then
repetitions, and unless Snakemake makes the report of what came back.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

import nvml_stub

ROOT = Path(__file__).resolve().parent.parent
COMMAND_S, TRANSFER_BYTES = 600, 64 << 20
MODELS = {"llama-3.1-8b": "llama-3.1-8b", "qwen2-7b": "qwen2-7b"}
NARROW = {"vocab_size": 1024, "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 64}
NARROW |= {"num_key_value_heads": 2, "intermediate_size": 512, "bos_token_id": 1, "eos_token_id": 2}
SHORT = {"warmup_s": 1.0, "warmup_max_s": 2.0, "window_s": 2.5, "window_runs": 1, "window_max_s": 3.0, "idle_s": 2.0}
ON_A_CPU = "import torch\ntorch.cuda.synchronize = torch.cuda.empty_cache = lambda: None\n"


def main() -> None:
    """Rehearse in an empty directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="Python with vLLM's CPU build and nvidia-ml-py")
    parser.add_argument("--directory", type=Path, required=True, help="where to work; must not exist")
    options = parser.parse_args()
    place: Path = options.directory.absolute()
    place.mkdir(parents=True)
    laptop = place / "laptop"
    config = write_campaign(laptop)
    snakemake(laptop, "offline_plan", config)
    sent = [laptop / "results" / "first" / "offline.json", ROOT / "workflow"]
    packed: list[Path] = []
    for number in (1, 2, 3):
        packed = on_a_machine(place / f"machine{number}", options.python.absolute(), sent, packed, probe=number == 1)
        rows = measured(place / f"machine{number}")
        print(f"machine {number}: {len(rows)} visits so far", flush=True)
    check_order(measured(place / f"machine{number}"))
    back = laptop / "results" / "first"
    for part in packed:
        shutil.copy(part, back)
    run(f"cat {' '.join(part.name for part in packed)} | tar xzm", back, {})
    snakemake(laptop, "", config)
    print(f"report: {back / 'report.html'}")


def write_campaign(laptop: Path) -> Path:
    """The campaign of config/first.yaml on narrow models and with short lengths, in a directory of its own."""
    campaign: dict[str, Any] = yaml.safe_load((ROOT / "config" / "first.yaml").read_text())
    cells = (ROOT / campaign["cells"]).read_text().splitlines()
    shorter = [line.split(",")[:2] + [str(int(n) // 8) for n in line.split(",")[2:]] for line in cells[1:]]
    (laptop / "config").mkdir(parents=True)
    lines = ["model\tarchitecture"]
    for name, published in MODELS.items():
        config = json.loads((ROOT / "resources" / "architectures" / f"{published}.json").read_text())
        (laptop / "config" / f"{name}.json").write_text(json.dumps(config | NARROW))
        lines.append(f"{name}\t{name}.json")
    (laptop / "config" / "models.tsv").write_text("\n".join(lines) + "\n")
    (laptop / "config" / "cells.csv").write_text("\n".join([cells[0], *map(",".join, shorter)]) + "\n")
    campaign |= {"cells": "config/cells.csv", "protocol": campaign["protocol"] | SHORT}
    campaign |= {name: [length // 8 for length in campaign[name]] for name in ("input_tokens", "output_tokens")}
    path = laptop / "config" / "first.yaml"
    path.write_text(yaml.safe_dump(campaign))
    return path


def on_a_machine(machine: Path, python: Path, sent: list[Path], packed: list[Path], probe: bool) -> list[Path]:
    """A fresh machine: unpack, probe if it is the first, measure for ten minutes, pack. Returns what comes back."""
    machine.mkdir()
    size = 0
    for source in [*sent, *packed]:
        if source.is_dir():
            shutil.copytree(source, machine / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, machine)
        size += sum(file.stat().st_size for file in source.rglob("*")) if source.is_dir() else source.stat().st_size
    assert size <= TRANSFER_BYTES, f"{size} bytes to send"
    stub = nvml_stub.build(machine)
    board = f"{nvml_stub.H100.split()[0]} NVIDIA H100 80GB HBM3"
    stub.set(trace=nvml_stub.Trace(((1.0, 400.0, 400.0),)), boards=[board], real=True)
    (machine / "sitecustomize.py").write_text(ON_A_CPU)
    environment = {**stub.environment, "PYTHONPATH": f"workflow:{machine}", "VLLM_CPU_KVCACHE_SPACE": "1"}
    start_s = time.monotonic()
    run("mkdir -p results/first", machine, {})
    if packed:
        run(f"cat {' '.join(part.name for part in packed)} | tar xz -C results/first", machine, {})
    if probe:
        run(f"{python} -m sweetspot probe --out results/first/machine.json", machine, environment)
    left_s = COMMAND_S - (time.monotonic() - start_s) - 60  # a block may end a little late, and packing takes time
    status = run(
        f"{python} -m sweetspot unattended --plan offline.json --directory results/first --seconds {left_s:.0f}",
        machine,
        environment,
        allowed=(0, 3),
    )
    run("tar cz --exclude=./engines -C results/first . | split -b 15M - first.tar.gz.", machine, {})
    took_s = time.monotonic() - start_s
    print(f"{machine.name}: status {status}, {took_s:.0f} s", flush=True)
    assert took_s <= COMMAND_S, f"the command would have been cut off at {COMMAND_S} s"
    return sorted(machine.glob("first.tar.gz.*"))


def measured(machine: Path) -> list[tuple[str, int, int]]:
    """The visits that a machine knows of, in the order in which they began: (model, batch, visit)."""
    found = []
    for journal in (machine / "results" / "first" / "journal").glob("*/*/*"):
        for record in map(json.loads, journal.read_text().splitlines()):
            if record.get("rows") and record["visit"] is not None:
                row = record["rows"][0]
                found.append((record["session"], row["time_s"], row["model"], row["batch"], record["visit"]))
    return [visit for *_, model, batch, number in sorted(found) for visit in [(model, batch, number)]]


def check_order(visits: list[tuple[str, int, int]]) -> None:
    """The first model's cells at every batch, the second model's, then repetitions."""
    first, second = MODELS
    firsts = [(model, batch) for model, batch, number in visits if number == 0]
    assert len(firsts) == 24, f"{len(firsts)} of 24 cells"
    assert [model for model, _ in firsts] == [first] * 12 + [second] * 12, firsts
    numbers = [number for _, _, number in visits]
    assert numbers == sorted(numbers), "a repetition came before a first visit"


def run(command: str, place: Path, environment: dict[str, str], allowed: tuple[int, ...] = (0,)) -> int:
    """A shell command; its exit status must be one of `allowed`."""
    print(f"$ {command}", flush=True)
    own = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=place, env={**own, **environment})
    if done.returncode not in allowed:
        sys.exit(f"{command}: exit status {done.returncode}")
    return done.returncode


def snakemake(laptop: Path, target: str, config: Path) -> None:
    """Snakemake in the laptop's directory."""
    profile, file = ROOT / "local", ROOT / "Snakefile"
    run(f"snakemake {target} --snakefile {file} --profile {profile} --configfile {config} --quiet", laptop, {})


if __name__ == "__main__":
    main()
