"""A table made by a formula, its predictor, and questions to it; for tests of advice."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

from sweetspot.commands.main import main
from sweetspot.predict import advise_text, workload
from sweetspot.predict.advise import Advice, Wishes, advise

LENGTHS = (64, 128, 512, 2048)
BATCHES = (1, 8, 32)
POWER_W = 400.0
NOW = ["--input-tokens", "1500", "--output-tokens", "200", "--batch", "8"]


def joules(n: int, m: int, batch: float, price: float = 1.0) -> float:
    """Of one request, by a law of the right form; the batch takes this times batch over POWER_W seconds."""
    steps = (m - 1) * (0.05 + 2.0 / batch + 2e-4 * (n + m / 2))
    return price * (steps + 4e-6 * n * n + 0.02 * n + 0.5 + 3 / batch)


def rows() -> list[dict[str, Any]]:
    cells = [
        {"model": model, "batch": batch, "input_tokens": n, "output_tokens": m, "energy_j": joules(n, m, batch, price)}
        for model, price in (("big", 1.0), ("small", 0.1))
        for batch, n, m in itertools.product(BATCHES, LENGTHS, LENGTHS)
    ]
    return [cell | {"energy_j": cell["energy_j"] * cell["batch"]} for cell in cells]


def fit(folder: Path, table: list[dict[str, Any]]) -> Path:
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    assert main(["fit", str(folder / "rows.csv"), "--out", str(folder)]) == 0
    return folder / "predictor.json"


def ask(fitted: dict[str, Any], n: int = 1500, m: int = 200, **wishes: Any) -> Advice:
    wishes = {"batch": 8} | wishes if "rate_per_s" not in wishes else wishes
    return advise(fitted, "big", workload.of_pair(n, m), Wishes(**wishes))


def told(fitted: dict[str, Any], n: int = 1500, m: int = 200, **wishes: Any) -> dict[str, Any]:
    answer = ask(fitted, n, m, **wishes)
    return json.loads(json.dumps(advise_text.as_dict(answer), allow_nan=False))
