"""One measuring job: what it measures, what it keeps, and what it never measures twice."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from simulation import ARCHITECTURES

from sweetspot import architecture, engines, journal, raw, session, table
from sweetspot.engines import simulated
from sweetspot.engines.simulated import SimulatedEngine
from sweetspot.engines.simulated_gpu import SimulatedGpu, SimulatedSensor, Work
from sweetspot.errors import OutOfMemory
from sweetspot.journal import Place
from sweetspot.measurement import Protocol
from sweetspot.meter import Limits, Meter


@pytest.fixture
def place(tmp_path: Path) -> Path:
    record = {"architecture": asdict(architecture.load(ARCHITECTURES / "opt-1.3b.json"))}
    journal.write_atomically(Place(tmp_path, "opt", 4).architecture, json.dumps(record))
    journal.write_atomically(Place(tmp_path, "opt", 5).architecture, json.dumps(record))
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
def test_what_a_cell_depends_on_measures_it_again(place: Path, change: dict[str, object]) -> None:
    measure(place, job([(64, 64)]))
    measure(place, job([(64, 64)], **change))
    assert visits(place) == [(64, 64, 0), (64, 64, 1)] * 2


def test_a_half_line_is_no_cell_and_spoils_no_other(place: Path) -> None:
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
    assert len(path.read_text().splitlines()) == len(records(place)) + 1, "the half line stays, closed off"


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


def out_of_memory(monkeypatch: pytest.MonkeyPatch, *places: tuple[int, int]) -> list[str]:
    """Let these cells run out of memory; the list fills with what is loaded and closed."""
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
    assert len(loads) == 1, "what does not load once does not load for the next cell"


def test_a_defect_closes_the_engine_and_is_no_row(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = out_of_memory(monkeypatch)
    monkeypatch.setattr(SimulatedEngine, "run", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(place, job([(64, 64)]))
    assert log == ["load", "close"]


def test_the_engine_gets_the_published_config(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = architecture.resolved(ARCHITECTURES / "opt-1.3b.json")["config"]
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


def test_every_visit_leaves_its_raw_samples(place: Path) -> None:
    rows = measure(place, job([(64, 64), (128, 64)]))
    assert len({row["raw"] for row in rows}) == 2 * 2
    for row in rows:
        assert row["raw"].startswith(f"raw/opt/bs4/i{row['input_tokens']}-o{row['output_tokens']}-{row['session']}")
        verdict = raw.judged_again(place / row["raw"])[row["repetition"]]
        assert verdict.counter_j / row["batch_runs"] == pytest.approx(row["energy_j"], rel=1e-5)
        assert verdict.instant_j / row["batch_runs"] == pytest.approx(row["energy_instant_j"], rel=1e-5)
        assert verdict.average_j / row["batch_runs"] == pytest.approx(row["energy_average_j"], rel=1e-5)
        assert verdict.reasons == ()
    strict = raw.judged_again(place / rows[0]["raw"], Limits(1e-9, 0.5, 2.0, 1.0))
    assert strict[0].reasons == ("counter_vs_integral",)


def test_a_whole_campaign_can_be_judged_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one with an invalid row; a file cut short is one message and leaves every row as it is."""
    rows = measure(place, job([(64, 64), (128, 64)]))
    assert raw.main([str(place)]) == 0
    file = place / rows[0]["raw"]
    for damage in (file.read_bytes()[:-100], b"", b"\x1f\x8b" + bytes(100)):
        capsys.readouterr()
        file.write_bytes(damage)
        assert raw.main([str(place)]) == 1
        out, err = capsys.readouterr()
        assert err.splitlines() == [
            f"error: {file}: raw samples are cut short or damaged; copy the file again. The rows "
            "made of them stay as they are"
        ]
        assert f"{len(rows)} rows" in out
    file.unlink()
    assert raw.main([str(place)]) == 1
    assert "missing" in capsys.readouterr().err
    assert measure(place, job([(64, 64), (128, 64)])) == rows


def test_a_row_that_was_tampered_with_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(place, job([(64, 64)]))
    path = Place(place, "opt", 4, "grid").rows
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["energy_j"] *= 1.01
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert raw.main([str(place)]) == 1
    assert "repetition 1: energy_j is" in capsys.readouterr().err


