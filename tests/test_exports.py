"""What a spreadsheet would run in an exported table is text; numbers stay numbers."""

import csv
from pathlib import Path

import pytest

from sweetspot.commands.main import main
from sweetspot.files import write_atomically


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        '=HYPERLINK("http://x";"y")',
        "+cmd|' /C calc'!A0",
        "@SUM(A1)",
        "-2+3",
        "\t=1",
        "\r=1",
        "=a,b\nc",
        "-model",
    ],
)
def test_a_formula_is_text(cell: str, tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["model", "x"], [cell, "1"], [f"a{cell}", "-1.5"]])
    write_atomically(tmp_path / "out.csv", (tmp_path / "in.csv").read_bytes().decode())
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["model", "x"], [f"'{cell}", "1"], [f"a{cell}", "-1.5"]]


@pytest.mark.parametrize("cell", ["-1.5", "+3", "-1e-9", "-inf", "3", "", "-", "a=b", "a@b", "'=1", "ü", '"'])
def test_numbers_and_other_text_stay(cell: str, tmp_path: Path) -> None:
    text = f'model,x\n"{cell.replace(chr(34), 2 * chr(34))}",""\nb,\n'
    write_atomically(tmp_path / "out.csv", text)
    assert (tmp_path / "out.csv").read_bytes().decode() == text


def test_a_fitted_table_with_formulas_for_names_exports_none(tmp_path: Path) -> None:
    lines = ["model,batch,input_tokens,output_tokens,energy_j"]
    for model in ("=1+1", "@x", "b"):
        for n, m, b in ((n, m, b) for n in (64, 256, 512) for m in (64, 256) for b in (1, 4)):
            lines.append(f"{model},{b},{n},{m},{b**0.3 * m * (1 + n / 1000)}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    assert main(["fit", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "fitted")]) == 0
    exported = list((tmp_path / "fitted").rglob("*.csv"))
    assert exported
    for path in exported:
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@"))], path
