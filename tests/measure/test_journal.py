"""Journals: nothing measured is lost, counted twice or changed unseen, whatever happened to the files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from blocks import job, measure, prepare, records, visits
from sweetspot.measure import journal, session

CELLS = [(64, 64), (64, 128)]


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, list[dict[str, Any]], Path]:
    """A campaign's directory, its rows, and its journal."""
    rows = measure(prepare(tmp_path), job(CELLS))
    (path,) = tmp_path.glob("journal/*/*/*.jsonl")
    return tmp_path, rows, path


@pytest.mark.parametrize("name", ["grid.backup.jsonl", "a copy.jsonl", "zzz.jsonl"])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.97])
def test_a_copy_of_a_journal_beside_it_adds_no_rows(measured: Any, name: str, part: float) -> None:
    place, rows, path = measured
    data = path.read_bytes()
    path.with_name(name).write_bytes(data[: int(part * len(data))])
    made = visits(place)
    assert measure(place, job(CELLS)) == rows
    assert visits(place) == made, "and nothing is measured again"


def test_a_journal_that_came_by_way_of_windows_is_the_same(measured: Any) -> None:
    place, rows, path = measured
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert measure(place, job(CELLS)) == rows


@pytest.mark.parametrize("name", ["flags", "energy_j", "visit", "repetition", "uncertainty_tail", "session", "key"])
def test_a_damaged_line_is_not_used_but_measured_again(
    measured: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _, path = measured
    made = sorted(visits(place))
    lines = path.read_bytes().splitlines()
    number = next(number for number, line in enumerate(lines) if b'"rows"' in line)
    lines[number] = lines[number].replace(f'"{name}"'.encode(), b'"nothing"')
    path.write_bytes(b"\n".join(lines))
    again = measure(place, job(CELLS))
    assert f"warning: {path}, line {number + 1}: damaged, not used" in capsys.readouterr().err
    assert sorted(visits(place)) == made
    assert {(row["output_tokens"], row["visit"]) for row in again} == {(m, visit) for _, m, visit in made}


def test_journals_that_disagree_on_a_row_are_refused(measured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place, _, path = measured
    for record in records(place):
        for row in record.get("rows", ()):
            row["energy_j"] *= 2
        journal.append(path.with_name("other.jsonl"), record)
    work = ["--job", json.dumps(job(CELLS)), "--directory", str(place), "--block", "grid"]
    assert session.main(["measure", *work]) == 1
    assert "other.jsonl, line " in (said := capsys.readouterr().err)
    assert f"is also in {path}, with other content" in said


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"null", b"[]", b'"text"', b"{}", b'{"key": 1}', b"\xff\xfe", b'{"rows": 1}']
)
def test_lines_that_are_no_records_are_passed_over(measured: Any, line: bytes) -> None:
    place, rows, path = measured
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    assert measure(place, job(CELLS)) == rows


def test_a_line_is_on_the_disk_before_the_next_cell_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().read_bytes())

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "journal.jsonl"
    for number in range(3):
        journal.append(path, {"key": "k", "session": str(number)})
        assert synced[-1] == path.read_bytes(), "all of it, and before append returns"
    assert len(synced) == 3
