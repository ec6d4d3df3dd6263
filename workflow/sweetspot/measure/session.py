"""One job on one device: build an engine, or measure a block of cells with one loaded engine.

Runs in the engine's environment as `python -m sweetspot.measure.session`, so it needs the standard library only. The
job is one JSON object, the same that Snakemake tracks as the rule's parameter: nothing else decides what is measured.
"""

import argparse
import errno
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from sweetspot import engines, files
from sweetspot.architecture import Architecture
from sweetspot.errors import OutOfMemory, SweetspotError
from sweetspot.measure import journal, pace, raw, rows
from sweetspot.measure.journal import Cell, Place
from sweetspot.measure.protocol import Protocol, measure_idle, open_meter
from sweetspot.measure.rows import place
from sweetspot.measure.visit import Repetition, unmeasured_cell, visit_cell
from sweetspot.sensors.board import changes
from sweetspot.sensors.meter import REASONS, Meter, SensorError

Visit = tuple[int, Mapping[str, Any]]  # its number, from 0, and the cell


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status. A problem the user can solve is one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m sweetspot.measure.session", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "measure"):
        command = commands.add_parser(name)
        command.add_argument("--job", type=json.loads, required=True, help="the job as JSON")
        command.add_argument("--directory", type=Path, required=True, help="the campaign's directory")
    command.add_argument("--block", required=True, help="name of the block of cells")
    options = parser.parse_args(arguments)
    job = options.job
    try:
        where = Place(options.directory, job["model"], job["batch"], getattr(options, "block", ""))
        resolved = json.loads(where.architecture.read_text())
        if options.command == "build":
            build(job, resolved, where)
        else:
            measure(job, resolved, where)
    except SweetspotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"error: cannot write to {options.directory}: {error.strerror}; make room and run again: finished "
            "cells are kept",
            file=sys.stderr,
        )
        return 1
    return 0


def build(job: Mapping[str, Any], resolved: Mapping[str, Any], where: Place) -> None:
    """Build the engine that `job` asks for. Raises SweetspotError as engines.build does.

    Where the GPU's memory does not suffice, what is built says so, and the cells' rows will.
    """
    spec = _spec(job, resolved, job["limits"])
    try:
        engines.build(spec, where.engine)
    except OutOfMemory as error:
        engines.build_none(spec, where.engine, str(error))
        print(f"warning: {spec.architecture.name} batch {spec.batch}: {error}: its cells are skipped", file=sys.stderr)


def measure(job: Mapping[str, Any], resolved: Mapping[str, Any], where: Place) -> None:
    """Measure what no journal holds yet of the cells of `job`, then write all their rows.

    `resolved` is the content of the resolved architecture: the dimensions and the publisher's config.json. A cell that
    the GPU's memory does not suffice for becomes one invalid row; it stays out of the journal, so that the next run of
    the job tries it again.
    Journals of other jobs of the same (model, batch) lie in the same directory, so another partition of the grid into
    jobs finds every visit that was made before. Raises SweetspotError when the engine or the sensor cannot be used.
    """
    with journal.claimed(where, map(place, job["cells"])):
        block = Block(job, resolved, where)
        block.run(block.pending())
        block.write_rows()


