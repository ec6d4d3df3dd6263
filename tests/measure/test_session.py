"""One measuring job: what it measures, keeps, and never measures twice."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from blocks import job, measure, prepare, records, visits
from simulation import ARCHITECTURES
from sweetspot import engines, files, models
from sweetspot.engines import simulated
from sweetspot.engines.simulated import SimulatedEngine
from sweetspot.errors import OutOfMemory
from sweetspot.measure import journal
from sweetspot.measure.journal import Place
from sweetspot.measure.protocol import Protocol
from sweetspot.table import read as table


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return prepare(tmp_path)


def test_rows_are_sorted_and_cells_measured_in_random_order(place: Path) -> None:
    cells = [(n, m) for n in (64, 128, 256) for m in (64, 128, 256)]
    rows = measure(place, job(cells))
    assert sorted({(row["input_tokens"], row["output_tokens"]) for row in rows}) == cells
    assert [row["input_tokens"] for row in rows] == sorted(row["input_tokens"] for row in rows)
    orders = [[visit[:2] for visit in visits(place) if visit[2] == number] for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == cells
    assert cells != orders[0] != orders[1] != cells


def test_a_finished_cell_is_never_measured_again(place: Path) -> None:
    first = measure(place, job([(64, 64), (128, 64)]))
    before = visits(place)
    again = measure(place, job([(128, 64), (256, 64)]), block="another")
    assert [row for row in again if row["input_tokens"] == 128] == [row for row in first if row["input_tokens"] == 128]
    assert sorted(visits(place)) == sorted([*before, (256, 64, 0), (256, 64, 1)])


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"batch": 5},
        {"protocol": asdict(Protocol(version=2))},
        {"protocol": asdict(Protocol(window_s=11.0))},
    ],
)
def test_a_change_in_what_a_cell_depends_on_measures_it_again(place: Path, change: dict[str, object]) -> None:
    measure(place, job([(64, 64)]))
    measure(place, job([(64, 64)], **change))
    assert visits(place) == [(64, 64, 0), (64, 64, 1)] * 2


def test_raw_files_of_killed_runs_are_removed_and_no_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Place(place, "opt", 4, "grid").raw
    cells = [(64, 64), (64, 128), (128, 64)]

    def killed(path: Path, record: dict[str, Any]) -> None:
        if "rows" in record and len(visits(place)) == 3:  # after its raw samples were written
            (where / ".i64-o64-20260101T000000000-abcd-000.jsonl.gz.123").write_text("half")
            raise KeyboardInterrupt
        append(path, record)

    append = journal.append
    monkeypatch.setattr(journal, "append", killed)
    with pytest.raises(AssertionError):
        measure(place, job(cells))
    monkeypatch.setattr(journal, "append", append)
    others = [where / name for name in ("i64-o64-20250101T000000000-dead-000.jsonl.gz", "i512-o64-x.jsonl.gz", "notes")]
    for path in others:
        path.write_text("of somebody else")
    assert len(list(where.iterdir())) == 3 + 1 + 1 + len(others)
    rows = measure(place, job(cells))
    assert {path.name for path in where.iterdir()} == {
        *(Path(str(row["raw"])).name for row in rows),
        *(path.name for path in others),
    }


def test_a_partial_line_is_skipped_and_spoils_no_other(place: Path) -> None:
    measure(place, job([(64, 64), (128, 64)]))
    path = Place(place, "opt", 4, "grid").journal
    whole = path.read_bytes().splitlines(keepends=True)
    at = next(index for index, line in enumerate(whole) if b'"visit": 1' in line)
    path.write_bytes(b"".join(whole[:at]) + whole[at][: len(whole[at]) // 2])
    before = visits(place)
    rows = measure(place, job([(64, 64), (128, 64), (256, 64)]))
    assert len({row["input_tokens"] for row in rows}) == 3
    assert visits(place)[: len(before)] == before
    assert sorted(visits(place)) == [(n, 64, visit) for n in (64, 128, 256) for visit in (0, 1)]
    assert len(path.read_text().splitlines()) == len(records(place)) + 1, "the partial line stays, terminated"


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves the old file intact and no temporary file."""
    path = tmp_path / "rows.jsonl"
    files.write_atomically(path, "old\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, "new\n")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def out_of_memory(monkeypatch: pytest.MonkeyPatch, *places: tuple[int, int]) -> list[str]:
    """Make these cells run out of memory; the returned list logs loads and closes."""
    log: list[str] = []
    run, load = SimulatedEngine.run, simulated.open_device

    def failing_run(engine: SimulatedEngine, n: int, m: int) -> engines.BatchRun:
        if (n, m) in places:
            raise OutOfMemory("the GPU is full")
        return run(engine, n, m)

    def logged_load(*arguments: Any) -> Any:
        log.append("load")
        return load(*arguments)

    monkeypatch.setattr(SimulatedEngine, "run", failing_run)
    monkeypatch.setattr(SimulatedEngine, "close", lambda engine: log.append("close"))
    monkeypatch.setattr(simulated, "open_device", logged_load)
    return log


def test_an_engine_that_exceeds_the_memory_leaves_rows_with_the_reason(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build, work = simulated.build, job([(64, 64), (128, 64)])

    def too_large(*_: Any) -> Any:
        raise OutOfMemory("the weights do not fit")

    monkeypatch.setattr(simulated, "build", too_large)
    rows = measure(place, work)
    assert [(row["valid"], row["reasons"]) for row in rows] == [(False, "out_of_memory")] * 2
    assert "the weights do not fit" in capsys.readouterr().err
    monkeypatch.setattr(simulated, "build", build)
    assert all(row["valid"] for row in measure(place, work)), "rebuilt, it is measured"


def test_a_cell_that_exceeds_the_memory_is_one_invalid_row_and_the_others_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [(n, 64) for n in (64, 128, 256, 512)]
    log = out_of_memory(monkeypatch, (128, 64))
    rows = measure(place, job(cells))
    (bad,) = [row for row in rows if row["input_tokens"] == 128]
    assert (bad["valid"], bad["reasons"], bad["energy_j"]) == (False, "out_of_memory", None)
    assert (bad["model"], bad["campaign"]) == ("opt", "test")
    assert all(row["valid"] for row in rows if row is not bad)
    assert {row["input_tokens"] for row in rows} == {64, 128, 256, 512}
    assert "the GPU is full" in capsys.readouterr().err
    assert log == ["load", "close"] * 2, "loaded again for the cells that follow"
    assert (128, 64, 0) not in visits(place), "the cell is not finished"
    collected = table.read([Place(place, "opt", 4, "grid").rows])
    assert collected.notes == [f"1 of {len(rows)} rows are marked invalid: kept, not fitted"]


def test_a_cell_that_exceeded_the_memory_is_tried_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        out_of_memory(patch, (128, 64))
        before = measure(place, job([(64, 64), (128, 64)]))
    after = measure(place, job([(64, 64), (128, 64)]))
    assert [row for row in after if row["input_tokens"] == 64] == [row for row in before if row["input_tokens"] == 64]
    assert all(row["valid"] for row in after)


def test_an_engine_that_does_not_load_marks_every_cell_and_keeps_earlier_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = measure(place, job([(64, 64)]))
    loads = []

    def refuse(*arguments: Any) -> Any:
        loads.append(arguments)
        raise OutOfMemory("weights do not fit")

    monkeypatch.setattr(simulated, "open_device", refuse)
    rows = measure(place, job([(64, 64), (128, 64), (256, 64)]))
    assert [row for row in rows if row["valid"]] == earlier
    assert [row["reasons"] for row in rows if not row["valid"]] == ["out_of_memory"] * 2
    assert len(loads) == 1, "after one failed load, the next cell does not try again"


def test_a_defect_closes_the_engine_and_makes_no_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = out_of_memory(monkeypatch)
    monkeypatch.setattr(SimulatedEngine, "run", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(place, job([(64, 64)]))
    assert log == ["load", "close"]


def test_the_engine_gets_the_published_config(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = models.resolved(ARCHITECTURES / "opt-1.3b.json")["config"]
    assert config["architectures"] == ["OPTForCausalLM"]
    assert not [key for key in config if key.startswith("_")]
    path = Place(place, "opt", 4).architecture
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": config}))
    seen = []
    build = simulated.build
    monkeypatch.setattr(simulated, "build", lambda spec, directory: (seen.append(spec), build(spec, directory))[1])
    measure(place, job([(64, 256), (128, 64)]))
    assert seen[0].model_config == config
    assert json.loads((Place(place, "opt", 4).engine / "engine.json").read_text())["spec"]["model_config"] == config


def test_a_cell_that_breaks_the_engine_blocks_no_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run fails on it after measuring all others; after too many failures it is left out."""
    run = SimulatedEngine.run

    def breaking(engine: SimulatedEngine, n: int, m: int) -> engines.BatchRun:
        return run(engine, n, m) if n != 256 else engines.BatchRun(1 // 0, 1)

    monkeypatch.setattr(SimulatedEngine, "run", breaking)
    work = job([(n, 64) for n in (64, 128, 256, 512)])
    for tried in range(Protocol().retries + 1):
        with pytest.raises(ZeroDivisionError):
            measure(place, work)
        assert tried == 0 or len({v for v in visits(place) if v[2] is not None}) == 3 * Protocol().visits
    rows = measure(place, work)
    assert [row["reasons"] for row in rows if row["input_tokens"] == 256] == ["engine_failed"]
    assert all(row["valid"] for row in rows if row["input_tokens"] != 256)
    assert [record["failed"] for record in records(place) if "failed" in record] == [
        "ZeroDivisionError: integer division or modulo by zero"
    ] * (Protocol().retries + 1)
