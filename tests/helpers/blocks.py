"""Measuring jobs at hand for tests: a place, a job, its rows, its journals."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulation import ARCHITECTURES
from sweetspot import files, models
from sweetspot.measure import journal, session
from sweetspot.measure.journal import Place
from sweetspot.measure.protocol import Protocol

COLUMNS = {
    "schema_version",
    "model",
    "batch",
    "input_tokens",
    "output_tokens",
    "repetition",
    "energy_j",
    "energy_instant_j",
    "energy_average_j",
    "duration_s",
    "batch_runs",
    "window_s",
    "uncertainty_gain",
    "uncertainty_counter_step",
    "uncertainty_tail",
    "visit",
    "anchor",
    "power_w",
    "idle_w",
    "temperature_c",
    "sm_clock_mhz",
    "event_reasons",
    "power_capped_share",
    "valid",
    "reasons",
    "flags",
    "in_flight",
    "waves",
    "gpu",
    "gpu_uuid",
    "engine",
    "engine_version",
    "driver_version",
    "precision",
    "weights",
    "architecture",
    "source",
    "time_s",
}
"""What every row of a measured cell has at least."""


def prepare(tmp_path: Path) -> Path:
    """A campaign's directory with the architectures of the jobs below."""
    record = {"architecture": models.load(ARCHITECTURES / "opt-1.3b.json").as_dict()}
    files.write_atomically(Place(tmp_path, "opt", 4).architecture, json.dumps(record))
    files.write_atomically(Place(tmp_path, "opt", 5).architecture, json.dumps(record))
    return tmp_path


def job(cells: list[tuple[int, int]], **changes: object) -> dict[str, object]:
    engine = {
        "name": "simulated",
        "gpu": "NVIDIA H100 80GB HBM3",
        "precision": "float16",
        "weights": "none",
        "kv_cache_fraction": 0.9,
        "seed": 1,
    }
    return {
        "campaign": "test",
        "model": "opt",
        "batch": 4,
        "engine": engine,
        "protocol": asdict(Protocol()),
        "seed": 1,
        "cells": [{"input_tokens": n, "output_tokens": m, "flags": ""} for n, m in cells],
        **changes,
    }


def measure(place: Path, work: dict[str, object], block: str = "grid") -> list[dict[str, object]]:
    """Build an engine, measure, return the rows."""
    limits = {"max_input_tokens": 1024, "max_output_tokens": 1024}
    shared = ["--directory", str(place)]
    assert session.main(["build", "--job", json.dumps({**work, "limits": limits}), *shared]) == 0
    assert session.main(["measure", "--job", json.dumps(work), *shared, "--block", block]) == 0
    output = Place(place, "opt", work["batch"], block).rows
    return [json.loads(line) for line in output.read_text().splitlines()]


def records(place: Path) -> list[dict[str, Any]]:
    return journal.records(place.glob("journal/*/*/*.jsonl"))


def visits(place: Path) -> list[tuple[int, int, int | None]]:
    """Every visit in the journals: input_tokens, output_tokens, number."""
    return [(r["input_tokens"], r["output_tokens"], r["visit"]) for r in records(place) if "rows" in r]
