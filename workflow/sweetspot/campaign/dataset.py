"""Turns the directory of a measured campaign into a dataset to keep or publish.

`sweetspot dataset RESULTS OUT` writes OUT/rows.parquet (every measured row, including invalid ones), raw.tar (the raw
samples, by the names in column `raw`), sessions.jsonl (machine and idle power of each session), copies of machine.json
and runs.jsonl (the probe's record; commands and versions) if there are any, and a README.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.errors import SweetspotError
from sweetspot.measure import journal
from sweetspot.table import read as table
from sweetspot.table.files import write_parquet
from sweetspot.table.machines import flag_changes
from sweetspot.table.schema import CELL, GROUP
from sweetspot.vocabulary import SIMULATED

_COPIES = ("machine.json", "runs.jsonl")
_LIMITS = """Limits: energies are NVML's, not wall power, and a board's gain error is up to 5 %; requests of a batch are
equal, unlike a serving trace; only the boards named above were measured. Do not fit rows with `valid` false: they are
kept, with their reasons, for the record."""
_SESSION = ("session", "machine", "idle_w", "idle_reasons", "idle_after_w", "idle_after_reasons", "load_s")


def write(results: Path, out: Path) -> pl.DataFrame:
    """Write the dataset of `results` to the new directory `out` and return its rows.

    Raises SweetspotError if nothing was measured, raw samples are missing, or `out` exists.
    """
    files = sorted(results.glob("measurements/*/*/*.jsonl"))
    if not files:
        raise SweetspotError(f"{results}: no measurements/ in it; name the directory of a measured campaign")
    if out.exists():
        raise SweetspotError(f"{out}: exists; choose a new name or remove it (nothing is overwritten)")
    frame, _ = flag_changes(table.read(files).frame)
    frame = frame.filter(pl.col("reasons") != "not_measured_yet")
    if not frame.height:
        raise SweetspotError(f"{results}: nothing was measured yet; run the campaign first")
    names = sorted(frame["raw"].drop_nulls().unique())
    if missing := [name for name in names if not (results / name).is_file()]:
        raise SweetspotError(
            f"{results}: {len(missing)} files of raw samples are missing, first {missing[0]}; copy raw/ into it"
        )
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_parquet(frame, temporary / "rows.parquet")
    with tarfile.open(temporary / "raw.tar", "w") as archive:
        for name in names:
            data = (results / name).read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    records = journal.records(sorted(results.glob("journal/*/*/*.jsonl")))
    (temporary / "sessions.jsonl").write_text("".join(json.dumps(session) + "\n" for session in _sessions(records)))
    copies = [name for name in _COPIES if (results / name).is_file()]
    for name in copies:
        shutil.copy(results / name, temporary / name)
    (temporary / "README.md").write_text(_readme(out.name, frame, copies))
    temporary.rename(out)
    return frame


def _sessions(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    sessions: dict[str, dict[str, Any]] = {}
    for record in records:
        if "rows" not in record:
            sessions.setdefault(record["session"], {}).update({k: record[k] for k in _SESSION if k in record})
    return [sessions[name] for name in sorted(sessions)]


def _readme(name: str, frame: pl.DataFrame, copies: list[str]) -> str:
    def values(column: str) -> str:
        found = frame[column].drop_nulls().unique().sort().to_list() if column in frame.columns else []
        return ", ".join(str(value) for value in found if value != "") or "unknown"

    cells = frame.filter("valid").select(*GROUP, *CELL).unique().height
    facts = {
        "Source": ", ".join(SIMULATED.get(source, source) for source in values("source").split(", ")),
        "GPU": values("gpu"),
        "Board": values("gpu_uuid"),
        "Driver": values("driver_version"),
        "Engine": f"{values('engine')} {values('engine_version')}",
        "Models": values("model"),
        "Weights": values("weights"),
        "Batches": values("batch"),
        "Sessions": str(frame["session"].n_unique()),
        "Rows": f"{frame.height}; {int(frame['valid'].sum())} are valid, in {cells} cells",
    }
    files = {
        "rows.parquet": "one row per repetition; joules of one run of the whole batch, whole board, idle included",
        "raw.tar": "polled samples of every window, gzipped JSON Lines, by the names in column `raw`",
        "sessions.jsonl": "machine and idle power of every session",
        "machine.json": "what `sweetspot probe` found about the sensors",
        "runs.jsonl": "the commands that measured, with versions",
    }
    listed = {file: what for file, what in files.items() if file not in _COPIES or file in copies}
    lines = [f"# {name}", "", "Energy of LLM inference. Made by `sweetspot dataset`.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| file | content |", "| --- | --- |", *(f"| `{k}` | {what} |" for k, what in listed.items())]
    lines += ["", _LIMITS]
    return "\n".join(lines) + "\n"
