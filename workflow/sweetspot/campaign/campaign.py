"""Plans a campaign: turns its configuration into cells and jobs before anything runs."""

import csv
import io
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from sweetspot import __version__, engines, gpus, models
from sweetspot.architecture import Architecture
from sweetspot.campaign.config import Config, ModelRow, parse, read_cells, selected
from sweetspot.errors import SweetspotError
from sweetspot.files import key, write_atomically
from sweetspot.gpus import Gpu
from sweetspot.measure import probe
from sweetspot.measure.journal import Place
from sweetspot.precision import Precision
from sweetspot.sensors import visible_boards

_SERVER = ("url", "command", "pid", "container")  # settings of servers


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the grid. `status` says whether it can run, `reason` why not; `flags` name special regimes."""

    model: str
    batch: int
    input_tokens: int
    output_tokens: int
    status: str  # "run" or "skipped"
    reason: str
    flags: str


_MORE_BOARDS = "; tensor_parallel in the table of models spreads it over more"


@dataclass(frozen=True)
class Model:
    """A selected model: its row of the table, its architecture's file and content, and the resolved form for jobs."""

    row: ModelRow
    precision: str
    path: Path
    architecture: Architecture
    resolved: dict[str, Any]


def _model(row: ModelRow, path: Path) -> Model:
    """Read a model. Raises SweetspotError if the table contradicts its quantization_config."""
    resolved = models.resolved(path)
    architecture = Architecture.of(resolved["architecture"])
    try:
        precision = models.precision(architecture, Precision.of(row.precision) if row.precision else None)
    except SweetspotError as error:
        raise SweetspotError(f"{row.model}, with the config.json {path}: {error}") from None
    return Model(row, precision.name, path, architecture, resolved)


