"""The `sweetspot` command as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from energies import energy
from sweetspot.commands.main import main
from sweetspot.fit.heldout import SCHEMES
from sweetspot.predict.laws import LAWS


def sweetspot(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweetspot", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        {"model": "mine", "batch": b, "prompt": n, "output_tokens": m, "energy_j": energy(n, m, b), "who": "me"}
        for b in (1, 4, 16)
        for n in (64, 256, 1024, 4096)
        for m in (64, 256, 1024)
    ]
    path = tmp_path / "rows.csv"
    pl.DataFrame(rows).write_csv(path)
    return path


def test_fit_then_predict(table: Path, tmp_path: Path) -> None:
    fitted = sweetspot("fit", table, "--map", "prompt=input_tokens", "--out", tmp_path / "a/b")
    assert fitted.returncode == 0, fitted.stderr
    assert "held-out" in fitted.stdout or "5-fold" in fitted.stdout
    errors = pl.read_csv(tmp_path / "a/b/validation.csv")
    assert set(errors["scheme"]) == set(SCHEMES)
    assert set(LAWS) == set(errors["law"])
    query = ["--model", "mine", "--input-tokens", 2000, "--output-tokens", 300, "--batch", 8]
    answer = sweetspot("predict", "--predictor", tmp_path / "a/b/predictor.json", *query, "--json")
    assert answer.returncode == 0, answer.stderr
    numbers = json.loads(answer.stdout)
    assert numbers["energy_per_request_j"] == pytest.approx(energy(2000, 300, 8) / 8, rel=1e-3)
    assert numbers["energy_per_output_token_j"] == pytest.approx(energy(2000, 300, 8) / 8 / 300, rel=1e-3)
    assert numbers["extrapolates"] == []
    query[3] = 9000
    far = sweetspot("predict", "--predictor", tmp_path / "a/b/predictor.json", *query)
    assert "9000 is above the measured 64-4096" in far.stdout
    refused = sweetspot("predict", "--predictor", tmp_path / "a/b/predictor.json", *query, "--strict")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "9000 is above the measured 64-4096" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fit", "{table}", "--out", "{tmp}/out"], ["input_tokens", "--map prompt=input_tokens"]),
        (["fit", "{table}", "--map", "prompt", "--out", "{tmp}/out"], ["--map prompt", "THEIRS=OURS"]),
        (["fit", "{table}", "--set", "batch", "--out", "{tmp}/out"], ["--set batch", "COLUMN=VALUE"]),
        (["fit", "{table}", "--set", "gpu=A100", "--set", "batch=2", "--out", "{tmp}/out"], ["--set batch=2"]),
        (["fit", "{tmp}/no.csv", "--out", "{tmp}/out"], ["no.csv", "no such file"]),
        (["fit", "{table}", "--map", "prompt=input_tokens", "--out", "{table}"], ["rows.csv", "--out"]),
        (
            ["predict", "--predictor", "{table}", "--model", "x", "--input-tokens", "1", "--output-tokens", "1"],
            ["rows.csv"],
        ),
    ],
)
def test_a_mistake_is_one_message(
    table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert main([argument.format(table=table, tmp=tmp_path) for argument in arguments]) == 1
    said = capfd.readouterr().err
    assert said.startswith("sweetspot: error: ")
    for part in parts:
        assert part in said


def test_a_mistake_ends_the_command_without_a_traceback(table: Path, tmp_path: Path) -> None:
    done = sweetspot("fit", table, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("sweetspot: error: ")
    assert "Traceback" not in done.stderr


def test_help_names_the_columns_and_an_example() -> None:
    shown = sweetspot("fit", "--help").stdout
    for column in ("model", "batch", "input_tokens", "output_tokens", "energy_j"):
        assert column in shown
    assert "Example" in shown
