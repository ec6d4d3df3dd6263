"""What a block's visits leave behind: raw samples, anchors, invalid repetitions, error budgets, machines."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from blocks import job, measure, prepare, records, visits
from sweetspot.commands.main import main
from sweetspot.measure import raw
from sweetspot.measure.journal import Place
from sweetspot.measure.protocol import Protocol
from sweetspot.measure.rows import finish
from sweetspot.sensors.meter import Meter
from sweetspot.sensors.simulated import SimulatedGpu, SimulatedSensor, Work
from sweetspot.sensors.window import Limits


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return prepare(tmp_path)


def test_every_visit_leaves_its_raw_samples(place: Path) -> None:
    rows = measure(place, job([(64, 64), (128, 64)]))
    assert len({row["raw"] for row in rows}) == 2 * 2
    for row in rows:
        assert row["raw"].startswith(f"raw/opt/bs4/i{row['input_tokens']}-o{row['output_tokens']}-{row['session']}")
        verdict = raw.judged_again(place / row["raw"])[row["repetition"]]
        assert verdict.energy_j / row["batch_runs"] == pytest.approx(row["energy_j"], rel=1e-5)
        assert verdict.energy_instant_j / row["batch_runs"] == pytest.approx(row["energy_instant_j"], rel=1e-5)
        assert verdict.energy_average_j / row["batch_runs"] == pytest.approx(row["energy_average_j"], rel=1e-5)
        assert verdict.reasons == ()
    strict = raw.judged_again(place / rows[0]["raw"], Limits(1e-9, 0.5, 2.0, 1.0))
    assert strict[0].reasons == ("counter_vs_integral",)


def test_a_whole_campaign_can_be_judged_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is cut short is one message and leaves every row unchanged."""
    rows = measure(place, job([(64, 64), (128, 64)]))
    assert main(["raw", str(place)]) == 0
    file = place / rows[0]["raw"]
    for damage in (file.read_bytes()[:-100], b"", b"\x1f\x8b" + bytes(100)):
        capsys.readouterr()
        file.write_bytes(damage)
        assert main(["raw", str(place)]) == 1
        out, err = capsys.readouterr()
        assert err.splitlines() == [
            f"error: {file}: raw samples are cut short or damaged; copy the file again. The rows "
            "made from them are unaffected"
        ]
        assert f"{len(rows)} rows" in out
    file.unlink()
    assert main(["raw", str(place)]) == 1
    assert "missing" in capsys.readouterr().err
    assert measure(place, job([(64, 64), (128, 64)])) == rows


def test_a_row_that_was_tampered_with_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(place, job([(64, 64)]))
    path = Place(place, "opt", 4, "grid").rows
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["energy_j"] *= 1.01
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["raw", str(place)]) == 1
    assert "repetition 1: energy_j is" in capsys.readouterr().err


def test_raw_samples_are_written_before_the_journal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(raw, "write_atomically", full)
        with pytest.raises(AssertionError):  # the exit status
            measure(place, job([(64, 64)]))
    assert "No space left on device; free some space and run again" in capsys.readouterr().err
    assert visits(place) == []


