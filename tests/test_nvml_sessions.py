"""Whole sessions through the real bindings on a library of known power: what survives a fault, what is told of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml_inside
import polars as pl
import pytest
from nvml_inside import CONSTANT
from nvml_stub import START_S, Stub
from test_nvml import inside, stub  # noqa: F401

from sweetspot import raw
from sweetspot.table import collect

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: nothing of NVML was tested")


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
    stub: Stub,  # noqa: F811
    inside: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
    line: str,
    change: str,
) -> None:
    stub.set(trace=CONSTANT)
    assert "warning" not in inside(nvml_inside.session_of, tmp_path, [(64, 64)])
    stub.set(line, trace=CONSTANT)
    said = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64)])
    assert f"warning: not the machine of the last session: {change}" in said
    collect([tmp_path / "measurements/m/bs1/grid.jsonl"], tmp_path / "rows.parquet")
    flags = pl.read_parquet(tmp_path / "rows.parquet").select("input_tokens", "flags", "valid").rows()
    assert {row for row in flags} == {(64, "random_weights", True), (128, "random_weights;machine_changed", True)}


def test_a_lost_gpu_keeps_what_was_measured(
    stub: Stub,  # noqa: F811
    inside: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    stub.set(f"@{START_S + 150} lost", trace=CONSTANT)
    said = inside(nvml_inside.session_of, tmp_path, [(64, 64), (128, 64), (256, 64)])
    assert "error: GPU GPU-1111" in said
    assert "is lost" in said
    measured = [row for row in rows(tmp_path) if row["valid"]]
    assert len({row["input_tokens"] for row in measured}) == 2
    for row in measured:
        assert row["energy_j"] == pytest.approx(400.0, rel=0.01), "one run is one second at 400 W"
        verdict = raw.judged_again(tmp_path / row["raw"])[row["repetition"]]
        assert verdict.counter_j == pytest.approx(row["energy_j"] * row["batch_runs"], rel=1e-6)
