"""What a change saves, with its interval: what both sides share cancels, and nothing saves more than it costs."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from advising import ask, fit, rows, told
from sweetspot.commands.main import main
from sweetspot.predict import predictor, workload
from sweetspot.predict.advise import Wishes, advise


def test_the_interval_of_a_saving_by_hand(fitted: dict[str, Any]) -> None:
    def half(n: int, m: int) -> float:
        one = predictor.predict(fitted, "big", n, m, batch=8)
        return one.energy_per_request_high_j - one.energy_per_request_j

    answer = told(fitted, what_ifs={"truncate": [400], "split": [100]})
    found = {what["what_if"]: what for what in answer["what_ifs"]}
    expected = {
        "truncate": math.hypot(half(1500, 200), half(400, 200)),
        "split": math.hypot(half(1500, 200), 2 * half(1500, 100)),
    }
    for kind, width in expected.items():
        what = found[kind]
        assert what["saving_per_request_high_j"] - what["saving_per_request_j"] == pytest.approx(width), kind


def test_what_does_not_change_cancels(fitted: dict[str, Any]) -> None:
    """Nine in ten requests are too short to be truncated: their error is no error of the saving."""
    mix = workload.Workload(((100, 2000, 9), (1500, 200, 1)))
    answer = advise(fitted, "big", mix, Wishes(batch=8, what_ifs={"truncate": [400]}))
    (one,) = ask(fitted, what_ifs={"truncate": [400]}).options
    (option,) = answer.options
    assert option.saving is not None
    assert one.saving is not None
    widths = [found.high - found.value for found in (option.saving.energy_j, one.saving.energy_j)]
    assert 10 * widths[0] == pytest.approx(widths[1])


def test_the_sensors_gain_cancels_in_percent(tmp_path: Path) -> None:
    noisy = [row | {"energy_j": row["energy_j"] * (1 + 0.01 * (-1) ** i)} for i, row in enumerate(rows())]
    widths = {}
    for gain in (0.0, 0.05):
        folder = tmp_path / str(gain)
        folder.mkdir()
        table = [row | {"uncertainty_gain": gain} for row in noisy]
        answer = told(predictor.load(fit(folder, table)), what_ifs={"truncate": [400]})
        (what,) = answer["what_ifs"]
        widths[gain] = (
            answer["now"]["energy_per_request_high_j"] / answer["now"]["energy_per_request_j"] - 1,
            what["saving_high_percent"] - what["saving_percent"],
            what["saving_per_request_high_j"] / what["saving_per_request_j"] - 1,
        )
    assert widths[0.05][0] == pytest.approx(math.hypot(widths[0.0][0], 0.05))
    assert widths[0.05][1] == pytest.approx(widths[0.0][1])
    assert widths[0.05][2] == pytest.approx(math.hypot(widths[0.0][2], 0.05))


def test_no_saving_exceeds_everything_and_a_doubtful_one_shows_its_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that scatter by a fifth: intervals are wide, but a request never saves more than it costs."""
    rng = random.Random(3)
    path = fit(tmp_path, [row | {"energy_j": row["energy_j"] * math.exp(rng.gauss(0, 0.2))} for row in rows()])
    doubtful = 0
    for n, m, batch in itertools.product((64, 2048), (64, 1500), (1, 8, 32)):
        capsys.readouterr()
        asked = ["--input-tokens", str(n), "--output-tokens", str(m), "--batch", str(batch), "--json"]
        assert main(["advise", "--predictor", str(path), "--model", "big", *asked]) == 0
        answer = json.loads(capsys.readouterr().out)
        for option in answer["what_ifs"]:
            if option["excluded"] or "saving_percent" not in option:
                continue
            assert option["saving_high_percent"] <= 100
            assert option["saving_per_request_high_j"] <= answer["now"]["energy_per_request_high_j"]
            doubtful += option["saving_per_request_low_j"] <= 0 <= option["saving_per_request_high_j"]
    assert doubtful