def test_raw_samples_are_written_before_the_journal_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(raw, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            measure(place, job([(64, 64)]))
    assert visits(place) == []


def drifting(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """After a quarter of an hour every run draws more by `factor`."""
    run = SimulatedGpu.run
    monkeypatch.setattr(
        SimulatedGpu,
        "run",
        lambda gpu, work: run(
            gpu, [Work(w.duration_s, w.dynamic_j * (factor if gpu.clock.now() > 900 else 1.0)) for w in work]
        ),
    )


GRID = [(n, m) for n in (64, 128, 256, 512) for m in (64, 128, 256)]


def test_an_anchor_is_measured_again_every_so_often(place: Path) -> None:
    protocol = Protocol(anchor_every=5)
    rows = measure(place, job(GRID, protocol=asdict(protocol)))
    made = visits(place)
    at = [index for index, visit in enumerate(made) if visit[2] is None]
    assert at == [0, 6, 12, 18, 24, 29], "before the first, after every fifth, after the last"
    assert {made[index][:2] for index in at} == {(128, 256)}, "one cell, amid the lengths"
    anchors = [row for row in rows if row["anchor"]]
    assert len(anchors) == 6
    assert all(row["valid"] and (row["input_tokens"], row["output_tokens"]) == (128, 256) for row in anchors)
    numbers = [row["repetition"] for row in rows if (row["input_tokens"], row["output_tokens"]) == (128, 256)]
    assert numbers == list(range(len(numbers))), "each row of a cell has a number of its own"
    assert all(row["uncertainty_drift"] < 0.02 and "drifted" not in row["flags"] for row in rows)
    assert all(row["idle_after_w"] > row["idle_w"] > 100 for row in rows), "it idles warmer afterwards"


def test_drift_flags_what_was_measured_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drifting(monkeypatch, 1.08)
    rows = measure(place, job(GRID, protocol=asdict(Protocol(anchor_every=5))))
    drifted = [row for row in rows if "drifted" in row["flags"].split(";")]
    assert 0 < len(drifted) < len(rows)
    assert all(row["valid"] for row in drifted), "flagged, not thrown away"
    for row in rows:
        assert (row in drifted) == (row["uncertainty_drift"] > 0.02)
        parts = [row[f"uncertainty_{cause}"] for cause in ("gain", "counter_step", "tail", "replicates", "drift")]
        assert row["uncertainty_total"] ** 2 == pytest.approx(sum(part**2 for part in parts))
    jump = next(row for row in drifted if row["time_s"] > 900 and row["visit"] is not None)
    assert jump["uncertainty_drift"] > 0.02


def test_a_few_cells_cost_no_anchor(place: Path) -> None:
    rows = measure(place, job([(64, 64), (128, 64)]))
    assert all(visit is not None for _, _, visit in visits(place))
    assert {row["uncertainty_drift"] for row in rows} == {None}
    assert all(row["uncertainty_total"] > 0.05 for row in rows)


def test_the_budget_knows_how_well_repetitions_agree(place: Path) -> None:
    rows = measure(place, job([(64, 64)], protocol=asdict(Protocol(stop_interval=0.0))))
    energies = [row["energy_j"] for row in rows]
    assert len(energies) == 5
    half = 2.776 * stdev(energies) / 5**0.5 / fmean(energies)
    assert all(row["uncertainty_replicates"] == pytest.approx(half) for row in rows)
    assert rows[0]["uncertainty_gain"] == 0.05
    assert rows[0]["uncertainty_counter_step"] == pytest.approx(0.1 / rows[0]["window_s"])


def failing(monkeypatch: pytest.MonkeyPatch, *windows: int) -> None:
    """Let the counter stand still in these windows of work, counted from 1."""
    worked, window = [], Meter.window

    def failed(meter: Meter, work: Any) -> Any:
        result = window(meter, work)
        worked.extend([result] * (result.sm_clock_mhz > 1000))
        if not worked or worked[-1] is not result or len(worked) not in windows:
            return result
        return replace(result, counter_j=None, tail_j=None, reasons=("counter_stuck",))

    monkeypatch.setattr(Meter, "window", failed)


def test_an_invalid_row_is_kept_and_measured_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 2)
    rows = measure(place, job([(64, 64)]))
    assert [(row["visit"], row["valid"], row["reasons"]) for row in rows] == [
        (0, True, ""),
        (0, False, "counter_stuck"),
        (0, True, ""),
        (1, True, ""),
    ]
    assert rows[1]["energy_j"] is None
    assert rows[1]["uncertainty_total"] is None
    assert rows[1]["energy_instant_j"] > 0


def test_a_visit_without_a_valid_row_is_tried_again_by_so_many_later_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job([(64, 64)], protocol=asdict(Protocol(retries=1)))
    with monkeypatch.context() as patch:
        failing(patch, *range(1, 100))
        first = measure(place, work)
        assert [row["valid"] for row in first] == [False] * 2 * 2
        assert len(measure(place, work)) == 8
        before = visits(place)
        assert len(measure(place, work)) == 8, "twice is enough"
        assert visits(place) == before


def test_another_machine_is_a_warning(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(place, job([(64, 64)]))
    identity = SimulatedSensor.identity
    monkeypatch.setattr(
        SimulatedSensor,
        "identity",
        lambda sensor: {**identity(sensor), "driver_version": "590.1", "power_limit_w": 500.0},
    )
    capsys.readouterr()
    measure(place, job([(64, 64), (128, 64)]))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == [
        "warning: not the machine of the last session: driver_version: simulated -> 590.1",
        "warning: not the machine of the last session: power_limit_w: 700.0 -> 500.0",
    ]
    machines = [record["machine"] for record in records(place) if "machine" in record]
    assert [machine["power_limit_w"] for machine in machines] == [700.0, 500.0]
