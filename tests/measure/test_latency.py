"""From the times of requests to the columns of a row."""

import pytest

from simulation import ARCHITECTURES, H100
from sweetspot import engines, models
from sweetspot.engines import BatchRun, RequestTimes, simulated
from sweetspot.measure import latency
from sweetspot.sensors.simulated import SimulatedGpu


def test_mean_and_percentiles_are_over_all_requests_of_a_window() -> None:
    batches = [
        BatchRun(
            50,
            1,
            tuple(RequestTimes(i / 1000, i / 1000 + first / 100, i / 1000 + first / 100 + 9) for i, first in part),
        )
        for part in (list(enumerate(range(1, 51))), list(enumerate(range(51, 102))))
    ]
    found = latency.columns(batches, 10)
    assert found["ttft_mean_s"] == pytest.approx(0.51)
    assert found["ttft_p50_s"] == pytest.approx(0.51)
    assert found["ttft_p95_s"] == pytest.approx(0.96)
    assert found["ttft_p99_s"] == pytest.approx(1.0)
    assert found["tpot_p50_s"] == pytest.approx(1.0)
    assert found["start_spread_s"] == pytest.approx((0.049 + 0.050) / 2)


def test_what_an_engine_does_not_tell_is_unknown() -> None:
    assert set(latency.columns([BatchRun(8, 1)], 10).values()) == {None}
    assert set(latency.columns([], 10).values()) == {None}
    single = latency.columns([BatchRun(1, 1, (RequestTimes(0.0, 0.5, 0.5),))], 1)
    assert (single["ttft_p99_s"], single["tpot_mean_s"]) == (0.5, None)


def test_a_batch_in_waves_says_nothing_of_how_it_starts() -> None:
    run = BatchRun(1, 2, (RequestTimes(0.0, 0.5, 1.0), RequestTimes(1.0, 1.5, 2.0)))
    found = latency.columns([run], 6)
    assert found["start_spread_s"] is None
    assert found["ttft_mean_s"] == pytest.approx(0.5), "waiting for the wave before is not in it"


@pytest.mark.parametrize("batch", [1, 64])
def test_simulated_requests_take_as_long_as_their_batch(batch: int) -> None:
    arch = models.load(ARCHITECTURES / "llama-3.1-8b.json")
    spec = engines.EngineSpec("simulated", arch, "bfloat16", "none", H100.name, batch, 1024, 256, 0.9, 1)
    device = SimulatedGpu(H100, 1)
    ran = simulated.SimulatedEngine(spec, device).run(1024, 256)
    assert len(ran.requests) == batch
    assert max(one.last_token_s for one in ran.requests) == pytest.approx(device.clock.now())
    for one in ran.requests:
        assert 0 < one.first_token_s - one.arrival_s < one.last_token_s - one.arrival_s
    firsts = [one.first_token_s for one in ran.requests]
    assert len(set(firsts)) == -(-batch * 1024 // simulated.CHUNK_TOKENS), "first tokens come pass by pass"