class Campaign:
    """The models, cells and jobs of a configuration. Raises SweetspotError for bad input."""

    def __init__(self, raw: dict[str, Any], source: str = "config") -> None:
        """Check the configuration `raw` and read its models; errors refer to it as `source`."""
        self.config: Config = parse(raw, source)
        if self.config.machine is not None:
            numbers = probe.numbers(Path(self.config.machine), self.config.gpu)
            self.config = parse({**raw, "protocol": {**numbers, **raw.get("protocol", {})}}, source)
        self.directory = Path(self.config.results) / self.config.campaign
        chosen, self.left_out = selected(self.config)
        self.models = {row.model: _model(row, path) for row, path in chosen}
        self.python = self.config.engine.python or sys.executable
        self.gpu = _board(self.config) or gpus.find(self.config.gpu)
        self.board = asdict(self.gpu) if self.config.board and self.gpu else None
        self.gpu_name = self.gpu.name if self.gpu else self.config.gpu
        if self.gpu is None and engines.is_simulated(self.config.engine.name):
            raise SweetspotError(
                f"{source}: gpu {self.config.gpu!r} is not known; known: {', '.join(gpus.names())}; describe another "
                "under `board`"
            )
        if self.config.rows is not None and not Path(self.config.rows).is_file():
            raise SweetspotError(f"{source}: rows: {self.config.rows}: no such file; remove the key to measure")
        if not self.jobs:
            reasons = sorted({cell.reason for cell in self.cells})
            raise SweetspotError(f"{source}: no cell can run; " + ("; ".join(reasons) or "the list of cells is empty"))

    @cached_property
    def cells(self) -> list[PlannedCell]:
        """Every cell of the grid, or of the list of cells, including skipped ones."""
        if self.config.cells:
            listed = sorted(read_cells(Path(self.config.cells)), key=lambda cell: cell[1:])
            if unknown := {name for name, *_ in listed} - self.models.keys():
                raise SweetspotError(f"{self.config.cells}: {sorted(unknown)[0]!r} is not among the campaign's models")
            return [
                self._judge(self.models[name], *place) for own in self.models for name, *place in listed if name == own
            ]
        return self.grid

    @cached_property
    def grid(self) -> list[PlannedCell]:
        """Every cell of the grid of lengths and batches, including skipped ones."""
        return [
            self._judge(model, batch, n, m)
            for model in self.models.values()
            for batch in sorted(self.config.batches)
            for n in sorted(self.config.input_tokens)
            for m in sorted(self.config.output_tokens)
        ]

    @cached_property
    def jobs(self) -> dict[tuple[str, int, str], list[PlannedCell]]:
        """Cells of each measuring job, by (model, batch, block).

        The block's name ends in a digest of everything its rows depend on. Its file alone therefore shows whether the
        job is done, even after results were moved or copied.
        """
        jobs = {}
        for (model, batch), cells in self._grids.items():
            shared = self._shared(model, batch)
            known_by = [
                {**shared, "engine": engines.identity(shared["engine"])},
                self.models[model].resolved["known_by"],
            ]
            digest_of_all = sha256(json.dumps(known_by, sort_keys=True).encode())
            for block, part in self._blocks(cells):
                digest = digest_of_all.copy()
                digest.update(json.dumps(_described(part)).encode())
                jobs[model, batch, f"{block}-{digest.hexdigest()[:8]}"] = part
        return jobs

    @cached_property
    def places(self) -> dict[tuple[str, int, str], Place]:
        """Where each measuring job keeps its files."""
        return {job: Place(self.directory, *job) for job in self.jobs}

    @property
    def needs_gpus(self) -> bool:
        """Whether its jobs need real GPUs."""
        return not engines.is_simulated(self.config.engine.name)

    def gpus_here(self) -> int:
        """The number of GPUs that jobs on this machine share; 1 if they share a server, or if no GPU is found."""
        try:
            return 1 if self.config.engine.url else max(1, len(visible_boards()))
        except SweetspotError:
            return 1  # the job says what is wrong

    def gpus_of_job(self, model: str) -> int:
        """The number of GPUs that a job of a model takes."""
        return self.models[model].row.parallelism.gpus

    def tables(self) -> list[str]:
        """The files that hold the campaign's rows: one per job, or the table named in the configuration."""
        if self.config.rows is not None:
            return [self.config.rows]
        return [str(place.rows) for place in self.places.values()]

    def cells_of_tables(self) -> list[int]:
        """How many cells each of these files must hold; empty for a table named in the configuration."""
        return [] if self.config.rows is not None else [len(cells) for cells in self.jobs.values()]

    @cached_property
    def _grids(self) -> dict[tuple[str, int], list[PlannedCell]]:
        """Cells that one engine runs, by (model, batch)."""
        grids: dict[tuple[str, int], list[PlannedCell]] = {}
        for cell in self.cells:
            if cell.status == "run":
                grids.setdefault((cell.model, cell.batch), []).append(cell)
        return grids

    def engine_job(self, model: str, batch: int) -> str:
        """The job of building an engine, as JSON: exactly its inputs."""
        limits = engines.limits(map(vars, self._grids[model, batch]))
        return json.dumps({"model": model, "batch": batch, "engine": self._engine(model), "limits": limits})

    def measure_job(self, model: str, batch: int, block: str) -> str:
        """The job of measuring a block, as JSON: exactly the inputs of its rows."""
        return json.dumps({**self._shared(model, batch), "cells": _described(self.jobs[model, batch, block])})

    def _shared(self, model: str, batch: int) -> dict[str, Any]:
        return {
            "campaign": self.config.campaign,
            "model": model,
            "batch": batch,
            "engine": self._engine(model),
            "protocol": vars(self.config.protocol),
            "seed": self.config.seed,
        }

    def record(self) -> dict[str, Any]:
        """The record of the campaign: its configuration and its models."""
        return {
            "schema_version": 1,
            "sweetspot_version": __version__,
            "campaign": self.config.campaign,
            "config": self.config.model_dump(mode="json"),
            "models": [
                {
                    "name": name,
                    "source": model.architecture.source or model.row.architecture,
                    "precision": model.precision,
                    **model.row.parallel,
                    "weights": self._weights(model.row),
                    "checkpoint": engines.identity(self._engine(name)).get("checkpoint"),
                    "parameters": model.architecture.parameters,
                    "family": model.architecture.model_type,
                    "layers": model.architecture.layers,
                    "hidden": model.architecture.hidden,
                    "heads": model.architecture.heads,
                    "kv_heads": model.architecture.kv_heads,
                    "attention": model.architecture.attention,
                }
                for name, model in self.models.items()
            ],
        }

    def digest(self) -> str:
        """Digest of everything that `write` writes, except the machine."""
        return key({"record": self.record(), "cells": [vars(cell) for cell in self.cells]})

    def write(self, cells: Path, campaign: Path) -> None:
        """Write the plan (CSV: every cell with its status and reason) and the record of the campaign (JSON)."""
        text = io.StringIO()
        table = csv.DictWriter(text, [field.name for field in fields(PlannedCell)], lineterminator="\n")
        table.writeheader()
        table.writerows(map(vars, self.cells))
        write_atomically(cells, text.getvalue())
        machine = {"python": platform.python_version(), "platform": platform.platform()}
        write_atomically(campaign, json.dumps({**self.record(), **machine}, indent=2) + "\n")

    def check_writable(self) -> None:
        """Raise SweetspotError if the results directory cannot be created or written."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise SweetspotError(
                f"cannot write results to {self.directory}: {error.strerror}; set `results` to a writable directory"
            ) from None

    def _engine(self, model: str) -> dict[str, Any]:
        config, row, precision = self.config.engine, self.models[model].row, self.models[model].precision
        engine = {
            "name": config.name,
            "gpu": self.gpu_name,
            "precision": precision,
            "weights": self._weights(row),
            "kv_cache_fraction": config.kv_cache_fraction,
            "seed": self.config.seed,
        }
        # Named only if not the default, so that jobs, and their digests, from before the setting existed stay the same.
        engine |= {name: False for name in ("cuda_graphs", "in_flight_batching") if not getattr(config, name)}
        engine |= row.parallel
        engine |= {name: value for name in _SERVER if (value := getattr(config, name)) is not None}
        if self.board and not self.needs_gpus:  # a real one speaks for itself
            engine["board"] = self.board
        if engine["weights"] == "checkpoint":
            engine["checkpoint"] = str(Path(self.config.models).parent / str(row.checkpoint))
        return engine

    def _weights(self, row: ModelRow) -> str:
        engine = self.config.engine
        if engines.is_simulated(engine.name):
            return "none"
        if engines.is_server(engine.name) and "{model}" not in (engine.command or ""):
            return "served"  # whatever the server has loaded
        return row.weights

    def _blocks(self, cells: list[PlannedCell]) -> Iterator[tuple[str, list[PlannedCell]]]:
        size = self.config.cells_per_job
        if size == "all" or size >= len(cells):
            yield "grid", cells
        elif size == 1:
            for cell in cells:
                yield f"i{cell.input_tokens}-o{cell.output_tokens}", [cell]
        else:
            for start in range(0, len(cells), size):
                yield f"part{start // size:04d}", cells[start : start + size]

    def _judge(self, model: Model, batch: int, n: int, m: int) -> PlannedCell:
        arch = model.architecture
        weights, flags = self._weights(model.row), []
        spread, precision = model.row.parallelism, model.precision
        skipped = engines.refusal(self.config.engine.name, precision, weights, spread)
        skipped = skipped or spread.refusal(arch)
        if n + m > arch.max_positions:
            if self.config.positions == "extend" and weights != "checkpoint":
                flags.append("extended_positions")
            else:
                skipped = skipped or (
                    f"positions: input + output tokens exceed the model's {arch.max_positions} positions"
                )
        if self.gpu and weights != "served":  # only a server knows what it runs and holds
            computed = Precision.of(precision).activations
            if computed not in self.gpu.peak_flops:
                known = ", ".join(self.gpu.peak_flops)
                skipped = skipped or f"precision: {self.gpu.name} does not compute in {computed}, but in {known}"
            memory = spread.memory(arch, self.gpu, precision, self.config.engine.kv_cache_fraction)
            if (fit := memory.requests(n, m)) < 1:
                what = "weights and the KV cache of one request"
                skipped = skipped or f"memory: {what} exceed the memory of {spread.on(self.gpu)}{_MORE_BOARDS}"
            elif fit < batch:
                flags.append("kv_limited")
        status = "skipped" if skipped else "run"
        return PlannedCell(model.row.model, batch, n, m, status, skipped, ";".join(flags))


def _board(config: Config) -> Gpu | None:
    """The GPU that the configuration describes."""
    if (board := config.board) is None:
        return None
    rates = {name: tflops * 1e12 for name, tflops in board.tflops.items()}
    sizes = int(board.memory_gb * 1e9), board.power_limit_w, board.bandwidth_gb_per_s * 1e9
    return Gpu(config.gpu, *sizes, rates)


def _described(cells: list[PlannedCell]) -> list[dict[str, Any]]:
    return [{name: getattr(cell, name) for name in ("input_tokens", "output_tokens", "flags")} for cell in cells]
