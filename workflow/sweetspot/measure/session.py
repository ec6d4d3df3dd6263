"""One job on one device: build an engine, or measure a block of cells with one loaded engine.

Runs in the engine's environment as `python -m sweetspot.measure.session`, so it needs the standard library only. The
job is one JSON object, which Snakemake tracks as the rule's parameter; nothing else determines what is measured.
"""

import argparse
import errno
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sweetspot import engines, files, models
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine
from sweetspot.measure import journal, pace, raw, rows
from sweetspot.measure.journal import Cell, Place
from sweetspot.measure.protocol import Protocol, measure_idle, open_meter
from sweetspot.measure.rows import place
from sweetspot.measure.visit import Repetition, unmeasured_cell, visit_cell
from sweetspot.sensors.board import changes
from sweetspot.sensors.meter import Meter, SensorError
from sweetspot.sensors.window import board_wide, explained

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
        resolved = files.read_object(where.architecture)
        (build if options.command == "build" else measure)(job, resolved, where)
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
            f"error: cannot write to {options.directory}: {error.strerror}; free some space and run again: finished "
            "cells are kept",
            file=sys.stderr,
        )
        return 1
    return 0


def build(job: Mapping[str, Any], resolved: Mapping[str, Any], where: Place) -> None:
    """Build the engine; if the GPU is too small, record that for its cells. Raises SweetspotError as engines.build."""
    spec = _spec(job, resolved, job["limits"])
    try:
        engines.build(spec, where.engine)
    except OutOfMemory as error:
        engines.build_none(spec, where.engine, str(error))
        print(f"warning: {spec.architecture.name} batch {spec.batch}: {error}: its cells are skipped", file=sys.stderr)


def measure(job: Mapping[str, Any], resolved: Mapping[str, Any], where: Place) -> None:
    """Measure the cells of `job` that no journal holds yet, then write the rows of all of them.

    A cell that does not fit in the GPU's memory becomes one invalid row; it is not in the journal, so the next run of
    the job tries it again. All jobs of a (model, batch) keep their journals in one directory, so a grid that is
    partitioned differently still finds every earlier visit. Raises SweetspotError if engine or sensor are unusable.
    """
    with journal.claimed(where, map(place, job["cells"])):
        block = Block(job, resolved, where)
        block.run(block.pending())
        block.write_rows()


