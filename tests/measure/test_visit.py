"""The protocol: warm-up, windows, repetitions, and when to stop."""

from dataclasses import replace
from statistics import fmean, stdev

import pytest

from blocks import COLUMNS
from simulation import Bench
from sweetspot.engines import BatchRun
from sweetspot.measure.protocol import Protocol


def test_a_row_holds_the_energy_of_one_batch_run() -> None:
    bench = Bench()
    rows = bench.cell(512, 128)
    for row in rows:
        assert set(row) >= COLUMNS
        assert row["valid"]
        assert row["reasons"] == ""
        true_j = bench.true_j(row)
        assert row["energy_j"] * row["batch_runs"] / bench.gain == pytest.approx(true_j, rel=0.005)
        assert row["duration_s"] * row["batch_runs"] == pytest.approx(row["window_s"])
        assert row["power_w"] == pytest.approx(row["energy_j"] / row["duration_s"])
        assert 100 < row["idle_w"] < 135


@pytest.mark.parametrize(("n", "m", "runs"), [(64, 64, 32), (64, 2048, 2), (4096, 4096, 1)])
def test_a_window_is_long_enough_and_no_longer(n: int, m: int, runs: int) -> None:
    row = Bench(batch=1).cell(n, m)[0]
    assert row["window_s"] >= 10
    assert row["batch_runs"] == runs


def test_warm_up_is_discarded_and_lasts_until_the_gpu_is_steady() -> None:
    bench = Bench(batch=1)
    rows = bench.cell(64, 64)
    assert rows[0]["time_s"] >= 10
    assert "not_steady" not in rows[0]["flags"]
    restless = Bench(batch=1, protocol=Protocol(warmup_drift=1e-9, warmup_max_s=25.0))
    rows = restless.cell(64, 64)
    assert rows[0]["time_s"] >= 25
    assert all("not_steady" in row["flags"] for row in rows)


def test_repeating_stops_when_the_mean_is_known_well_enough() -> None:
    assert len(Bench().cell(256, 128)) == 3
    assert len(Bench(protocol=Protocol(stop_interval=0.0)).cell(256, 128)) == 5
    tight = Bench(protocol=Protocol(stop_interval=0.0012, repetitions=40, window_max_s=10.0, window_runs=1))
    energies = [row["energy_j"] for row in tight.cell(256, 128)]
    assert 3 < len(energies) < 40
    assert 1.9 * stdev(energies) / len(energies) ** 0.5 <= 0.0012 * fmean(energies)


def test_a_row_whose_sources_contradict_each_other_is_kept_as_invalid() -> None:
    bench = Bench()
    good = bench.sensor.energy_mj
    bench.sensor.energy_mj = lambda: good() * 9 // 10
    rows = bench.cell(64, 64)
    assert len(rows) == 2 * 3, "each visit measures an invalid repetition again, twice"
    assert all(not row["valid"] and row["reasons"] == "counter_vs_integral" and row["energy_j"] > 0 for row in rows)


def test_a_stuck_counter_gives_no_joules() -> None:
    bench = Bench()
    bench.sensor.energy_mj = lambda: 10**9
    for row in bench.cell(64, 64):
        assert row["energy_j"] is None
        assert row["power_w"] is None
        assert row["energy_instant_j"] > 0
        assert row["reasons"] == "counter_stuck"


def test_flags_of_the_plan_and_of_the_weights_reach_the_row() -> None:
    assert Bench(batch=1).cell(64, 64, "extended_positions")[0]["flags"] == "extended_positions"
    assert "random_weights" in Bench(weights="dummy").cell(64, 64)[0]["flags"]


def test_models_that_differ_only_in_weights_share_a_digest() -> None:
    digests = {Bench(weights=weights).cell(64, 64)[0]["architecture"] for weights in ("dummy", "gaussian")}
    assert len(digests) == 1
    assert Bench("qwen2-7b").cell(64, 64)[0]["architecture"] not in digests


def test_every_number_of_the_protocol_has_a_description() -> None:
    for field in Protocol.__dataclass_fields__.values():
        assert field.metadata["description"], field.name
    assert replace(Protocol(), version=2) != Protocol()


def test_a_steady_gpu_is_recognised() -> None:
    """A counter step relative to a block of the warm-up exceeds the drift to be detected."""
    for seed in range(1, 7):
        bench = Bench("opt-1.3b", batch=128, seed=seed)
        bench.cell(64, 64)
        row = bench.cell(64, 128)[0]
        assert row["time_s"] < 25
        assert "not_steady" not in row["flags"]


def test_a_row_shows_the_work_and_not_the_idle_moment_before_it() -> None:
    row = Bench(batch=1).cell(64, 64)[0]
    assert row["event_reasons"] == 0
    assert row["sm_clock_mhz"] == 1980


def test_a_window_shorter_than_the_protocol_recommends_is_flagged() -> None:
    rows = Bench(protocol=Protocol(window_s=5.0, window_max_s=5.0)).cell(64, 64)
    assert all("short_window" in row["flags"] for row in rows)
    assert all("short_window" not in row["flags"] for row in Bench().cell(64, 64))


def test_time_counts_from_the_start_of_the_session() -> None:
    bench = Bench()
    bench.device.clock.sleep(1000.0)
    assert bench.cell(64, 64)[0]["time_s"] < 100


def test_a_row_has_the_latencies_of_its_requests() -> None:
    for row in Bench(batch=8).cell(512, 128):
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"] < row["duration_s"]
        assert row["ttft_mean_s"] + 127 * row["tpot_mean_s"] == pytest.approx(row["duration_s"], rel=0.01)
        assert row["start_spread_s"] == 0
        assert "staggered_start" not in row["flags"]


@pytest.mark.parametrize(("share", "flagged"), [(0.02, False), (0.2, True)])
def test_a_batch_whose_requests_start_one_by_one_is_flagged(share: float, flagged: bool) -> None:
    bench = Bench(batch=8)
    run = bench.engine.run

    def staggered(n: int, m: int) -> BatchRun:
        start_s = bench.device.clock.now()
        ran = run(n, m)
        took_s = bench.device.clock.now() - start_s
        late = [one._replace(arrival_s=one.arrival_s + share * took_s * i / 7) for i, one in enumerate(ran.requests)]
        return replace(ran, requests=tuple(late))

    bench.engine.run = staggered
    for row in bench.cell(64, 256):
        assert row["start_spread_s"] == pytest.approx(share * row["duration_s"], rel=0.01)
        assert ("staggered_start" in row["flags"].split(";")) is flagged


def test_what_an_engine_holds_against_its_runs_makes_a_row_invalid() -> None:
    bench = Bench()
    said = iter([("preempted",), (), (), ("preempted", "prompt_cached")] + 40 * [()])
    bench.engine.reasons = lambda: next(said)
    rows = bench.cell(64, 64)
    assert [row["reasons"] for row in rows][:2] == ["", "preempted;prompt_cached"], "what went before does not count"
    assert not rows[1]["valid"]
    assert rows[1]["energy_j"] > 0


def test_an_engine_that_does_not_know_its_capacity_is_flagged() -> None:
    bench = Bench()
    run = bench.engine.run
    bench.engine.run = lambda n, m: replace(run(n, m), in_flight=None, flags=("kv_capacity_unknown",))
    for row in bench.cell(64, 64):
        assert row["in_flight"] is None
        assert "kv_capacity_unknown" in row["flags"].split(";")
