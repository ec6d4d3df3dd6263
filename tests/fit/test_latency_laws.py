"""Laws of time to first token and time per output token: found again in tables that obey them."""

import itertools
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sweetspot.fit.fit import fit_table
from sweetspot.predict import predictor
from sweetspot.table import read as table
from sweetspot.vocabulary import LATENCIES

LENGTHS = (64, 256, 1024, 2048)
BATCHES = (1, 8, 32, 128)
PASS = 8192


def seconds(name: str, n: int, m: int, requests: float) -> float:
    """A latency by known coefficients, with prefill in passes of PASS tokens."""
    what, statistic, _ = name.split("_")
    whole = requests * n
    if what == "tpot":
        return 0.006 + 2e-5 * requests + 5e-9 * requests * (n + (m - 1) / 2) + 1e-5 * whole / m
    if statistic == "mean":
        done = (whole + min(whole, PASS)) / 2
    else:
        done = min(whole, int(statistic[1:]) / 100 * whole + PASS / 2)
    seen = done / requests
    return 0.005 + 1e-4 * requests + 1.5e-5 * done + 1e-9 * requests * seen * seen


def rows(batches: tuple[int, ...] = BATCHES, waves: float = 1.0, names: tuple[str, ...] = LATENCIES) -> pl.DataFrame:
    made = []
    for batch, n, m in itertools.product(batches, LENGTHS, LENGTHS):
        row = {"model": "a", "batch": batch, "input_tokens": n, "output_tokens": m, "waves": waves}
        energy_j = batch * m * (0.02 + 2 / batch + 1e-5 * n + 0.02 * n / m)
        row |= {"energy_j": energy_j, "duration_s": energy_j / 400}
        made.append(row | {name: seconds(name, n, m, batch / waves) for name in names})
    return pl.DataFrame(made)


@pytest.fixture
def fitted(tmp_path: Path) -> Any:
    def fit(frame: pl.DataFrame) -> dict[str, Any]:
        frame.write_parquet(tmp_path / "rows.parquet")
        return fit_table(table.read([tmp_path / "rows.parquet"]))

    return fit


@pytest.mark.parametrize("waves", [1.0, 4.0])
def test_exact_latencies_are_predicted_between_the_cells(fitted: Any, waves: float) -> None:
    found = fitted(rows((8, 32, 128), waves))
    fits = found["groups"][0]["latency"]
    assert list(fits) == list(LATENCIES)
    for name, fit in fits.items():
        assert fit["in_sample_mape_percent"] < 0.05
        assert fit["held_out_mape_percent"]["5-fold"] < 0.05
        assert fit["held_out_mape_percent"]["leave-one-batch-out"] < 0.05
        assert fit["pass_tokens"] == (PASS if name.startswith("ttft") else None)
    if waves == 1:
        answer = predictor.predict(found, "a", 700, 300, 64)
        for name, interval in answer.latency_s.items():
            assert interval.value == pytest.approx(seconds(name, 700, 300, 64), rel=1e-3)
            assert interval.low <= interval.value <= interval.high


def test_noise_gives_intervals_that_hold_the_truth(fitted: Any) -> None:
    frame = rows()
    noise = pl.Series([1.0 + 0.02 * ((7 * i * i + 3 * i) % 11 - 5) / 5 for i in range(frame.height)])
    found = fitted(frame.with_columns(pl.col(LATENCIES) * noise))
    inside = [
        interval.low <= seconds(name, n, m, batch) <= interval.high
        for batch, n, m in itertools.product((4, 64), (100, 900), (100, 900))
        for name, interval in predictor.predict(found, "a", n, m, batch).latency_s.items()
    ]
    assert sum(inside) >= 0.9 * len(inside)


def test_one_batch_is_enough(fitted: Any) -> None:
    answer = predictor.predict(fitted(rows((8,))), "a", 700, 300)
    assert answer.latency_s["tpot_mean_s"].value == pytest.approx(seconds("tpot_mean_s", 700, 300, 8), rel=1e-3)


def test_a_table_with_some_latencies_or_none(fitted: Any) -> None:
    assert fitted(rows(names=()))["groups"][0]["latency"] == {}
    assert list(fitted(rows(names=("ttft_p95_s",)))["groups"][0]["latency"]) == ["ttft_p95_s"]
    some = rows().with_columns(
        pl.when(pl.col("output_tokens") > 64).then("tpot_mean_s").alias("tpot_mean_s"), tpot_p50_s=pl.lit("?")
    )
    found = fitted(some)["groups"][0]["latency"]
    assert "tpot_mean_s" in found, "the cells that have it suffice"
    assert "tpot_p50_s" not in found


