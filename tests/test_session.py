"""One measuring job: what it measures, what it keeps, and what it never measures twice."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from simulation import ARCHITECTURES
from sweetspot import architecture, journal, session
from sweetspot.measurement import Protocol


@pytest.fixture
def place(tmp_path: Path) -> Path:
    record = {"architecture": asdict(architecture.load(ARCHITECTURES / "opt-1.3b.json"))}
    (tmp_path / "architecture.json").write_text(json.dumps(record))
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
    shared = ["--architecture", str(place / "architecture.json"), "--engine", str(place / "engine")]
    assert session.main(["build", "--job", json.dumps({**work, "limits": limits}), *shared]) == 0
    output = place / f"{block}.jsonl"
    own = ["--journal", str(place / f"journal/{block}.jsonl"), "--output", str(output)]
    assert session.main(["measure", "--job", json.dumps(work), *shared, *own]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def lines(place: Path) -> list[str]:
    return [line for path in sorted((place / "journal").iterdir()) for line in path.read_text().splitlines()]


def test_rows_are_sorted_and_cells_measured_in_random_order(place: Path) -> None:
    cells = [(n, m) for n in (64, 128, 256) for m in (64, 128, 256)]
    rows = measure(place, job(cells))
    assert sorted({(row["input_tokens"], row["output_tokens"]) for row in rows}) == cells
    assert [row["input_tokens"] for row in rows] == sorted(row["input_tokens"] for row in rows)
    order = [(record["input_tokens"], record["output_tokens"]) for record in map(json.loads, lines(place))]
    assert sorted(order) == cells != order


def test_a_finished_cell_is_never_measured_again(place: Path) -> None:
    first = measure(place, job([(64, 64), (128, 64)]))
    before = lines(place)
    again = measure(place, job([(128, 64), (256, 64)]), block="another")
    assert [row for row in again if row["input_tokens"] == 128] == [row for row in first if row["input_tokens"] == 128]
    assert len(lines(place)) == len(before) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"batch": 5},
        {"protocol": asdict(Protocol(version=2))},
        {"protocol": asdict(Protocol(window_s=11.0))},
    ],
)
def test_what_a_cell_depends_on_measures_it_again(place: Path, change: dict[str, object]) -> None:
    measure(place, job([(64, 64)]))
    measure(place, job([(64, 64)], **change))
    assert len(lines(place)) == 2


def test_a_half_line_is_no_cell_and_spoils_no_other(place: Path) -> None:
    measure(place, job([(64, 64), (128, 64)]))
    path = place / "journal/grid.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + whole[1][: len(whole[1]) // 2])
    rows = measure(place, job([(64, 64), (128, 64), (256, 64)]))
    assert len({row["input_tokens"] for row in rows}) == 3
    parsed = []
    for line in path.read_text().splitlines():
        try:
            parsed.append(json.loads(line)["input_tokens"])
        except ValueError:
            parsed.append(None)
    assert parsed.count(None) == 1
    assert len(parsed) == 4


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the old file whole, and no temporary one."""
    path = tmp_path / "rows.jsonl"
    journal.write_atomically(path, "old\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.write_atomically(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
