"""The simulated H100 behaves like hardware, whatever law is fitted to it later."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simulation import H100, Bench
from sweetspot import engines, gpus
from sweetspot.engines import simulated
from sweetspot.errors import SweetspotError

FAST = {"input_tokens": 64, "output_tokens": 64}


def energy(bench: Bench, n: int, m: int) -> float:
    """True joules of one batch run."""
    start = bench.device.clock.now()
    bench.engine.run(n, m)
    return bench.device.true_energy_j(start, bench.device.clock.now())


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    first, second, other = (Bench(seed=seed).cell(256, 128) for seed in (7, 7, 8))
    assert first == second
    assert first[0]["energy_j"] != other[0]["energy_j"]
    assert len({row["energy_j"] for row in first}) == len(first), "repetitions differ, as real ones do"


@pytest.mark.parametrize("batch", [1, 32])
def test_more_work_costs_more(batch: int) -> None:
    bench = Bench(batch=batch)
    assert energy(bench, 64, 64) < energy(bench, 512, 64) < energy(bench, 4096, 64)
    assert energy(bench, 64, 64) < energy(bench, 64, 256) < energy(bench, 64, 1024)


@pytest.mark.parametrize("name", gpus.names())
def test_every_board_with_a_data_sheet_can_be_simulated(name: str) -> None:
    """Within its power limit, and above an idle board's power: also those of 70 W."""
    wanted = replace(Bench().spec, gpu=name, architecture=Bench("llama-3.2-1b").spec.architecture, precision="float16")
    energy_j, duration_s, _ = simulated.expected(wanted, 128, 32)
    gpu = gpus.find(name)
    assert gpu is not None
    assert 0.15 * gpu.tdp_w < energy_j / duration_s <= gpu.tdp_w * 1.001


def test_a_batch_shares_the_weights() -> None:
    alone, together = energy(Bench(batch=1), 256, 256), energy(Bench(batch=32), 256, 256)
    assert alone < together < 32 * alone / 4


def test_the_worst_cell_is_far_from_the_best_only_in_a_batch() -> None:
    """Paper: up to 33x between cells; at batch 1 about 1.5x, since the weights dominate every token."""
    ratios = {}
    for batch in (1, 128):
        bench = Bench(batch=batch)
        per_token = {(n, m): energy(bench, n, m) / (batch * m) for n in (64, 512, 4096) for m in (64, 512, 4096)}
        assert max(per_token, key=per_token.get) == (4096, 64)
        ratios[batch] = max(per_token.values()) / min(per_token.values())
    assert ratios[1] < 3
    assert ratios[128] > 8


def test_a_full_kv_cache_makes_waves() -> None:
    """Llama 3.1 8B caches 128 KiB per token: 64 requests of 8192 tokens need 64 GiB, but about 58 GiB are free."""
    ran = Bench(batch=64).engine.run(1024, 1024)
    assert (ran.in_flight, ran.waves) == (64, 1)
    ran = Bench(batch=64).engine.run(4096, 4096)
    assert ran.waves == 2
    assert 50 < ran.in_flight < 64
    rows = Bench(batch=64).cell(4096, 4096)
    assert {row["in_flight"] for row in rows} == {ran.in_flight}
    assert all("kv_limited" in row["flags"] for row in rows)


def test_the_power_cap_holds_and_shows_up_as_time() -> None:
    free, capped = Bench(), Bench()
    free.watts((10.0, 400.0))
    capped.watts((10.0, 1000.0))
    assert free.device.clock.now() < capped.device.clock.now()
    end = capped.device.clock.now()
    for step in range(100):
        moment = end - 0.1 * step
        assert capped.device.true_energy_j(moment - 0.1, moment) / 0.1 <= H100.tdp_w + 1e-6
    with capped.device.clock.every(
        0.5, lambda: seen.append((capped.sensor.sm_clock_mhz(), capped.sensor.event_reasons()))
    ):
        seen: list[tuple[int, int]] = []
        capped.watts((5.0, 1000.0))
    assert all(clock < 1980 and reasons == 0x4 for clock, reasons in seen)


