"""Inference engines behind one small interface: build once, load once, run batches of exact lengths.

An engine comes with the sensor of the GPU it runs on and the clock both live by, so that whatever measures is the same
for a GPU and for the simulation. Standard library only here; each engine imports its own package when it is opened.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from sweetspot.architecture import PRECISION_BYTES, Architecture
from sweetspot.clock import Clock
from sweetspot.errors import SweetspotError
from sweetspot.gpus import Gpu
from sweetspot.journal import write_atomically
from sweetspot.meter import Sensor

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built for. Lengths in tokens; `kv_cache_fraction` of the memory left beside the weights."""

    name: str
    architecture: Architecture
    precision: str
    weights: str
    gpu: str
    batch: int
    max_input_tokens: int
    max_output_tokens: int
    kv_cache_fraction: float
    seed: int


@dataclass(frozen=True)
class BatchRun:
    """What really ran: the largest number of requests in flight at once, and in how many waves the batch went."""

    in_flight: int
    waves: int


class Engine(Protocol):
    """A loaded engine."""

    version: str

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run the whole batch to its end; every request takes and gives exactly these lengths."""

    def close(self) -> None:
        """Free the GPU."""


def kv_cache_bytes(architecture: Architecture, gpu: Gpu, precision: str, kv_cache_fraction: float) -> int:
    """Bytes for the KV cache: the share of the memory that the weights leave. 0 or less where they do not fit."""
    weights = architecture.parameters() * PRECISION_BYTES[precision]
    return int(kv_cache_fraction * (gpu.memory_bytes - weights))


def build(spec: EngineSpec, directory: Path) -> None:
    """Build an engine into `directory` and write engine.json, which says what it is for.

    Raises SweetspotError for an unknown engine or what the engine cannot do.
    """
    module = _module(spec.name)
    directory.mkdir(parents=True, exist_ok=True)
    memory = module.build(spec, directory)
    record = {"schema_version": SCHEMA_VERSION, "spec": asdict(spec), "version": module.VERSION, "memory": memory}
    write_atomically(directory / "engine.json", json.dumps(record, indent=2) + "\n")


def open_device(spec: EngineSpec, directory: Path) -> tuple[Engine, Sensor, Clock]:
    """Load the engine in `directory`; returns it with its GPU's sensor and the clock.

    An engine built for longer requests serves. Raises SweetspotError when it was built for something else.
    """
    try:
        built = json.loads((directory / "engine.json").read_text())["spec"]
    except (OSError, ValueError, KeyError):
        raise SweetspotError(f"{directory}: holds no whole engine; delete it and run again to build it") from None
    wanted = json.loads(json.dumps(asdict(spec)))
    for name, value in wanted.items():
        fits = built.get(name, 0) >= value if name.startswith("max_") else built.get(name) == value
        if not fits:
            raise SweetspotError(
                f"{directory}: built for {name} {built.get(name)}, needed for {value}; delete it to have it rebuilt"
            )
    engine, sensor, clock = _module(spec.name).open_device(spec, directory)
    return engine, sensor, clock


def _module(name: str):  # type: ignore[no-untyped-def]
    if name == "simulated":
        from sweetspot.engines import simulated

        return simulated
    raise SweetspotError(f"engine {name!r} is not known; known: simulated")
