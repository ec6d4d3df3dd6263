"""Engines on several GPUs: what they are told, and what the simulation makes of it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import serving
import standins
from serving import PROGRAM
from simulation import H100
from standins import BOARD_BYTES, opened, spec
from sweetspot import engines, gpus
from sweetspot.engines import simulated
from sweetspot.errors import SweetspotError, UnfitMachine
from sweetspot.measure.protocol import Protocol, open_meter
from sweetspot.measure.visit import visit_cell
from sweetspot.parallelism import Parallelism

FOUR = {"tensor_parallel": 2, "pipeline_parallel": 2}


def test_vllm_spreads_the_model_over_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.vllm(monkeypatch)
    synchronized: list[bool] = []
    monkeypatch.setattr(sys.modules["torch"].cuda, "synchronize", lambda: synchronized.append(True))
    wanted = spec("vllm", **FOUR)
    opened(wanted, tmp_path).run(64, 32)
    arguments = package.last("vllm.LLM")
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 2)
    assert arguments["enable_expert_parallel"] is False
    free = 0.9 * (BOARD_BYTES - 2 * wanted.architecture.parameters / 4)
    assert arguments["kv_cache_memory_bytes"] == pytest.approx(free, rel=1e-9), "of each GPU"
    assert (package.gpus, package.boards) == ([H100.name], [4])
    assert not synchronized, "that would take memory of a worker's GPU"


def test_vllm_may_fill_every_gpu_although_they_store_the_same_heads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.vllm(monkeypatch)
    wanted = spec("vllm", "qwen2-1.5b", tensor_parallel=4)  # 12 heads, two key/value heads
    opened(wanted, tmp_path)
    free = 0.9 * (BOARD_BYTES - 2 * wanted.architecture.parameters / 4)
    assert package.last("vllm.LLM")["kv_cache_memory_bytes"] == pytest.approx(free, rel=1e-9)


@pytest.mark.parametrize("name", ["trt-engine", "trt-pytorch"])
def test_tensorrt_llm_starts_a_worker_for_each_gpu(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    opened(spec(name, **FOUR), tmp_path).run(64, 32)
    for llm in package.models:
        assert (llm.tensor_parallel_size, llm.pipeline_parallel_size) == (2, 2)
        assert llm.moe_expert_parallel_size is None
    assert os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] == "0"
    assert set(package.boards) == {4}
    if name == "trt-engine":
        assert json.loads((tmp_path / "engine.json").read_text())["build_j"] == 4 * 3500.0


def test_an_engine_for_other_gpus_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standins.tensorrt_llm(monkeypatch)
    engines.build(spec("trt-pytorch"), tmp_path)
    record = json.loads((tmp_path / "engine.json").read_text())
    assert not {"tensor_parallel", "pipeline_parallel", "expert_parallel"} & record["spec"].keys(), "as it always was"
    assert engines.unfit(spec("trt-pytorch"), tmp_path) == ""
    assert "tensor_parallel 1, needed for 2" in engines.unfit(spec("trt-pytorch", tensor_parallel=2), tmp_path)
    engines.build(spec("trt-pytorch", tensor_parallel=2), tmp_path)
    assert "tensor_parallel 2, needed for 1" in engines.unfit(spec("trt-pytorch"), tmp_path)


def test_a_model_that_cannot_be_spread_is_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standins.vllm(monkeypatch)
    with pytest.raises(SweetspotError, match="tensor_parallel 3 does not divide the 32 attention heads"):
        engines.build(spec("vllm", tensor_parallel=3), tmp_path)


@pytest.mark.parametrize("ours", [True, False])
def test_a_server_started_on_several_gpus_must_use_them_all(
    ours: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boards = [SimpleNamespace(name=f"{n}:GPU-{n}", has_ours=lambda n=n: n == 0 or ours) for n in range(2)]
    nvml = SimpleNamespace(open_sensors=lambda *given: boards)
    monkeypatch.setitem(sys.modules, "sweetspot.sensors.nvml", nvml)
    command = f"{PROGRAM} vllm {{port}} {{name}}"
    wanted = serving.spec("vllm-server", command=command, tensor_parallel=2)
    engines.build(wanted, tmp_path)
    if ours:
        engine, sensors, _ = engines.open_device(wanted, tmp_path)
        assert list(sensors) == boards
        engine.close()
        return
    with pytest.raises(UnfitMachine, match=r"does not use GPU 1:GPU-1 of its 2: .*tensor-parallel-size"):
        engines.open_device(wanted, tmp_path)


# The simulation.


def run_of(wanted: engines.EngineSpec, n: int = 1024, m: int = 256) -> tuple[float, float]:
    """Joules and seconds of a batch run."""
    energy_j, duration_s, _ = simulated.expected(wanted, n, m)
    return energy_j, duration_s


def simulation(model: str = "llama-3.1-8b", gpu: str = H100.name, batch: int = 8, **changes: Any) -> Any:
    return spec("simulated", model, gpu=gpu, weights="none", batch=batch, precision="bfloat16", **changes)


def test_more_gpus_are_faster_but_need_more_energy() -> None:
    """The exchange and the idle power of more boards cost more than the shorter time saves."""
    found = [run_of(simulation(tensor_parallel=boards)) for boards in (2, 4, 8)]
    assert sorted(seconds for _, seconds in found) == [seconds for _, seconds in reversed(found)]
    assert sorted(joules for joules, _ in found) == [joules for joules, _ in found]


def test_the_exchange_costs_what_its_bytes_and_moments_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sums per layer and pass: 2 (t - 1)/t of tokens x hidden x 2 bytes over the link, and a latency for each."""
    wanted = simulation(tensor_parallel=4)
    arch, n, m, batch = wanted.architecture, 1024, 256, 8
    _, with_exchange_s = run_of(wanted, n, m)
    monkeypatch.setattr(Parallelism, "exchanged", lambda *_: (0.0, 0.0))
    _, without_s = run_of(wanted, n, m)
    passes, tokens = 1 + m - 1, batch * (n + m - 1)
    expected_s = 2 * arch.layers * (1.5 * tokens * arch.hidden * 2 / 450e9 + passes * simulated.EXCHANGE_S)
    assert with_exchange_s - without_s == pytest.approx(expected_s, rel=1e-6)


