"""The simulated device against the published rows of the benchmark."""

from importlib import import_module
from pathlib import Path
from statistics import fmean

import pytest

from sweetspot.engines import kernels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_stated_errors_are_those_of_the_rows_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = import_module("simulator_vs_published")
    rows = [row for row in benchmark.published() if not row.calibrated]
    errors = [abs(benchmark.simulate(row).energy) for row in rows]
    with benchmark.roofline():
        before = [abs(benchmark.simulate(row).energy) for row in rows]
    assert len(rows) == kernels.HELD_OUT_ROWS
    assert fmean(errors) == pytest.approx(kernels.HELD_OUT_MEAN, abs=5e-4)
    assert max(errors) == pytest.approx(kernels.HELD_OUT_WORST, abs=5e-4)
    assert fmean(errors) < fmean(before) / 2


@pytest.mark.parametrize("page", ["README.md", "docs/method.md", "CHANGELOG.md"])
def test_pages_state_the_same_errors(page: str) -> None:
    text = (BENCHMARKS.parent / page).read_text()
    assert f"{100 * kernels.HELD_OUT_MEAN:.3g} %" in text
    if page != "CHANGELOG.md":
        assert f"{100 * kernels.HELD_OUT_WORST:.3g} %" in text
