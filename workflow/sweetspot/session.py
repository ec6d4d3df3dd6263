"""One job on one device: build an engine, or measure a block of cells with one loaded engine.

Runs inside the engine's environment as `python -m sweetspot.session`, so it needs the standard library only. The job is
one JSON object, the same that Snakemake tracks as the rule's parameter: nothing else decides what is measured.
"""

import argparse
import json
import os
import random
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sweetspot import engines, journal
from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.measurement import Protocol, measure_cell, measure_idle, open_meter


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
        architecture = Architecture(**json.loads(options.architecture.read_text())["architecture"])
        if options.command == "build":
            engines.build(_spec(options.job, architecture, options.job["limits"]), options.engine)
        else:
            measure(options.job, architecture, options.engine, options.journal, options.output)
    except SweetspotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def measure(job: dict[str, Any], architecture: Architecture, engine: Path, journal_file: Path, output: Path) -> None:
    """Measure the cells of `job` that no journal beside `journal_file` holds yet, then write all rows to `output`.

    Journals of other jobs of the same (model, batch) lie in the same directory, so another partition of the grid into
    jobs finds every cell that was measured before. Raises SweetspotError when the engine or the sensor cannot be used.
    """
    inputs = {name: job[name] for name in ("model", "batch", "engine", "protocol", "seed")}
    key = journal.key({**inputs, "architecture": asdict(architecture)})
    wanted = {(cell["input_tokens"], cell["output_tokens"]): cell for cell in job["cells"]}
    done = journal.finished(journal_file.parent.glob("*.jsonl"), key)
    missing = [cell for place, cell in wanted.items() if place not in done]
    if missing:
        for cell, rows in _measure_missing(job, architecture, engine, missing):
            journal.append(journal_file, {"key": key, **cell, "rows": rows})
            done[cell["input_tokens"], cell["output_tokens"]] = rows
    rows = [row for place in sorted(wanted) for row in done[place]]
    journal.write_atomically(output, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _measure_missing(job: dict[str, Any], architecture: Architecture, engine_directory: Path, cells: list[Any]) -> Any:
    limits = {f"max_{length}": max(cell[length] for cell in cells) for length in ("input_tokens", "output_tokens")}
    spec = _spec(job, architecture, limits)
    session = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"
    engine, sensor, clock = engines.open_device(spec, engine_directory)
    protocol = Protocol(**job["protocol"])
    meter = open_meter(sensor, clock, protocol)
    order = random.Random(
        f"{job['seed']}/{job['model']}/{job['batch']}"
    )  # order effects are real: never sweep in order
    order.shuffle(cells)
    try:
        idle_w = measure_idle(meter, protocol)
        if idle_w is None:
            raise SweetspotError("the energy counter of this GPU does not step; see what `sweetspot probe` finds")
        for index, cell in enumerate(cells, 1):
            rows = measure_cell(engine, meter, spec, cell, protocol, idle_w)
            for row in rows:
                row.update(campaign=job["campaign"], model=job["model"], session=session)
            print(_progress(job, cell, rows, index, len(cells)), file=sys.stderr, flush=True)
            yield cell, rows
    finally:
        engine.close()


def _progress(job: dict[str, Any], cell: Any, rows: list[Any], index: int, total: int) -> str:
    valid = [row["energy_j"] for row in rows if row["valid"]]
    tokens = job["batch"] * cell["output_tokens"]
    energy = f"{sum(valid) / len(valid) / tokens:.4g} J/output token" if valid else "no valid repetition"
    return (
        f"[{index}/{total}] {job['model']} batch {job['batch']}: {cell['input_tokens']} -> {cell['output_tokens']} "
        f"tokens, {energy}, {len(valid)} of {len(rows)} repetitions valid"
    )


def _spec(job: dict[str, Any], architecture: Architecture, limits: dict[str, int]) -> engines.EngineSpec:
    fields: dict[str, Any] = {**job["engine"], **limits}
    return engines.EngineSpec(architecture=architecture, batch=job["batch"], **fields)


if __name__ == "__main__":
    sys.exit(main())