def test_boards_without_nvlink_exchange_more_slowly() -> None:
    sxm, pcie = (gpus.find(name) for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"))
    assert sxm is not None
    assert pcie is not None
    times = [
        run_of(simulation(gpu=board.name, batch=32, tensor_parallel=4))[1]
        / run_of(simulation(gpu=board.name, batch=32, pipeline_parallel=4))[1]
        for board in (sxm, pcie)
    ]
    assert times[1] > 1.1 * times[0], "a pipeline hands over less than boards that share layers"


def test_a_large_model_fits_on_more_boards(tmp_path: Path) -> None:
    arch = simulation().architecture
    layers = replace(arch.blocks[0], count=8 * arch.layers)
    large = replace(arch, name="large", blocks=(layers,), parameters=8 * arch.parameters)
    with pytest.raises(SweetspotError, match="of weights exceed the memory of NVIDIA"):
        engines.build(replace(simulation(), architecture=large), tmp_path)
    engines.build(replace(simulation(tensor_parallel=2), architecture=large), tmp_path)


def test_every_simulated_board_has_a_sensor_of_its_own(tmp_path: Path) -> None:
    wanted = simulation(tensor_parallel=4, batch=8)
    engines.build(wanted, tmp_path)
    engine, sensors, clock = engines.open_device(wanted, tmp_path)
    protocol = Protocol(visits=1)
    meter = open_meter(sensors, clock, protocol)
    cell = {"input_tokens": 512, "output_tokens": 64, "flags": ""}
    row = next(visit_cell(engine, meter, wanted, cell, protocol, None, 0)).row
    assert row["valid"], row["reasons"]
    assert row["source"] == "simulated", "kernels were measured for whole layers"
    assert (row["gpus"], row["parallelism"], len(set(row["gpu_uuid"].split(";")))) == (4, "tp4", 4)
    shares = row["energy_j_per_gpu"]
    assert sum(shares) == pytest.approx(row["energy_j"])
    assert max(shares) / min(shares) < 1.11, "gains of up to 5 %"
    assert len(set(shares)) == 4
    true_j, _, _ = simulated.expected(wanted, 512, 64)
    assert row["energy_j"] == pytest.approx(true_j, rel=0.06)
