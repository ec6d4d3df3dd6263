"""One job on one device: build an engine, or measure a block of cells with one loaded engine.

Runs inside the engine's environment as `python -m sweetspot.session`, so it needs the standard library only. The job is
one JSON object, the same that Snakemake tracks as the rule's parameter: nothing else decides what is measured.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweetspot import engines, journal
from sweetspot.architecture import Architecture
from sweetspot.errors import OutOfMemory, SweetspotError
from sweetspot.measurement import Protocol, measure_cell, measure_idle, open_meter, unmeasured_cell
from sweetspot.meter import Meter


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status. A problem the user can solve is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m sweetspot.session", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "measure"):
        command = commands.add_parser(name)
        command.add_argument("--job", type=json.loads, required=True, help="the job as JSON")
        command.add_argument("--architecture", type=Path, required=True, help="resolved architecture (JSON)")
        command.add_argument("--engine", type=Path, required=True, help="the engine's directory")
    command.add_argument("--journal", type=Path, required=True, help="finished cells are appended here at once")
    command.add_argument("--output", type=Path, required=True, help="rows of all cells of the job (JSON lines)")
    options = parser.parse_args(arguments)
    try:
        resolved = json.loads(options.architecture.read_text())
        if options.command == "build":
            engines.build(_spec(options.job, resolved, options.job["limits"]), options.engine)
        else:
            measure(options.job, resolved, options.engine, options.journal, options.output)
    except SweetspotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(job: dict[str, Any], resolved: Mapping[str, Any], engine: Path, journal_file: Path, output: Path) -> None:
    """Measure the cells of `job` that no journal beside `journal_file` holds yet, then write all rows to `output`.

    `resolved` is the content of the resolved architecture: the dimensions and the publisher's config.json. A cell that
    the GPU's memory does not suffice for becomes one invalid row; it stays out of the journal, so that the next run of
    the job tries it again.
    Journals of other jobs of the same (model, batch) lie in the same directory, so another partition of the grid into
    jobs finds every cell that was measured before. Raises SweetspotError when the engine or the sensor cannot be used.
    """
    inputs = {name: job[name] for name in ("model", "batch", "engine", "protocol", "seed")}
    key = journal.key({**inputs, "architecture": resolved["architecture"], "config": resolved.get("config", {})})
    wanted = {(cell["input_tokens"], cell["output_tokens"]): cell for cell in job["cells"]}
    done = journal.finished(journal_file.parent.glob("*.jsonl"), key)
    missing = [cell for place, cell in wanted.items() if place not in done]
    if missing:
        for cell, rows, finished in _measure_missing(job, resolved, engine, missing):
            if finished:
                journal.append(journal_file, {"key": key, **cell, "rows": rows})
            done[cell["input_tokens"], cell["output_tokens"]] = rows
    rows = [row for place in sorted(wanted) for row in done[place]]
    journal.write_atomically(output, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _measure_missing(
    job: dict[str, Any], resolved: Mapping[str, Any], engine_directory: Path, cells: list[Any]
) -> Iterator[tuple[Any, list[dict[str, Any]], bool]]:
    """Each cell with its rows, and whether it was measured: False where memory did not suffice."""
    spec = _spec(job, resolved, engines.limits(cells))
    session = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"
    protocol = Protocol(**job["protocol"])
    order = random.Random(
        f"{job['seed']}/{job['model']}/{job['batch']}"
    )  # order effects are real: never sweep in order
    order.shuffle(cells)
    device: _Device | None = None
    too_large = ""  # why the engine does not load; it will not for the next cell either
    try:
        for index, cell in enumerate(cells, 1):
            shortage = too_large
            try:
                if not shortage:
                    device = device or _open(spec, engine_directory, protocol)
                    rows = measure_cell(device.engine, device.meter, spec, cell, protocol, device.idle_w)
            except OutOfMemory as error:
                shortage = str(error)
                too_large = "" if device else shortage
            if shortage:
                print(f"warning: {shortage}", file=sys.stderr, flush=True)
                rows = unmeasured_cell(spec, cell, "out_of_memory")
                # What an engine keeps of requests that broke off would run beside those of the next cell: load again.
                # Not while the exception is handled, whose traceback holds on to the memory.
                if device:
                    device.engine.close()
                    device = None
            for row in rows:
                row.update(campaign=job["campaign"], model=job["model"], session=session)
            print(_progress(job, cell, rows, index, len(cells)), file=sys.stderr, flush=True)
            yield cell, rows, not shortage
    finally:
        if device:
            device.engine.close()


@dataclass(frozen=True)
class _Device:
    """A loaded engine, the meter of its GPU, and the power in W while it has nothing to do."""

    engine: engines.Engine
    meter: Meter
    idle_w: float


def _open(spec: engines.EngineSpec, engine_directory: Path, protocol: Protocol) -> _Device:
    engine, sensor, clock = engines.open_device(spec, engine_directory)
    try:
        meter = open_meter(sensor, clock, protocol)
        idle_w = measure_idle(meter, protocol)
        if idle_w is None:
            raise SweetspotError("the energy counter of this GPU does not step; see what `sweetspot probe` finds")
    except BaseException:
        engine.close()
        raise
    return _Device(engine, meter, idle_w)


def _progress(job: dict[str, Any], cell: Any, rows: list[Any], index: int, total: int) -> str:
    valid = [row["energy_j"] for row in rows if row["valid"]]
    tokens = job["batch"] * cell["output_tokens"]
    energy = f"{sum(valid) / len(valid) / tokens:.4g} J/output token" if valid else "no valid repetition"
    return (
        f"[{index}/{total}] {job['model']} batch {job['batch']}: {cell['input_tokens']} -> {cell['output_tokens']} "
        f"tokens, {energy}, {len(valid)} of {len(rows)} repetitions valid"
    )


def _spec(job: dict[str, Any], resolved: Mapping[str, Any], limits: Mapping[str, int]) -> engines.EngineSpec:
    fields: dict[str, Any] = {**job["engine"], **limits}
    return engines.EngineSpec(
        architecture=Architecture(**resolved["architecture"]),
        batch=job["batch"],
        model_config=resolved.get("config", {}),
        **fields,
    )


if __name__ == "__main__":
    sys.exit(main())