def key(job: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """The key under which journals store what `job` measures: everything its rows depend on, except the cells."""
    inputs = {name: job[name] for name in ("model", "batch", "protocol", "seed")}
    inputs["engine"] = engines.identity(job["engine"])
    return files.key(inputs | models.identity(resolved))


class Block:
    """The cells of one measuring job, their records in the journals, and the visits left to make."""

    def __init__(
        self,
        job: Mapping[str, Any],
        resolved: Mapping[str, Any],
        where: Place,
        watch: pace.Stopwatch | None = None,
        build_job: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the journals. `watch`: visits start only if they can end in time; `build_job`: builds the engine."""
        self.job, self.where, self.watch = job, where, watch
        self.build_job, self.resolved = build_job, resolved
        self.protocol = Protocol(**job["protocol"])
        self.cells = {place(cell): cell for cell in job["cells"]}
        self.spec = _spec(job, resolved, engines.limits(job["cells"]))
        self.key = key(job, resolved)
        self.records = journal.records(where.journals, self.key)
        self._failures = Counter(place(record) for record in self.records if "failed" in record)
        broken = [cell for cell in self.cells if self._failures[cell] > self.protocol.retries]
        self.unmeasured: dict[Cell, str] = dict.fromkeys(broken, "engine_failed")  # reasons for cells left out
        self.visiting: Cell | None = None  # the cell whose visit is in progress

    def pending(self, cells: Iterable[Cell] | None = None, visits: int | None = None) -> list[Visit]:
        """The visits left, in random order: to `cells` or all cells, only the first `visits` to each or all.

        Order effects are real, so cells are never measured in the order of the grid, nor twice in the same order. Cells
        that broke the engine come last, so that they delay no others, and are dropped after too many failures.
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
        """Make the visits; each is in the journal before the next begins. Raises SweetspotError as `measure` does."""
        if not pending:
            return
        raw.tidy(self.where.raw, self.cells, journal.records(self.where.journals))
        every = self.protocol.anchor_every
        # A block that is nearly done needs no anchors.
        whole = [cell for cell in self.cells if not self._failures[cell]] or self.cells
        ordered = sorted(whole, key=lambda cell: (sum(cell), cell))
        anchor = self.cells[ordered[len(ordered) // 2]] if every and 2 * len(pending) >= every else None
        with _device(self) as device:
            for index, (visit, cell) in enumerate(pending, 1):
                if anchor and device.since_anchor in (None, every):
                    self._visit(device, None, anchor, "anchor")
                self._visit(device, visit, cell, f"{index}/{len(pending)}")
            if anchor and device.since_anchor:
                self._visit(device, None, anchor, "anchor")

    def write_rows(self) -> None:
        """Write the rows of the job; a cell without rows, or with a reason that no row states, gets an invalid one."""
        finished = rows.finish(self.records, self.cells, self.protocol)
        stated = defaultdict[Cell, list[str]](list)
        for row in finished:
            stated[place(row)].append(row["reasons"])
        for where, cell in self.cells.items():
            known = stated[where]
            reason = self.unmeasured.get(where, "" if known else "not_measured_yet")
            if reason and not any(reason in reasons.split(";") for reasons in known):
                row = unmeasured_cell(self.spec, cell, reason)
                row.update(campaign=self.job["campaign"], model=self.job["model"], repetition=len(known))
                finished.append(row)
        finished.sort(key=lambda row: (place(row), row["repetition"]))
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in finished)
        files.write_with_digest(self.where.rows, lines)

    def record(self, record: Mapping[str, Any]) -> None:
        """Append a record to the journal."""
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
                done.append(repetition)  # one by one, to keep those before an error
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
                failure = f"{type(error).__name__}: {error}"
                self.record({**cell, "session": opened.name, "failed": failure})
            raise
        self.visiting = None
        if shortage:
            # Requests left in the engine would run beside those of the next cell, so load again; but not while the
            # exception is handled, because its traceback keeps the memory alive.
            print(f"warning: {shortage}", file=sys.stderr, flush=True)
            if device.opened:
                device.end_session()
            else:
                device.too_large = shortage
            self.unmeasured[where] = "out_of_memory"
            return
        made = self._keep(device, opened, visit, cell, done, start_s)
        print(self._progress(cell, made, label), file=sys.stderr, flush=True)
        device.has_measured |= any(row["valid"] for row in made)
        if not device.has_measured:
            # The block's first cell failed whenever it was tried. If the cause is the board, so will the others.
            common = set.intersection(*(set(row["reasons"].split(";")) for row in made))
            if stopping := board_wide(common):
                raise UnfitMachine(stopping)
        if any("power_limit_changed" in row["reasons"] for row in made):
            # A new session records the new limit, and its rows can be valid again.
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
        everywhere = [] if device.opened else journal.records(self.where.directory.glob("journal/*/*/*"))
        return pace.load_s(everywhere) + pace.visit_s(self.records, cell, visit, self.protocol) <= watch.left_s()

    def _progress(self, cell: Mapping[str, Any], made: Sequence[Mapping[str, Any]], label: str) -> str:
        valid = [row["energy_j"] for row in made if row["valid"]]
        tokens = self.job["batch"] * cell["output_tokens"]
        energy = f"{sum(valid) / len(valid) / tokens:.4g} J/output token" if valid else "no valid repetition"
        energy += " (SIMULATED)" * bool(valid and engines.is_simulated(self.spec.name))
        left = f", {self.watch.left_s():.0f} s left" if self.watch else ""
        return (
            f"[{label}] {self.job['model']} batch {self.job['batch']}: {cell['input_tokens']} -> "
            f"{cell['output_tokens']} tokens, {energy}, {len(valid)} of {len(made)} repetitions valid{left}"
        )


class _Opened(NamedTuple):
    """A loaded engine, the meter of its GPUs, its idle power in W, and the session's name."""

    engine: engines.Engine
    meter: Meter
    idle_w: float | None
    name: str


class _Device:
    """The GPU with the block's engine, loaded when first needed and after running out of memory: a session each."""

    def __init__(self, block: Block) -> None:
        self._block, self.too_large = block, ""
        self.opened: _Opened | None = None
        self.visits = 0  # of all sessions
        self.has_measured = any(row["valid"] for record in block.records for row in record.get("rows", ()))
        self.since_anchor: int | None = None  # visits since the last anchor; None before the first

    def open(self) -> _Opened:
        """The loaded engine. Raises OutOfMemory if it does not fit, SweetspotError if it cannot be used."""
        if self.too_large:
            raise OutOfMemory(self.too_large)  # if loading failed once, do not try again for the next cell
        if not self.opened:
            self.opened = self._load()
        return self.opened

    def _load(self) -> _Opened:
        block, start_s = self._block, time.monotonic()
        if block.build_job is not None and engines.unfit(block.spec, block.where.engine):
            engines.build(_spec(block.build_job, block.resolved, block.build_job["limits"]), block.where.engine)
        engine, sensors, clock = engines.open_device(block.spec, block.where.engine)
        try:
            if block.watch:
                block.watch.use(clock)
                engine = pace.timed(engine, block.watch)
            load_s, idle_s = time.monotonic() - start_s, clock.now()
            meter = open_meter(sensors, clock, block.protocol)
            idle_w, reasons = measure_idle(meter, block.protocol)
            if stopping := board_wide(reasons):
                raise UnfitMachine(stopping)
            if reasons:
                why = "; ".join(map(explained, reasons))
                print(f"warning: idle power is unknown: {why}", file=sys.stderr, flush=True)
            load_s += clock.now() - idle_s
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3].replace(".", "") + f"-{os.urandom(2).hex()}"
            machine = meter.machine()
            earlier = [record["machine"] for record in block.records if "machine" in record]
            for change in changes(earlier[-1], machine) if earlier else ():
                print(f"warning: the machine changed since the last session: {change}", file=sys.stderr, flush=True)
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


@contextmanager
def _device(block: Block) -> Iterator[_Device]:
    """A device for the block's visits. Idle power is measured again at the end, if there is time."""
    device = _Device(block)
    try:
        yield device
        in_time = block.watch is None or block.watch.left_s() >= block.protocol.idle_s
        if device.opened and device.visits and in_time:
            idle_w, reasons = measure_idle(device.opened.meter, block.protocol)
            block.record({"session": device.opened.name, "idle_after_w": idle_w, "idle_after_reasons": reasons})
    except BaseException:
        with suppress(Exception):  # an error on closing would hide the original one
            device.end_session()
        raise
    device.end_session()


def _spec(job: Mapping[str, Any], resolved: Mapping[str, Any], limits: Mapping[str, int]) -> engines.EngineSpec:
    fields: dict[str, Any] = {**job["engine"], **limits, "model_config": resolved.get("config", {})}
    return engines.EngineSpec(architecture=models.of_record(resolved), batch=job["batch"], **fields)


if __name__ == "__main__":
    sys.exit(main())