def drifting(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """After a quarter of an hour, multiply the energy of every run by `factor`."""
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
    assert {made[index][:2] for index in at} == {(128, 256)}, "one cell, in the middle of the lengths"
    anchors = [row for row in rows if row["anchor"]]
    assert len(anchors) == 6
    assert all(row["valid"] and (row["input_tokens"], row["output_tokens"]) == (128, 256) for row in anchors)
    numbers = [row["repetition"] for row in rows if (row["input_tokens"], row["output_tokens"]) == (128, 256)]
    assert numbers == list(range(len(numbers))), "each row of a cell has its own number"
    assert all(row["uncertainty_drift"] < 0.02 and "drifted" not in row["flags"] for row in rows)
    assert all(row["idle_after_w"] > row["idle_w"] > 100 for row in rows), "it idles warmer afterwards"


def test_drift_flags_the_rows_measured_in_between(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drifting(monkeypatch, 1.08)
    rows = measure(place, job(GRID, protocol=asdict(Protocol(anchor_every=5))))
    drifted = [row for row in rows if "drifted" in row["flags"].split(";")]
    assert 0 < len(drifted) < len(rows)
    assert all(row["valid"] for row in drifted), "flagged but kept"
    for row in rows:
        assert (row in drifted) == (row["uncertainty_drift"] > 0.02)
        parts = [row[f"uncertainty_{cause}"] for cause in ("gain", "counter_step", "tail", "replicates", "drift")]
        assert row["uncertainty_total"] ** 2 == pytest.approx(sum(part**2 for part in parts))
    jump = next(row for row in drifted if row["time_s"] > 900 and row["visit"] is not None)
    assert jump["uncertainty_drift"] > 0.02


def test_a_session_at_another_level_is_flagged() -> None:
    """Each session is steady, but its anchor differs from that of the others."""

    def row(number: int, energy_j: float) -> dict[str, Any]:
        parts = dict.fromkeys(("uncertainty_gain", "uncertainty_counter_step", "uncertainty_tail"), 0.01)
        place = {"input_tokens": 64, "output_tokens": number, "repetition": number, "flags": "", "session": "x"}
        return {**place, **parts, "energy_j": energy_j, "valid": True}

    records = []
    for number, (session_name, energy_j) in enumerate([("A", 100.0), ("B", 100.5), ("C", 103.0)]):
        anchor = {"input_tokens": 64, "output_tokens": 99, "visit": None, "session": session_name}
        cell = {"input_tokens": 64, "output_tokens": number, "visit": 0, "session": session_name}
        records.append({**anchor, "rows": [{**row(2 * number, energy_j), "output_tokens": 99}]})
        records.append({**cell, "rows": [{**row(number, 50.0), "session": session_name}]})
        records.append({**anchor, "rows": [{**row(2 * number + 1, energy_j), "output_tokens": 99}]})
    finished = finish(records, [(64, 0), (64, 1), (64, 2)], Protocol())
    assert [row["flags"] for row in finished] == ["", "", "drifted"]
    assert [row["uncertainty_drift"] for row in finished] == pytest.approx([0.5 / 100.5, 0.0, 2.5 / 100.5])


def test_a_few_cells_need_no_anchor(place: Path) -> None:
    rows = measure(place, job([(64, 64), (128, 64)]))
    assert all(visit is not None for _, _, visit in visits(place))
    assert {row["uncertainty_drift"] for row in rows} == {None}
    assert all(row["uncertainty_total"] > 0.05 for row in rows)


def test_the_budget_includes_how_well_repetitions_agree(place: Path) -> None:
    rows = measure(place, job([(64, 64)], protocol=asdict(Protocol(stop_interval=0.0))))
    energies = [row["energy_j"] for row in rows]
    assert len(energies) == 5
    half = 2.776 * stdev(energies) / 5**0.5 / fmean(energies)
    assert all(row["uncertainty_replicates"] == pytest.approx(half) for row in rows)
    assert rows[0]["uncertainty_gain"] == 0.05
    assert rows[0]["uncertainty_counter_step"] == pytest.approx(0.1 / rows[0]["window_s"])


def failing(monkeypatch: pytest.MonkeyPatch, *windows: int) -> None:
    """Let the counter run backwards in these windows of work, counted from 1."""
    worked, window = [], Meter.window

    def failed(meter: Meter, work: Any, **options: Any) -> Any:
        result = window(meter, work, **options)
        worked.extend([result] * (result.sm_clock_mhz > 1000))
        if not worked or worked[-1] is not result or len(worked) not in windows:
            return result
        return replace(result, energy_j=None, tail_j=None, reasons=("counter_reset",))

    monkeypatch.setattr(Meter, "window", failed)


def test_an_invalid_row_is_kept_and_measured_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 2)
    rows = measure(place, job([(64, 64)]))
    assert [(row["visit"], row["valid"], row["reasons"]) for row in rows] == [
        (0, True, ""),
        (0, False, "counter_reset"),
        (0, True, ""),
        (1, True, ""),
    ]
    assert rows[1]["energy_j"] is None
    assert rows[1]["uncertainty_total"] is None
    assert rows[1]["energy_instant_j"] > 0


def test_a_visit_without_a_valid_row_is_tried_again_in_as_many_later_runs(
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
        "warning: the machine changed since the last session: driver_version: simulated -> 590.1",
        "warning: the machine changed since the last session: power_limit_w: 700.0 -> 500.0",
    ]
    machines = [record["machine"] for record in records(place) if "machine" in record]
    assert [machine["power_limit_w"] for machine in machines] == [700.0, 500.0]