def key(job: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """The key under which journals hold what `job` measures: all that its rows depend on but the cells."""
    inputs = {name: job[name] for name in ("model", "batch", "protocol", "seed")}
    inputs["engine"] = engines.identity(job["engine"])
    return files.key({**inputs, "architecture": resolved["architecture"], "config": resolved.get("config", {})})


class Block:
    """The cells of one measuring job, what the journals hold of them, and what is still to be done."""

    def __init__(
        self,
        job: Mapping[str, Any],
        resolved: Mapping[str, Any],
        where: Place,
        watch: pace.Stopwatch | None = None,
        build_job: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the journals. With `watch` no visit is begun that is not expected to end in time.

        With `build_job` the engine is built when it is needed and not there.
        """
        self.job, self.where, self.watch = job, where, watch
        self._build_job, self._resolved = build_job, resolved
        self.protocol = Protocol(**job["protocol"])
        self.cells = {place(cell): cell for cell in job["cells"]}
        self.spec = _spec(job, resolved, engines.limits(job["cells"]))
        self.key = key(job, resolved)
        self.records = journal.records(where.journals, self.key)
        self._failures = Counter(place(record) for record in self.records if "failed" in record)
        broken = [cell for cell in self.cells if self._failures[cell] > self.protocol.retries]
        self.unmeasured: dict[Cell, str] = dict.fromkeys(broken, "engine_failed")  # reasons, of cells left out
        self.visiting: Cell | None = None  # the cell whose visit has begun and not ended

    def pending(self, cells: Iterable[Cell] | None = None, visits: int | None = None) -> list[Visit]:
        """The visits that are still to be made, in random order: of `cells` or all, the first `visits` or all.

        Order effects are real, so cells are never measured in the order of the grid, nor twice in the same order. Cells
        that broke the engine come last, so that they are in nobody's way, and no more when they did it too often.
        """
        chosen = self.cells.keys() if cells is None else set(cells)
        pending: list[Visit] = []
        for visit in range(self.protocol.visits if visits is None else min(visits, self.protocol.visits)):
            order = [
                cell
                for where, cell in self.cells.items()
                if where in chosen
                and self._failures[where] <= self.protocol.retries
                and not rows.is_finished(self.records, where, visit, self.protocol)
            ]
            seed = f"{self.job['seed']}/{self.job['model']}/{self.job['batch']}" + (f"/{visit}" if visit else "")
            random.Random(seed).shuffle(order)
            pending += [(visit, cell) for cell in order]
        return sorted(pending, key=lambda visit: self._failures[place(visit[1])])

    def run(self, pending: Sequence[Visit]) -> None:
        """Make the visits, each in the journal before the next begins. Raises SweetspotError as `measure` does."""
        if not pending:
            return
        every = self.protocol.anchor_every
        # A block that is nearly done costs what is missing, without an anchor before and after.
        whole = [cell for cell in self.cells if not self._failures[cell]] or self.cells
        ordered = sorted(whole, key=lambda cell: (sum(cell), cell))
        anchor = self.cells[ordered[len(ordered) // 2]] if every and 2 * len(pending) >= every else None
        with _Device(self) as device:
            for index, (visit, cell) in enumerate(pending, 1):
                if anchor and device.since_anchor in (None, every):
                    self._visit(device, None, anchor, "anchor")
                self._visit(device, visit, cell, f"{index}/{len(pending)}")
            if anchor and device.since_anchor:
                self._visit(device, None, anchor, "anchor")

    def write_rows(self) -> None:
        """Write the rows of the job; a cell without any, or with a reason that none tells, gets an invalid one."""
        finished = rows.finish(self.records, self.cells, self.protocol)
        told: dict[Cell, list[str]] = {}
        for row in finished:
            told.setdefault(place(row), []).append(row["reasons"])
        for where, cell in self.cells.items():
            those = told.get(where, [])
            reason = self.unmeasured.get(where, "" if those else "not_measured_yet")
            if reason and not any(reason in reasons.split(";") for reasons in those):
                row = unmeasured_cell(self.spec, cell, reason)
                row.update(campaign=self.job["campaign"], model=self.job["model"], repetition=len(those))
                finished.append(row)
        finished.sort(key=lambda row: (place(row), row["repetition"]))
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in finished)
        files.write_with_digest(self.where.rows, lines)

    def build_if_needed(self) -> None:
        """Build the engine where none serves and the block knows how. Raises SweetspotError as engines.build does."""
        if self._build_job is not None and engines.unfit(self.spec, self.where.engine):
            engines.build(_spec(self._build_job, self._resolved, self._build_job["limits"]), self.where.engine)

    def record(self, record: Mapping[str, Any]) -> None:
        """Keep something for good."""
        full = {"key": self.key, **record}
        journal.append(self.where.journal, full)
        self.records.append(full)

    def _visit(self, device: "_Device", visit: int | None, cell: Mapping[str, Any], label: str) -> None:
        where = place(cell)
        if where in self.unmeasured or (self.watch and not self._fits(device, visit, cell, self.watch)):
            return
        earlier = rows.of_cells(self.records).get(where, [])
        shortage, done = "", list[Repetition]()
        try:
            opened = device.open()
            self.visiting = where
            start_s = opened.meter.clock.now()
            for repetition in visit_cell(
                opened.engine, opened.meter, self.spec, cell, self.protocol, opened.idle_w, visit, earlier
            ):
                done.append(repetition)  # one by one: what ended before an error is kept
        except OutOfMemory as error:
            shortage = str(error)
        except pace.OutOfTime:
            self.visiting = None
            return
        except SensorError as error:
            self.unmeasured[where] = error.reason
            if done:
                self._keep(device, opened, visit, cell, done, start_s, cut_short=error.reason)
            raise
        except Exception as error:
            if self.visiting:
                said = f"{type(error).__name__}: {error}"
                self.record({**cell, "session": opened.name, "failed": said})
            raise
        self.visiting = None
        if shortage:
            # What an engine keeps of requests that broke off would run beside those of the next cell: load again. Not
            # while the exception is handled, whose traceback holds on to the memory.
            print(f"warning: {shortage}", file=sys.stderr, flush=True)
            device.give_up(shortage)
            self.unmeasured[where] = "out_of_memory"
            return
        made = self._keep(device, opened, visit, cell, done, start_s)
        print(self._progress(cell, made, label), file=sys.stderr, flush=True)
        if any("power_limit_changed" in row["reasons"] for row in made):
            # Under the new limit all can be well again: in a session of its own, whose rows say so.
            device.end_session()
            if visit is not None and not rows.is_finished(self.records, where, visit, self.protocol):
                self._visit(device, visit, cell, label)

    def _keep(
        self,
        device: "_Device",
        opened: "_Opened",
        visit: int | None,
        cell: Mapping[str, Any],
        done: Sequence[Repetition],
        start_s: float,
        **about_visit: str,
    ) -> list[dict[str, Any]]:
        """Write the raw samples of a visit, then its rows to the journal; returns them."""
        cell_name = "i{}-o{}".format(*place(cell))
        file = self.where.raw / f"{cell_name}-{opened.name}-{device.visits:03d}.jsonl.gz"
        raw.write(file, done, self.protocol)
        about = {name: self.job[name] for name in ("campaign", "model")}
        about |= {"session": opened.name, "raw": file.relative_to(self.where.directory).as_posix()}
        made = [{**repetition.row, **about} for repetition in done]
        took_s = opened.meter.clock.now() - start_s
        about_visit |= {"session": opened.name}
        self.record({**cell, "visit": visit, **about_visit, "took_s": round(took_s, 3), "rows": made})
        device.visits += 1
        device.since_anchor = 0 if visit is None else (device.since_anchor or 0) + 1
        return made

    def _fits(self, device: "_Device", visit: int | None, cell: Mapping[str, Any], watch: pace.Stopwatch) -> bool:
        load_s = (
            0.0 if device.opened else pace.load_s(journal.records(self.where.directory.glob("journal/*/*/*"), None))
        )
        return load_s + pace.visit_s(self.records, cell, visit, self.protocol) <= watch.left_s()

    def _progress(self, cell: Mapping[str, Any], made: Sequence[Mapping[str, Any]], label: str) -> str:
        valid = [row["energy_j"] for row in made if row["valid"]]
        tokens = self.job["batch"] * cell["output_tokens"]
        energy = f"{sum(valid) / len(valid) / tokens:.4g} J/output token" if valid else "no valid repetition"
        left = f", {self.watch.left_s():.0f} s left" if self.watch else ""
        return (
            f"[{label}] {self.job['model']} batch {self.job['batch']}: {cell['input_tokens']} -> "
            f"{cell['output_tokens']} tokens, {energy}, {len(valid)} of {len(made)} repetitions valid{left}"
        )


@dataclass(frozen=True)
class _Opened:
    """A loaded engine, the meter of its GPU, the power in W while it has nothing to do, and the session's name."""

    engine: engines.Engine
    meter: Meter
    idle_w: float | None
    name: str


class _Device:
    """The GPU with the block's engine on it, loaded when first needed and again after it ran out of memory.

    Each load is a session of its own: its machine and idle powers go to the journal.
    """

    def __init__(self, block: Block) -> None:
        self._block, self._too_large = block, ""
        self.opened: _Opened | None = None
        self.visits = 0  # of all sessions
        self.since_anchor: int | None = None  # visits since the last one as the anchor; None before the first

    def __enter__(self) -> "_Device":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.opened and kind is None and self.visits and not self._late():
                idle_w, reasons = measure_idle(self.opened.meter, self._block.protocol)
                self._block.record({"session": self.opened.name, "idle_after_w": idle_w, "idle_after_reasons": reasons})
        finally:
            try:
                self.end_session()
            except Exception:
                if kind is None:
                    raise  # else what the GPU says on its way out would hide what happened to it

    def open(self) -> _Opened:
        """The loaded engine. Raises OutOfMemory when it does not fit, SweetspotError when it cannot be used."""
        if self._too_large:
            raise OutOfMemory(self._too_large)  # what did not load once does not load for the next cell
        if not self.opened:
            self.opened = self._load()
        return self.opened

    def give_up(self, shortage: str) -> None:
        """Close the engine that ran out of memory, or remember that it does not load for this."""
        if self.opened:
            self.end_session()
        else:
            self._too_large = shortage

    def _load(self) -> _Opened:
        block, start_s = self._block, time.monotonic()
        block.build_if_needed()
        engine, sensor, clock = engines.open_device(block.spec, block.where.engine)
        try:
            if block.watch:
                block.watch.use(clock)
                engine = pace.Timed(engine, block.watch)
            load_s, idle_s = time.monotonic() - start_s, clock.now()
            meter = open_meter(sensor, clock, block.protocol)
            idle_w, reasons = measure_idle(meter, block.protocol)
            if "counter_stuck" in reasons:
                raise SweetspotError("the energy counter of this GPU does not step; see what `sweetspot probe` finds")
            if reasons:
                told = "; ".join(REASONS[reason] for reason in reasons)
                print(f"warning: idle power is not known: {told}", file=sys.stderr, flush=True)
            load_s += clock.now() - idle_s
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3].replace(".", "") + f"-{os.urandom(2).hex()}"
            machine = dict(sensor.machine())
            earlier = [record["machine"] for record in block.records if "machine" in record]
            for change in changes(earlier[-1], machine) if earlier else ():
                print(f"warning: not the machine of the last session: {change}", file=sys.stderr, flush=True)
            about = {"machine": machine, "idle_w": idle_w, "idle_reasons": reasons, "load_s": round(load_s, 3)}
            block.record({"session": name, **about})
        except BaseException:
            engine.close()
            raise
        return _Opened(engine, meter, idle_w, name)

    def end_session(self) -> None:
        """Close the engine, if it is open; `open` loads it again."""
        if self.opened:
            self.opened.engine.close()
        self.opened, self.since_anchor = None, None

    def _late(self) -> bool:
        watch = self._block.watch
        return watch is not None and watch.left_s() < self._block.protocol.idle_s


def _spec(job: Mapping[str, Any], resolved: Mapping[str, Any], limits: Mapping[str, int]) -> engines.EngineSpec:
    fields: dict[str, Any] = {**job["engine"], **limits}
    return engines.EngineSpec(
        architecture=Architecture(**resolved["architecture"]),
        batch=job["batch"],
        model_config=resolved.get("config", {}),
        **fields,
    )


if __name__ == "__main__":
    sys.exit(main())