def test_a_reply_of_one_token_has_no_further_ones(fitted: Any) -> None:
    answer = predictor.predict(fitted(rows()), "a", 700, 1, 8)
    assert {name.split("_")[0] for name in answer.latency_s} == {"ttft"}


def test_beyond_the_measured_batches_the_interval_widens(fitted: Any) -> None:
    found = fitted(rows())

    def width(batch: int) -> float:
        one = predictor.predict(found, "a", 512, 256, batch).latency_s["ttft_p95_s"]
        return (one.high - one.low) / one.value

    assert width(512) >= width(64)


def test_predictions_in_words(fitted: Any) -> None:
    text = predictor.predict(fitted(rows()), "a", 512, 256, 8).as_text()
    assert f"first token       {seconds('ttft_mean_s', 512, 256, 8):.3g} s on average" in text
    assert f"{seconds('tpot_p95_s', 512, 256, 8):.3g} s each at the 95th percentile of requests" in text
    assert "first token" not in predictor.predict(fitted(rows(names=())), "a", 512, 256, 8).as_text()


def test_an_open_number_of_waves_widens_the_interval(tmp_path: Path) -> None:
    """As for the energy: it covers every number of waves that the cells allow."""
    frame = rows((8, 32, 64)).with_columns(total=pl.col("input_tokens") + pl.col("output_tokens"))
    waves = (pl.col("batch") / (30_000 // pl.col("total")).clip(1)).ceil()
    frame = frame.with_columns(waves=waves)
    made = [
        row | {name: seconds(name, row["input_tokens"], row["output_tokens"], row["batch"] / row["waves"])}
        for row in frame.drop("total", *LATENCIES).iter_rows(named=True)
        for name in ("ttft_p95_s",)
    ]
    pl.DataFrame(made).write_parquet(tmp_path / "rows.parquet")
    found = fit_table(table.read([tmp_path / "rows.parquet"]))
    opened = 0
    for n, m in itertools.product(range(600, 2000, 90), range(600, 2000, 90)):
        answer = predictor.predict(found, "a", n, m, 32)
        if "waves" in answer.interval_parts:
            opened += 1
            truth = seconds("ttft_p95_s", n, m, 32 / math.ceil(32 / (30_000 // (n + m))))
            interval = answer.latency_s["ttft_p95_s"]
            assert interval.low * (1 - 1e-6) <= truth <= interval.high * (1 + 1e-6)
    assert opened > 10


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pl.duration(milliseconds=37), "0:00:00.037000"),
        (pl.lit("37 ms"), "37 ms"),
        (pl.lit(-0.1), "-0.1"),
        (pl.lit(0.0), "0.0"),
        (pl.lit(float("inf")), "inf"),
        (1000 * pl.col("duration_s"), "values left out"),
        (pl.concat_list("duration_s"), "values left out"),
    ],
)
def test_what_cannot_be_a_latency_is_left_out_with_a_note(values: pl.Expr, said: str, tmp_path: Path) -> None:
    rows(names=()).with_columns(ttft_p95_s=values).write_parquet(tmp_path / "rows.parquet")
    read = table.read([tmp_path / "rows.parquet"])
    (note,) = [note for note in read.notes if note.startswith("ttft_p95_s")]
    assert said in note
    assert "row 1" in note
    assert fit_table(read)["groups"][0]["latency"] == {}


def test_latencies_of_a_part_of_the_cells_are_not_taken_for_all(fitted: Any) -> None:
    """With a latency at batch 1 only, nothing would warn that another batch was never measured."""
    only = pl.when(pl.col("batch") == 1).then("ttft_p95_s").alias("ttft_p95_s")
    assert "ttft_p95_s" not in fitted(rows().with_columns(only))["groups"][0]["latency"]


def test_predictions_in_words_of_what_the_table_has(fitted: Any) -> None:
    text = predictor.predict(fitted(rows(names=("ttft_p95_s",))), "a", 512, 256, 8).as_text()
    assert f"first token       {seconds('ttft_p95_s', 512, 256, 8):.3g} s at the 95th percentile of requests" in text
    assert "on average" not in text
