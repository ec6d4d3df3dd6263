"""Journals: nothing measured is lost, counted twice or changed unseen, whatever happened to the files."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from blocks import job, measure, prepare, records, visits
from sweetspot.measure import journal, session

CELLS = [(64, 64), (64, 128)]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[dict[str, Any]], Path]:
    """A campaign's directory, its rows, and its journal."""
    rows = measure(prepare(tmp_path), job(CELLS))
    (path,) = tmp_path.glob("journal/*/*/*.jsonl")
    return tmp_path, rows, path


@pytest.mark.parametrize("name", ["grid.backup.jsonl", "a copy.jsonl", "zzz.jsonl"])
@pytest.mark.parametrize("part", [1.0, 0.5, 0.97])
def test_a_copy_of_a_journal_beside_it_adds_no_rows(made: Any, name: str, part: float) -> None:
    place, rows, path = made
    data = path.read_bytes()
    path.with_name(name).write_bytes(data[: int(part * len(data))])
    before = visits(place)
    assert measure(place, job(CELLS)) == rows
    assert visits(place) == before, "and nothing is measured again"


def test_a_journal_that_came_by_way_of_windows_is_the_same(made: Any) -> None:
    place, rows, path = made
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert measure(place, job(CELLS)) == rows


@pytest.mark.parametrize("name", ["flags", "energy_j", "visit", "repetition", "uncertainty_tail", "session", "key"])
def test_a_damaged_line_is_not_used_but_measured_again(
    made: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, _, path = made
    before = sorted(visits(place))
    lines = path.read_bytes().splitlines()
    number = next(number for number, line in enumerate(lines) if b'"rows"' in line)
    lines[number] = lines[number].replace(f'"{name}"'.encode(), b'"nothing"')
    path.write_bytes(b"\n".join(lines))
    again = measure(place, job(CELLS))
    assert f"warning: {path}, line {number + 1}: damaged, not used" in capsys.readouterr().err
    assert sorted(visits(place)) == before
    assert {(row["output_tokens"], row["visit"]) for row in again} == {(m, visit) for _, m, visit in before}


def test_journals_that_disagree_on_a_row_are_refused(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place, _, path = made
    for record in records(place):
        for row in record.get("rows", ()):
            row["energy_j"] *= 2
        journal.append(path.with_name("other.jsonl"), record)
    work = ["--job", json.dumps(job(CELLS)), "--directory", str(place), "--block", "grid"]
    assert session.main(["measure", *work]) == 1
    assert "other.jsonl, line " in (said := capsys.readouterr().err)
    assert f"is also in {path}, with other content" in said


@pytest.mark.parametrize(
    "line",
    [
        *(b"[" * 100_000, b"null", b"[]", b'"text"', b"{}", b'{"key": 1}', b"\xff\xfe"),
        *(b'{"key": "k", "session": "s", "rows": %b}' % rows for rows in (b"[1]", b"1", b"[{}]", b"null")),
        b'{"key": "k", "session": "s", "failed": "x"}',
    ],
)
def test_lines_that_are_no_records_are_passed_over(made: Any, line: bytes) -> None:
    place, rows, path = made
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
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "new/and/newer.jsonl", tmp_path / "below/journal.jsonl"):
        journal.append(path, {"key": "k", "session": "s"})
        assert len(journal.records([path])) == 1


HOLDS = """
import sys
from pathlib import Path
from sweetspot.measure import journal
with journal.claimed(journal.Place(Path(sys.argv[1]), "opt", 4), [(64, 128), (300, 1)]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_claimed_cells_are_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, cells = journal.Place(tmp_path, "opt", 4), [(64, 128), (300, 1)]
    assert not journal.is_claimed(place, cells), "nothing is there yet"
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == "held\n"
        for cell in cells:
            assert journal.is_claimed(place, [cell])
        others = [(64, 127), (64, 129), (63, 128), (128, 64), (1, 300), (299, 1)]
        assert not journal.is_claimed(place, others)
        with journal.claimed(place, others):
            assert "waiting" not in capsys.readouterr().err
        released = threading.Timer(0.3, holder.stdin.close)
        released.start()
        with journal.claimed(place, [(1, 1), (64, 128)]):
            assert holder.wait() == 0, "it had ended before"
            assert "waiting for another job that is measuring 64 -> 128 tokens" in capsys.readouterr().err
    assert not journal.is_claimed(place, cells)


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    place = journal.Place(tmp_path, "opt", 4)
    with journal.claimed(place, [(64, 64), (64, 128)]):
        assert capsys.readouterr().err.count("(No locks available): run one workflow at a time") == 1
        assert not journal.is_claimed(place, [(64, 64)])
