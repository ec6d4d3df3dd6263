"""Sessions of one campaign on boards that are not the same."""

import json
from pathlib import Path

import polars as pl
import pytest

from sweetspot.campaign.collect import collect

BOARD = {"gpu_uuid": "GPU-1", "driver_version": "580.1", "power_limit_w": 700.0, "vbios_version": "96", "ecc": "on"}


def row(session: str | None, flags: str = "", **changes: object) -> dict[str, object]:
    cell = {"model": "m", "gpu": "H100", "batch": 1, "input_tokens": 8, "output_tokens": 8}
    return {**cell, **BOARD, "energy_j": 1.0, "session": session, "flags": flags, "source": "measured", **changes}


def collected(tmp_path: Path, *rows: dict[str, object]) -> list[str]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    collect([tmp_path / "rows.jsonl"], tmp_path / "rows.parquet")
    return pl.read_parquet(tmp_path / "rows.parquet")["flags"].to_list()


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"driver_version": "590.1"}, "machine_changed"),
        ({"vbios_version": "97"}, "machine_changed"),
        ({"ecc": "off"}, "machine_changed"),
        ({"power_limit_w": 500.0}, "machine_changed"),
        ({"gpu_uuid": "GPU-2"}, "other_board"),
    ],
)
def test_rows_of_a_changed_machine_are_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], flag: str
) -> None:
    rows = [
        row("B", "throttled", **change),
        row("B", **change),
        row("A"),
        row("C"),
        row(None, energy_j=None, valid=False),
    ]
    assert collected(tmp_path, *rows) == [f"throttled;{flag}", flag, "", "", ""]
    note, warning = capsys.readouterr().out.splitlines()
    assert note == "warning: 1 of 5 rows are marked invalid: kept, not fitted"
    ((name, value),) = change.items()
    assert (
        warning == f"warning: session B differs from A: {name}: {BOARD[name]} -> {value}; its rows are flagged {flag}"
    )


def test_other_kinds_of_board_are_not_compared(tmp_path: Path) -> None:
    other = row("B", gpu="H200", gpu_uuid="GPU-3", driver_version="590.1")
    assert collected(tmp_path, row("A"), other) == ["", ""]


def test_rows_without_sessions_pass(tmp_path: Path) -> None:
    plain = row(None)
    del plain["session"]
    assert collected(tmp_path, plain) == [""]


def test_one_board_and_four_are_not_one_machine(tmp_path: Path) -> None:
    """A campaign with a model on one board and on four: each is compared with the first session on as many."""
    four = {"parallelism": "tp4", "gpu_uuid": "GPU-1;GPU-2;GPU-3;GPU-4", "power_limit_w": 2800.0}
    one = {"parallelism": "tp1"}
    rows = [row("A", **one), row("B", **four), row("C", **four), row("D", **{**four, "driver_version": "590.1"})]
    assert collected(tmp_path, *rows) == ["", "", "", "machine_changed"]
