"""Whole sessions through the real bindings on a stub library: what survives a fault and what is reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import nvml_inside
from nvml_inside import CONSTANT
from nvml_stub import START_S, Stub
from sweetspot.campaign.collect import collect
from sweetspot.measure import raw

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: NVML was not tested")


def rows(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "measurements/m/bs1/grid.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("driver 590.1", "driver_version: 580.159.03 -> 590.1"),
        ("ecc 0", "ecc: on -> off"),
        ("limit_mw 500000", "power_limit_w: 700.0 -> 500.0"),
        ("vbios 96.2", "vbios_version: 96.00.89.00.01 -> 96.2"),
    ],
)
def test_a_change_between_sessions_is_a_warning_and_a_flag(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
    line: str,
    change: str,
) -> None:
    stub.set(trace=CONSTANT)
    assert "warning" not in inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    stub.set(line, trace=CONSTANT)
    output = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64)])
    assert f"warning: the machine changed since the last session: {change}" in output
    collect([tmp_path / "measurements/m/bs1/grid.jsonl"], tmp_path / "rows.parquet")
    flags = pl.read_parquet(tmp_path / "rows.parquet").select("input_tokens", "flags", "valid").rows()
    assert {row for row in flags} == {(64, "random_weights", True), (128, "random_weights;machine_changed", True)}


@pytest.mark.parametrize(
    ("after_s", "cells", "kept"),
    [(150, 3, range(2)), (125, 2, range(1)), (68, 1, range(1))],
    ids=["second window", "first window", "warm-up"],
)
def test_a_lost_gpu_keeps_what_was_measured(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
    after_s: float,
    cells: int,
    kept: range,
) -> None:
    stub.set(f"@{START_S + after_s} lost", trace=CONSTANT)
    output = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64), (256, 64)])
    assert "error: GPU GPU-1111" in output
    assert "is lost" in output
    measured = [row for row in rows(tmp_path) if row["valid"]]
    assert len({row["input_tokens"] for row in measured}) == cells
    (lost,) = [row for row in rows(tmp_path) if row["reasons"].startswith("gpu_lost")]
    assert (lost["valid"], lost["energy_j"]) == (False, None)
    assert {row["reasons"] for row in rows(tmp_path)} <= {"", lost["reasons"], "not_measured_yet"}
    assert [row["repetition"] for row in rows(tmp_path) if row["input_tokens"] == lost["input_tokens"]] == [*kept]
    for row in measured:
        assert row["energy_j"] == pytest.approx(400.0, rel=0.01), "one run is one second at 400 W"
        verdict = raw.judged_again(tmp_path / row["raw"])[row["repetition"]]
        assert verdict.energy_j == pytest.approx(row["energy_j"] * row["batch_runs"], rel=1e-6)


def test_a_cell_cut_short_is_measured_to_its_end_by_the_next_run(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
) -> None:
    stub.set(f"@{START_S + 40} lost", trace=CONSTANT)
    inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    before = rows(tmp_path)
    stub.set(trace=CONSTANT)
    inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    assert rows(tmp_path)[: len(before)] == before
    assert [row["valid"] for row in rows(tmp_path)].count(True) == 2


def test_a_changed_power_limit_costs_a_window_and_a_session(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
) -> None:
    stub.set(f"@{START_S + 75} limit_mw 500000", trace=CONSTANT)
    inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64), (256, 64)])
    made = rows(tmp_path)
    (bad,) = [row for row in made if not row["valid"]]
    assert (bad["reasons"], bad["power_limit_w"]) == ("power_limit_changed", 700.0)
    valid = [row for row in made if row["valid"]]
    assert {row["input_tokens"] for row in valid} == {64, 128, 256}
    assert {row["power_limit_w"] for row in valid} == {700.0, 500.0}
    for session in {row["session"] for row in valid}:
        assert len({row["power_limit_w"] for row in valid if row["session"] == session}) == 1


@pytest.mark.parametrize(("until_s", "known"), [(15, True), (50, False)], ids=["for a while", "throughout"])
def test_idle_power_that_another_process_spoils_is_measured_again_or_unknown(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
    until_s: float,
    known: bool,
) -> None:
    stub.set(f"@{START_S + 2}-{START_S + until_s} process 1", trace=CONSTANT)
    output = inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    assert ("idle power is unknown: another process" in output) is not known
    for row in rows(tmp_path):
        assert row["idle_w"] == (pytest.approx(400, rel=0.01) if known else None)


BOARD_WIDE = {
    "no instant sensor": ("fail:186 3", "instantaneous power", "535"),
    "a counter of another scope": ("factor 1.3", "energy counter and integrated power differ", "energy_tolerance"),
    "a counter that stands still": (f"stuck {START_S}", "did not step", "sweetspot probe"),
}


@pytest.mark.parametrize("from_s", [0, 40], ids=["from the start", "under load"])
@pytest.mark.parametrize("condition", BOARD_WIDE)
def test_what_spoils_every_window_of_a_board_stops_at_the_first_cell(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
    condition: str,
    from_s: int,
) -> None:
    line, said, remedy = BOARD_WIDE[condition]
    stub.set(f"@{START_S + from_s} {line}", trace=CONSTANT)
    output = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64), (256, 64)])
    assert "error: this GPU: " in output
    assert said in output
    assert remedy in output
    lines = [line for file in tmp_path.glob("journal/*/*/*.jsonl") for line in file.read_text().splitlines()]
    assert sum("rows" in json.loads(line) for line in lines) == (from_s > 0), "visits made"
    assert {row["reasons"] for row in rows(tmp_path)} >= {"not_measured_yet"}, "the next run measures the others"


def test_one_bad_cell_among_good_ones_stops_nothing(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
) -> None:
    stub.set(f"@{START_S + 75}-{START_S + 140} factor 1.3", trace=CONSTANT)
    output = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64), (256, 64)])
    assert "error" not in output
    assert {row["reasons"] for row in rows(tmp_path)} == {"", "counter_vs_integral"}
    assert len({row["input_tokens"] for row in rows(tmp_path) if row["valid"]}) >= 2


def test_a_bad_first_cell_of_a_later_session_stops_nothing(
    stub: Stub, inside: Callable[..., Any], tmp_path: Path
) -> None:
    """Earlier valid rows show that the board can be measured."""
    stub.set(trace=CONSTANT)
    inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    now_s = stub.clock().now()
    stub.set(f"@{now_s + 30}-{now_s + 100} factor 1.3", trace=CONSTANT)
    output = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64), (256, 64)])
    assert "error" not in output
    assert "counter_vs_integral" in {row["reasons"] for row in rows(tmp_path)}
    assert len({row["input_tokens"] for row in rows(tmp_path) if row["valid"]}) >= 2


def test_rows_of_a_board_that_lists_no_processes_are_flagged(
    stub: Stub,
    inside: Callable[..., Any],
    tmp_path: Path,
) -> None:
    stub.set("fail:nvmlDeviceGetComputeRunningProcesses_v3 3", "fail:nvmlDeviceGetClockInfo 3", trace=CONSTANT)
    inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    for row in rows(tmp_path):
        assert row["valid"]
        assert row["sm_clock_mhz"] is None
        assert "processes_unchecked" in row["flags"].split(";")
    collect([tmp_path / "measurements/m/bs1/grid.jsonl"], tmp_path / "rows.parquet")
    assert raw.check(tmp_path) == 0
