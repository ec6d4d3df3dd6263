"""Raw samples: one compressed file per visit to a cell, from which its rows can be judged again.

A file is gzipped JSON lines. Each window, or each board of it if it has several, is one line with its identity,
beginning and end, followed by one line per sample: s since the window began, counter in mJ since it opened, instant and
average power in W, temperature in degrees Celsius, SM clock in MHz, bits of the event reasons.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically
from sweetspot.measure.journal import Cell
from sweetspot.measure.protocol import Protocol, limits
from sweetspot.measure.visit import Repetition
from sweetspot.sensors.window import Edges, Limits, Readings, Sample, Verdict, judge

SCHEMA_VERSION = 1

_ENERGIES = ("energy_j", "energy_instant_j", "energy_average_j")  # per run in a row, per window in a verdict
_ROUNDING = 1e-4  # relative, from writing microseconds and milliwatts; far below a sensor's resolution


def write(path: Path, repetitions: Sequence[Repetition], protocol: Protocol) -> None:
    """Write the windows of a visit atomically. Raises OSError if the write fails."""
    lines = [
        line for row, window in repetitions for readings in window.readings for line in _lines(row, readings, protocol)
    ]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    write_atomically(path, gzip.compress(text.encode(), mtime=0))


def tidy(directory: Path, cells: Iterable[Cell], records: Iterable[Mapping[str, Any]]) -> None:
    """Remove what killed runs left of these cells: half-written files, and whole ones that no row came of.

    `records` are those of all journals beside; files of sessions that they do not know stay.
    """
    named, sessions = set[str](), set[str]()
    for record in records:
        sessions.add(record["session"])
        named.update(Path(row["raw"]).name for row in record.get("rows", ()) if row.get("raw"))
    for n, m in cells:
        whole = [path for path in directory.glob(f"i{n}-o{m}-*.jsonl.gz") if path.name not in named]
        ours = [path for path in whole if path.name.split("-", 2)[2].rpartition("-")[0] in sessions]
        for path in [*ours, *directory.glob(f".i{n}-o{m}-*")]:
            path.unlink(missing_ok=True)


def read(path: Path) -> list[tuple[dict[str, Any], Edges, list[Sample]]]:
    """Identity, edges and samples of each window, board by board. Raises SweetspotError if the file is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            windows: list[tuple[dict[str, Any], Edges, list[Sample]]] = []
            for line in map(json.loads, file):
                if isinstance(line, dict):
                    edges = line.pop("edges")
                    windows.append((line, Edges(**{**edges, "seen": tuple(edges["seen"])}), []))
                else:
                    windows[-1][2].append(Sample(*line))
        if not windows or any(len(samples) != about["samples"] for about, _, samples in windows):
            raise ValueError
    except FileNotFoundError:
        raise SweetspotError(f"{path}: raw samples are missing; the rows made from them are unaffected") from None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError):
        raise SweetspotError(
            f"{path}: raw samples are cut short or damaged; copy the file again. The rows made from them are unaffected"
        ) from None
    return windows


def judged_again(path: Path, override: Limits | None = None) -> dict[int, Verdict]:
    """Verdict on each whole window, by repetition, under `override` or the limits of its time. Raises as `read`."""
    windows: dict[int, list[Readings]] = {}
    for about, edges, samples in read(path):
        windows.setdefault(about["repetition"], []).append(Readings(edges, tuple(samples), about.get("board", "")))
    limits = override or Limits(**about["limits"])
    return {repetition: judge(readings, limits) for repetition, readings in windows.items()}


def check(directory: Path) -> int:
    """Judge every row in `directory` again and print differences; returns their number, with damaged files."""
    count = wrong = 0
    for path in sorted(directory.glob("measurements/*/*/*.jsonl")):
        rows = [row for row in map(json.loads, path.read_text().splitlines()) if row.get("raw")]
        for name in dict.fromkeys(row["raw"] for row in rows):
            of_file = [row for row in rows if row["raw"] == name]
            count += len(of_file)
            try:
                messages = list(_differences(directory / name, of_file))
            except SweetspotError as error:
                messages = [str(error)]
            wrong += len(messages)
            for message in messages:
                print(f"error: {message}", file=sys.stderr)
    print(f"{directory}: {count} rows judged again from their raw samples, {wrong} differences or damaged files")
    return wrong


def _differences(path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    verdicts = judged_again(path)
    for row in rows:
        verdict = verdicts.get(row["repetition"])
        place = f"{path}, repetition {row['repetition']}"
        if verdict is None:
            yield f"{place}: no raw samples of this row"
            continue
        if row["reasons"] != ";".join(verdict.reasons):
            yield f"{place}: reasons {row['reasons'] or 'none'}, judged again {';'.join(verdict.reasons) or 'none'}"
        for name in _ENERGIES:
            before, joules = row[name], getattr(verdict, name)
            after = None if joules is None else joules / row["batch_runs"]
            known = before is not None and after is not None
            if abs(before - after) > _ROUNDING * abs(before) if known else before != after:
                yield f"{place}: {name} is {before}, judged again {after}"


def _lines(row: Mapping[str, Any], readings: Readings, protocol: Protocol) -> Iterator[Any]:
    start_s, zero_mj = readings.edges.start_s, readings.edges.opened_mj or 0
    edges = asdict(readings.edges)
    for name in edges:
        if name.endswith(("_s", "_mj")) and edges[name] is not None:
            edges[name] = round(edges[name] - start_s, 6) if name.endswith("_s") else edges[name] - zero_mj
    about = ("model", "batch", "input_tokens", "output_tokens", "repetition", "batch_runs")
    yield {
        "schema_version": SCHEMA_VERSION,
        **{name: row[name] for name in about},
        **({"board": readings.board} if readings.board else {}),
        "start_s": readings.edges.start_s,
        "opened_mj": readings.edges.opened_mj,
        "edges": edges,
        "limits": vars(limits(protocol)),
        "samples": len(readings.samples),
    }
    for s in readings.samples:
        watts = [None if power_w is None else round(power_w, 3) for power_w in (s.instant_w, s.average_w)]
        at_s, counter_mj = round(s.at_s - start_s, 6), s.energy_mj - zero_mj
        yield [at_s, counter_mj, *watts, s.temperature_c, s.sm_clock_mhz, s.event_reasons]
