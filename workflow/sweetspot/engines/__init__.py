"""Inference engines behind one small interface: build once, load once, run batches of exact lengths.

An engine comes with a sensor for each of its GPUs and the clock they share, so that measuring code is the same for
GPUs and for the simulation. Standard library only here; each engine imports its own package when it is opened.

To add an engine, add a module to this package with

    ENGINES             its names, each with a description for the documentation
    SIMULATED           whether its rows are simulated and need no GPU
    source              if simulated: what rows of a spec are called, a key of vocabulary.SIMULATED
    FIXED               settings of `engine` that it cannot change, each with the reason
    SERVER              True if it has the settings of a server; may be left out
    version, refusal, build, open_device
                        called by the functions of the same name below, with the same arguments and errors

There is no other list of engines.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

from sweetspot import gpus
from sweetspot.architecture import Architecture
from sweetspot.errors import OutOfMemory, SweetspotError
from sweetspot.files import read_object, write_atomically
from sweetspot.gpus import Gpu
from sweetspot.parallelism import Parallelism
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Sensor

SCHEMA_VERSION = 1

_WHERE = ("url", "pid", "container")
# What a built engine does not depend on. Who measures has the board's own word instead of a data sheet.
_RUN_SETTINGS = ("cuda_graphs", "in_flight_batching", "board")
# Named only if it is not the default, because jobs and engines from before it existed do not name it.
_ONE_GPU = {"tensor_parallel": 1, "pipeline_parallel": 1, "expert_parallel": False}


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is built for. Lengths in tokens; `kv_cache_fraction` is a share of the memory left by the weights.

    `weights`: "dummy" (the engine's own random ones), "gaussian", "checkpoint" (read from the directory `checkpoint`)
    or "none" (the simulation). `model_config` is the publisher's config.json; the simulation needs none. `board` is
    what the campaign, or the board itself, says of `gpu` (fields of Gpu); None: what its data sheet says.
    """

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
    max_total_tokens: int = 0  # prompt and reply of the longest request; 0: the sum of both maxima
    checkpoint: str | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = True
    in_flight_batching: bool = True
    board: Mapping[str, Any] | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False
    url: str = ""  # of a server; the rest is for servers too
    command: str = ""
    pid: int | None = None
    container: str | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and reply of the longest request, in tokens."""
        return self.max_total_tokens or self.max_input_tokens + self.max_output_tokens

    @property
    def known_board(self) -> Gpu | None:
        """What is known of the board; None if it has no data sheet here and nobody has said anything."""
        return Gpu(**self.board) if self.board else gpus.find(self.gpu)

    def on(self, sensor: Sensor) -> "EngineSpec":
        """The same on the board behind `sensor`, which tells its memory and power limit itself."""
        told = {"memory_bytes": sensor.memory_bytes(), "tdp_w": sensor.power_limit_w()}
        return replace(self, board={"name": self.gpu, **told})

    @property
    def parallelism(self) -> Parallelism:
        """How the model is spread over boards."""
        return Parallelism(self.tensor_parallel, self.pipeline_parallel, self.expert_parallel)

    @property
    def gpus(self) -> int:
        """The number of boards that it runs on."""
        return self.parallelism.gpus


class RequestTimes(NamedTuple):
    """When the engine received a request, and when its first and its last token were there: s on one clock."""

    arrival_s: float
    first_token_s: float
    last_token_s: float


@dataclass(frozen=True)
class BatchRun:
    """How a batch ran: the largest number of requests in flight at once (None: not known), and the number of waves.

    `requests` has the times of its requests, or nothing if the engine does not tell those of most. `flags`: what a row
    must say.
    """

    in_flight: int | None
    waves: int
    requests: tuple[RequestTimes, ...] = ()
    flags: tuple[str, ...] = ()


class Engine:
    """A loaded engine; adapters say how it runs."""

    version: str

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run the whole batch; every request has exactly these lengths. Raises OutOfMemory or SweetspotError."""
        raise NotImplementedError

    def reasons(self) -> tuple[str, ...]:
        """Why the runs since the last call must not be trusted, as reasons of a row; empty if they can be."""
        return ()

    def close(self) -> None:
        """Free the GPU."""


