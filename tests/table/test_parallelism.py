"""Rows of models on one GPU and on several are kept apart, from the table to the answer."""

import json
from pathlib import Path

import polars as pl
import pytest

from energies import energy
from sweetspot.commands.main import main
from sweetspot.table.read import read

LENGTHS = (64, 256, 512, 1024, 2048)


def rows(path: Path, factors: dict[str, float], **more: object) -> Path:
    """Cells that cost this many times the law's energy, by parallelism; "" writes no such column."""
    made = [
        {"model": "m", "gpu": "H100", "source": "measured", "batch": 8, "input_tokens": n, "output_tokens": m}
        | {"energy_j": factor * energy(n, m, 8), **({"parallelism": label} if label else {}), **more}
        for label, factor in factors.items()
        for n in LENGTHS
        for m in LENGTHS
    ]
    pl.DataFrame(made).write_csv(path)
    return path


def test_groups_are_fitted_and_asked_by_parallelism(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(tmp_path / "rows.csv", {"tp1": 1.0, "tp4": 1.5})
    assert main(["fit", str(table), "--out", str(tmp_path)]) == 0
    ask = ["predict", "--predictor", str(tmp_path / "predictor.json"), "--model", "m", "--input-tokens", "512"]
    ask += ["--output-tokens", "512"]
    capsys.readouterr()
    assert main(ask) == 1
    assert "--parallelism 'tp4'" in capsys.readouterr().err
    found = {}
    for label in ("tp1", "tp4"):
        assert main([*ask, "--parallelism", label, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["parallelism"] == label
        found[label] = answer["energy_batch_j"]
    assert found["tp4"] / found["tp1"] == pytest.approx(1.5, rel=0.01)
    for label, said in (("tp1", "m (H100)\n"), ("tp4", "m (H100, tp4)\n")):
        assert main([*ask, "--parallelism", label]) == 0
        assert said in capsys.readouterr().out
    both = [str(tmp_path / "predictor.json")] * 2
    assert main(["compare", *both, "--a", "parallelism=tp1", "--b", "parallelism=tp4"]) == 0
    assert "50" in capsys.readouterr().out


def test_a_table_without_the_column_is_of_one_gpu_each(tmp_path: Path) -> None:
    assert read([rows(tmp_path / "rows.csv", {"": 1.0})]).frame["parallelism"].unique().to_list() == ["tp1"]


def test_another_word_is_named(tmp_path: Path) -> None:
    table = pl.read_csv(rows(tmp_path / "rows.csv", {"tp2": 1.0}))
    table[3, "parallelism"] = "four"
    table.write_csv(tmp_path / "odd.csv")
    checked = read([tmp_path / "odd.csv"])
    assert "row 4: parallelism is four: must be like tp1, tp4" in "\n".join(checked.notes)
    assert checked.frame["valid"].sum() == len(table) - 1


@pytest.mark.parametrize(("label", "odd"), [("tp1", True), ("tp8", False)])
def test_a_power_is_judged_by_the_number_of_gpus(tmp_path: Path, label: str, odd: bool) -> None:
    table = pl.read_csv(rows(tmp_path / "rows.csv", {label: 1.0}))
    table.with_columns(duration_s=pl.col("energy_j") / 4000).write_csv(tmp_path / "power.csv")
    notes = "\n".join(read([tmp_path / "power.csv"]).notes)
    assert ("does not draw" in notes) == odd