def test_long_prompts_in_a_large_batch_hit_the_cap_and_are_flagged() -> None:
    rows = Bench("gemma-2-9b", batch=128).cell(4096, 1)
    assert all("power_capped" in row["flags"] for row in rows)
    assert all(0 < row["power_capped_share"] <= 1 for row in rows)
    assert rows[0]["sm_clock_mhz"] < 1980
    assert all(row["power_capped_share"] == 0 for row in Bench("gemma-2-9b", batch=1).cell(64, 64))


def test_static_power_rises_with_temperature() -> None:
    bench = Bench()
    cold_w = bench.idle_w
    bench.watts((120.0, 500.0))
    start = bench.device.clock.now()
    bench.device.clock.sleep(1.0)
    hot_w = bench.gain * bench.device.true_energy_j(start, start + 1.0)
    assert hot_w > 1.05 * cold_w
    bench.device.clock.sleep(120.0)
    end = bench.device.clock.now()
    assert bench.gain * bench.device.true_energy_j(end - 1.0, end) < 1.02 * cold_w, "an idle board cools"


@pytest.mark.parametrize(("precision", "source"), [("bfloat16", "simulated-kernels"), ("fp8", "simulated")])
def test_rows_say_that_they_are_simulated_and_how(precision: str, source: str) -> None:
    """No kernel of fp8 is in the tables, so the roofline takes its place."""
    row = Bench(precision=precision).cell(64, 64)[0]
    assert row["source"] == source
    assert "SIMULATED" in row["gpu"]
    assert "SIMULATED" in row["gpu_uuid"]
    assert row["driver_version"] == row["engine"] == "simulated"


def test_true_joules_are_not_in_a_row() -> None:
    bench = Bench()
    for row in bench.cell(64, 64):
        true_j = bench.true_j(row) / row["batch_runs"]
        assert all(value != pytest.approx(true_j, rel=1e-6) for value in row.values() if isinstance(value, float))


def test_an_engine_serves_what_it_was_built_for(tmp_path: Path) -> None:
    spec = Bench().spec
    engines.build(spec, tmp_path)
    shorter = engines.EngineSpec(**{**vars(spec), "max_input_tokens": 64})
    engines.open_device(shorter, tmp_path)
    for change in ({"max_output_tokens": 8192}, {"precision": "fp8"}, {"batch": 9}):
        with pytest.raises(SweetspotError, match="rebuilt"):
            engines.open_device(engines.EngineSpec(**{**vars(spec), **change}), tmp_path)
    (tmp_path / "engine.json").write_text('{"spec": {"na')
    with pytest.raises(SweetspotError, match="holds no complete engine"):
        engines.open_device(spec, tmp_path)


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweetspotError, match=r"'tensorrt' is not known; known: .*simulated"):
        engines.build(engines.EngineSpec(**{**vars(Bench().spec), "name": "tensorrt"}), tmp_path)


def test_code_that_runs_with_an_engine_needs_only_the_standard_library() -> None:
    code = "import sys, sweetspot.measure.session; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "polars", "pydantic", "yaml", "scipy", "pandas", "snakemake"} & set(modules)


def test_two_builds_of_one_engine_leave_a_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a killed run finishes during the next run's build; neither sees the other's files."""
    directory, spec, build = tmp_path / "bs8", Bench().spec, simulated.build
    seen = []

    def slow(spec: engines.EngineSpec, place: Path) -> dict[str, int]:
        (place / "half").touch()
        monkeypatch.setattr(simulated, "build", build)
        engines.build(spec, directory)
        seen.extend(path.name for path in place.iterdir())
        engines.open_device(spec, directory)[0].close()
        return build(spec, place)

    monkeypatch.setattr(simulated, "build", slow)
    engines.build(spec, directory)
    assert seen == ["half"]
    engines.open_device(spec, directory)[0].close()
    assert [path.name for path in tmp_path.iterdir()] == ["bs8"]