def limits(cells: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The lengths in tokens that an engine for these cells must allow, named as in EngineSpec."""
    lengths = [(cell["input_tokens"], cell["output_tokens"]) for cell in cells]
    return {
        "max_input_tokens": max(n for n, _ in lengths),
        "max_output_tokens": max(m for _, m in lengths),
        "max_total_tokens": max(n + m for n, m in lengths),
    }


def identity(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that rows depend on: not where a server runs; of a checkpoint, its directory's name only."""
    unset = [("command", ""), *_ONE_GPU.items()]
    kept = {name: value for name, value in engine.items() if name not in _WHERE and (name, value) not in unset}
    checkpoint = kept.get("checkpoint")
    return {**kept, "checkpoint": Path(checkpoint).name} if checkpoint else kept


def refusal(name: str, precision: str, weights: str, parallelism: Parallelism) -> str:
    """Why the engine `name` cannot run any model so, or "". Needs neither package nor GPU, so the plan can call it."""
    return str(_module(name).refusal(name, precision, weights, parallelism))


def build(spec: EngineSpec, directory: Path) -> None:
    """Build an engine and engine.json into `directory`. Raises SweetspotError, OutOfMemory if the GPU is too small."""
    spread, module = spec.parallelism, _module(spec.name)
    reason = refusal(spec.name, spec.precision, spec.weights, spread) or spread.refusal(spec.architecture)
    if reason:
        raise SweetspotError(f"{spec.architecture.name}: {reason}")
    with _aside(directory) as own:
        start_s = time.monotonic()
        found = module.build(spec, own)
        _write_record(own, spec, {**found, "build_s": round(time.monotonic() - start_s, 1)})


def build_none(spec: EngineSpec, directory: Path, shortage: str) -> None:
    """Record that an engine does not fit the GPU, so that `open_device` raises OutOfMemory with `shortage`."""
    with _aside(directory) as own:
        _write_record(own, spec, {"out_of_memory": shortage})


@contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    """A directory that is renamed to `directory` at the end, since a job of a killed run may build the same engine."""
    own = directory.with_name(f".{directory.name}.{os.getpid()}-{os.urandom(3).hex()}")
    own.mkdir(parents=True)
    try:
        yield own
        shutil.rmtree(directory, ignore_errors=True)
        own.rename(directory)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _write_record(directory: Path, spec: EngineSpec, found: Mapping[str, Any]) -> None:
    about = {"schema_version": SCHEMA_VERSION, "spec": _as_built(spec), "version": _module(spec.name).version()}
    write_atomically(directory / "engine.json", json.dumps({**about, **found}, indent=2) + "\n")


def open_device(spec: EngineSpec, directory: Path) -> tuple[Engine, Sequence[Sensor], Clock]:
    """Load the engine in `directory`; returns it with the sensor of each of its GPUs and the clock.

    An engine built for longer requests will do. Raises SweetspotError if it was built for something else, and
    OutOfMemory if it does not fit the GPU.
    """
    if reason := unfit(spec, directory):
        raise SweetspotError(f"{directory}: {reason}; delete it to have it rebuilt")
    if shortage := read_object(directory / "engine.json").get("out_of_memory"):
        raise OutOfMemory(f"{shortage} (recorded in {directory}; delete it to try again)")
    return _module(spec.name).open_device(spec, directory)  # type: ignore[no-any-return]


def unfit(spec: EngineSpec, directory: Path) -> str:
    """Why the engine in `directory` cannot serve `spec`, or ""."""
    try:
        record = read_object(directory / "engine.json")
        built, built_by = {**_ONE_GPU, **record["spec"]}, record["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return "holds no complete engine"
    if built_by != (installed := _module(spec.name).version()):
        return f"built by version {built_by} of {spec.name}, but {installed} is installed"
    wanted = {**_ONE_GPU, **json.loads(json.dumps(_as_built(spec)))}
    for name, value in wanted.items():
        fits = built.get(name, 0) >= value if name.startswith("max_") else built.get(name) == value
        if not fits:
            other = f"another {name}" if isinstance(value, dict) else f"{name} {built.get(name)}, needed for {value}"
            return f"built for {other}"
    return ""


def _as_built(spec: EngineSpec) -> dict[str, Any]:
    whole = {**identity(asdict(spec)), "max_total_tokens": spec.total_tokens}
    return {name: value for name, value in whole.items() if name not in _RUN_SETTINGS}


def names() -> dict[str, str]:
    """Every engine with its description."""
    return {name: module.ENGINES[name] for name, module in _modules().items()}


def is_simulated(name: str) -> bool:
    """Whether an engine needs no GPU, and its rows are simulated."""
    return bool(_module(name).SIMULATED)


def is_server(name: str) -> bool:
    """Whether an engine is a server, which has a URL or a command that starts it."""
    return bool(getattr(_module(name), "SERVER", False))


def source(spec: EngineSpec) -> str:
    """What rows of an engine are called: "measured", or what kind of simulation they come from."""
    return str(_module(spec.name).source(spec)) if is_simulated(spec.name) else "measured"


def fixed_settings(name: str) -> dict[str, str]:
    """The settings of `engine` in a configuration that an engine cannot change, each with the reason."""
    return dict(_module(name).FIXED)


@cache
def _modules() -> dict[str, Any]:
    """The module of each engine. Some have the name of the package that they drive; imports are absolute."""
    found = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {name: module for module in found for name in getattr(module, "ENGINES", ())}


def _module(name: str) -> Any:
    if name not in _modules():
        raise SweetspotError(f"engine {name!r} is not known; known: {', '.join(_modules())}")
    return _modules()[name]
