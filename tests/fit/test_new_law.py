"""A form and a law added as docs/how-to.md says: two entries in laws.py, and nothing anywhere else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkouts import ROOT

LAW = """    Law(
        "mine-4",
        "E_tok = a + b n m + c {shown} + d/m",
        "a test",
        (
            Term("a", "1", 0.0, "weights"),
            Term("b", "n m", None, "prompt and reply together"),
            Term("c", "{form}", 0.0, "what is new"),
            Term("d", "1/m", None, "what a request costs once"),
        ),
    ),
)
LAWS: dict"""

USE = """
import json, sys
from pathlib import Path
from pages import PageText, page, results
from sweetspot.predict import predictor
from sweetspot.predict.laws import LAWS

place = Path(sys.argv[1])
found = results(place, models=("llama-3.1-8b", "opt-6.7b"), lengths=(64, 256, 1024), batches=(8,))
for group in found.predictor["groups"]:
    assert "terms" in group["laws"]["mine-4"][0], group["laws"]["mine-4"]
    group["law"] = "mine-4"  # as if the cells had chosen it
text = page(found, place)
(place / "predictor.json").write_text(json.dumps(found.predictor))
predictor.predict(predictor.load(place / "predictor.json"), "opt-6.7b", 100, 200, 8)
predictor.sweet_spot(found.predictor["groups"][0], 100, 8)
print([row[:4] for row in PageText(text).table("Coefficients of mine-4")])
assert any(row[0] == "mine-4" for row in PageText(text).table("MAPE by law and scheme"))
"""


@pytest.mark.parametrize(
    ("form", "parts", "unit", "shown"),
    [
        ("n^2 m", ((1, 2, 1),), "J/token⁴", "n² m"),
        ("n/m^2", ((1, 1, -2),), "J", "n/m²"),
        ("m^2/2 - m", ((0.5, 0, 2), (-1, 0, 1)), "J/token³", "m²/2 - m"),
        ("sqrt(m)", ((1, 0, 0.5),), "J/token¹·⁵", "sqrt(m)"),
    ],
)
def test_a_law_of_a_new_form_ends_in_a_report(
    tmp_path: Path, form: str, parts: tuple[tuple[float, float, float], ...], unit: str, shown: str
) -> None:
    shutil.copytree(ROOT / "workflow/sweetspot", tmp_path / "sweetspot", ignore=shutil.ignore_patterns("__pycache__"))
    laws = tmp_path / "sweetspot/predict/laws.py"
    text, marks = laws.read_text(), (")\nFORMS: dict", ")\nLAWS: dict")
    assert all(text.count(mark) == 1 for mark in marks)
    text = text.replace(marks[0], f'    Form("n m", ((1, 1, 1),)),\n    Form({form!r}, {parts!r}),\n' + marks[0])
    laws.write_text(text.replace(marks[1], LAW.format(form=form, shown=form)))
    path = os.pathsep.join((str(tmp_path), str(ROOT / "tests/helpers")))
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"['c', '{shown}', 'what is new', '{unit}']" in done.stdout
    assert "['b', 'n m', 'prompt and reply together', 'J/token³']" in done.stdout
