"""The adapters of vLLM and TensorRT-LLM, driven through strict stand-ins: how they call the real packages."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import standins
from blocks import COLUMNS
from simulation import H100
from standins import BOARD_BYTES, REAL, opened, spec
from sweetspot import engines
from sweetspot.errors import OutOfMemory, SweetspotError
from sweetspot.measure.visit import unmeasured_cell


@pytest.mark.parametrize("name", REAL)
def test_a_batch_runs_at_exact_lengths_with_new_prompts(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, name)
    engine = opened(spec(name), tmp_path)
    assert set(package.gpus) == {H100.name}
    package.batches.clear()
    for _ in range(2):
        ran = engine.run(512, 256)
        assert (ran.in_flight, ran.waves) == (8, 1)
    prompts = [tuple(ids) for batch, _ in package.batches for ids in batch]
    assert len(prompts) == 16
    assert {len(ids) for ids in prompts} == {512}
    assert len(set(prompts)) == 16, "a different prompt for every request of every run"
    assert len({ids[:16] for ids in prompts}) == 16, "not even the first block is shared"
    assert all(0 <= token < 128256 for ids in prompts for token in ids)
    assert len({token for ids in prompts for token in ids}) > 1000
    for _, sampling in package.batches:
        assert sampling.max_tokens == 256
        assert sampling.ignore_eos is True
        assert sampling.detokenize is False
        assert sampling.n == 1
    engine.close()
    engine.close()
    assert package.closed == 1 + (name == "trt-engine"), "once, and once more for the builder"


@pytest.mark.parametrize("name", REAL)
def test_the_same_seed_gives_the_same_prompts(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.of(monkeypatch, name)
    runs = []
    for seed in (1, 1, 2):
        engine = opened(spec(name, seed=seed), tmp_path / str(len(runs)))
        engine.run(64, 1)
        runs.append(package.batches[-1][0])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("given", [0, 255, 257])
def test_a_reply_of_another_length_is_refused(
    name: str, given: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, name)
    engine = opened(spec(name), tmp_path)
    package.reply_tokens = lambda wanted: given
    with pytest.raises(SweetspotError, match=f"{name} returned 8 replies of {given} tokens instead of 8 of 256"):
        engine.run(512, 256)


def test_vllm_loads_random_weights_from_only_a_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.vllm(monkeypatch)
    wanted = spec("vllm", "opt-1.3b", max_total_tokens=700)
    engine = opened(wanted, tmp_path)
    arguments = package.last("vllm.LLM")
    assert arguments["load_format"] == "dummy"
    assert arguments["enable_prefix_caching"] is False
    assert arguments["skip_tokenizer_init"] is True
    assert arguments["dtype"] == "bfloat16"
    assert arguments["max_model_len"] == 700
    assert arguments["max_num_seqs"] == 8
    assert arguments["max_num_batched_tokens"] == 8192
    free = 0.9 * (BOARD_BYTES - 2 * wanted.architecture.parameters)
    assert arguments["kv_cache_memory_bytes"] == pytest.approx(free, abs=1)
    assert arguments.get("trust_remote_code", False) is False
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    config = json.loads((Path(arguments["model"]) / "config.json").read_text())
    assert config["architectures"] == ["OPTForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert config["torch_dtype"] == "bfloat16", "not the float16 of its publisher"
    assert not [key for key in config if key.startswith("_")]
    assert [path.name for path in Path(arguments["model"]).iterdir()] == ["config.json"]
    engine.run(64, 32)
    assert package.batches[-1][1].min_tokens == 32
    assert package.batches[-1][1].temperature == 0
    assert engine.version == "0.26.0"


@pytest.mark.parametrize("name", REAL)
def test_code_that_a_config_points_at_is_never_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.of(monkeypatch, name)
    wanted = spec(name)
    opened(replace(wanted, model_config={**wanted.model_config, "auto_map": {"AutoConfig": "evil.Config"}}), tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "model/config.json").read_text())
    assert not any(arguments.get("trust_remote_code", False) for _, arguments in package.made)


def test_vllm_runs_a_batch_that_does_not_fit_in_waves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """768 tokens are 48 blocks of 16: 3 requests in 144 blocks, plus one block of vLLM's own."""
    package = standins.vllm(monkeypatch, blocks=145)
    engine = opened(spec("vllm"), tmp_path)
    ran = engine.run(512, 256)
    assert (ran.in_flight, ran.waves) == (3, 3)
    assert [len(prompts) for prompts, _ in package.batches] == [3, 3, 2]
    ran = engine.run(64, 32)
    assert (ran.in_flight, ran.waves) == (8, 1)


def test_a_sliding_window_takes_blocks_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Within the window, 48 blocks each for the full and the sliding layers. Beyond it, the sliding layers need 1280
    blocks for the window and two passes in flight, and one more since a window may start inside a block.
    """
    for blocks, n, m, in_flight in ((192, 512, 256, 2), (191, 512, 256, 1), (1281 + 1891, 30_000, 256, 1)):
        standins.vllm(monkeypatch, blocks=1 + blocks, windows=(4096, None))
        engine = opened(spec("vllm", "gemma-2-2b", max_input_tokens=30_000), tmp_path)
        assert engine.run(n, m).in_flight == in_flight
    standins.vllm(monkeypatch, blocks=1281 + 1891, windows=(4096, None))
    with pytest.raises(OutOfMemory):
        opened(spec("vllm", "gemma-2-2b", max_input_tokens=30_000), tmp_path).run(30_000, 256)


@pytest.mark.parametrize("name", ["trt-engine", "trt-pytorch"])
def test_tensorrt_llm_gets_as_many_requests_as_its_blocks_hold(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """768 tokens are 24 blocks of 32: 3 requests in 95 blocks."""
    package = standins.tensorrt_llm(monkeypatch, blocks=95)
    engine = opened(spec(name), tmp_path)
    ran = engine.run(512, 256)
    assert (ran.in_flight, ran.waves) == (3, 3)
    assert [len(prompts) for prompts, _ in package.batches[-3:]] == [3, 3, 2]


def test_a_tensorrt_engine_is_built_once_and_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    engine = opened(spec("trt-engine", max_total_tokens=600), tmp_path)
    built, loaded = [arguments for name, arguments in package.made if name.endswith("_tensorrt_engine.LLM")]
    assert built["load_format"] == "dummy"
    sizes = {"max_batch_size": 8, "max_input_len": 512, "max_seq_len": 600, "max_num_tokens": 8192}
    assert package.last("tensorrt_llm.llmapi.BuildConfig") == {**sizes, "max_beam_width": 1}
    assert Path(built["model"]).name == "model"
    assert Path(loaded["model"]) == tmp_path / "engine"
    assert (tmp_path / "engine/rank0.engine").is_file()
    for arguments in (built, loaded):
        assert sizes.items() <= arguments.items()
        assert arguments["skip_tokenizer_init"] is True
    knobs = loaded["extended_runtime_perf_knob_config"]
    assert knobs.cuda_graph_mode is True
    assert knobs.cuda_graph_cache_size > 0
    record = json.loads((tmp_path / "engine.json").read_text())
    assert record["version"] == engine.version == "1.2.1"
    assert record["build_s"] >= 0
    assert record["build_j"] == 3500.0
    assert record["memory"]["weights_bytes"] == 2 * 1235814400


@pytest.mark.parametrize("name", ["trt-engine", "trt-pytorch"])
def test_tensorrt_llm_reuses_no_block_and_evicts_no_request(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    opened(spec(name, kv_cache_fraction=0.7), tmp_path).run(64, 32)
    for llm in package.models:
        assert llm.kv_cache_config.enable_block_reuse is False
        assert llm.kv_cache_config.free_gpu_memory_fraction == 0.7
        assert llm.scheduler_config.capacity_scheduler_policy == "GUARANTEED_NO_EVICT"
    assert package.batches[-1][1].end_id == -1
    assert os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] == "1"


def test_the_pytorch_backend_builds_nothing_and_captures_graphs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.tensorrt_llm(monkeypatch, version="1.2.0rc8")
    engines.build(spec("trt-pytorch"), tmp_path)
    assert package.models == []
    engines.open_device(spec("trt-pytorch"), tmp_path)
    arguments = package.last("tensorrt_llm.LLM")
    assert arguments["cuda_graph_config"].max_batch_size == 8
    assert arguments["cuda_graph_config"].enable_padding is True
    assert arguments["load_format"] == "dummy"
    assert Path(arguments["model"]) == tmp_path / "model"


@pytest.mark.parametrize("name", REAL)
def test_cuda_graphs_can_be_left_out_of_the_same_engine(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, name)
    opened(spec(name), tmp_path)
    without = spec(name, cuda_graphs=False)
    assert not engines.unfit(without, tmp_path), "nothing is built again"
    engines.open_device(without, tmp_path)
    graphs = {
        "vllm": [llm.__dict__.get("enforce_eager") is False for llm in package.models],
        "trt-engine": [
            getattr(llm, "extended_runtime_perf_knob_config", None)
            and llm.extended_runtime_perf_knob_config.cuda_graph_mode
            for llm in package.models
        ],
        "trt-pytorch": [llm.cuda_graph_config is not None for llm in package.models if name == "trt-pytorch"],
    }[name]
    assert graphs[-2:] == [True, False]
    flags = unmeasured_cell(without, {"input_tokens": 64, "output_tokens": 32, "flags": ""}, "reason")["flags"]
    assert flags == "random_weights;no_cuda_graphs"


@pytest.mark.parametrize("name", ["trt-engine", "trt-pytorch"])
def test_static_batches_are_set_in_the_scheduler(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    wanted = spec(name, in_flight_batching=False)
    opened(wanted, tmp_path)
    assert package.models[-1].scheduler_config.capacity_scheduler_policy == "STATIC_BATCH"
    row = unmeasured_cell(wanted, {"input_tokens": 64, "output_tokens": 32, "flags": ""}, "reason")
    assert row["flags"] == "random_weights;static_batches"


def test_prompts_longer_than_a_pass_are_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    opened(spec("trt-engine", max_input_tokens=10_000), tmp_path)
    assert package.last("tensorrt_llm.llmapi.BuildConfig")["max_num_tokens"] == 10_000


@pytest.mark.parametrize("name", ["vllm", "trt-engine"])
def test_positions_are_extended_on_random_weights(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standins.of(monkeypatch, name)
    longer = {"precision": "float16", "max_input_tokens": 4096, "max_output_tokens": 4096}
    opened(spec(name, "opt-1.3b", **longer), tmp_path)
    assert json.loads((tmp_path / "model/config.json").read_text())["max_position_embeddings"] == 8192


class Parameter:
    """The part of a model parameter that initialisation uses."""

    def __init__(self, dimensions: int) -> None:
        self.data, self.content, self._dimensions = self, ("as loaded", 0.0), dimensions

    def dim(self) -> int:
        return self._dimensions

    def normal_(self, mean: float, sd: float) -> None:
        self.content = (f"normal around {mean:g}", sd)

    def fill_(self, value: float) -> None:
        self.content = ("constant", value)


@pytest.mark.parametrize("weights", ["dummy", "gaussian"])
def test_gaussian_weights_are_set_after_loading(weights: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.vllm(monkeypatch)
    model = {"layer.weight": Parameter(2), "layer.bias": Parameter(1), "norm.weight": Parameter(1)}
    package.package.LLM.named_parameters = lambda llm: model.items()
    opened(spec("vllm", weights=weights), tmp_path)
    assert package.last("vllm.LLM")["load_format"] == "dummy"
    expected = {
        "dummy": [("as loaded", 0.0)] * 3,
        "gaussian": [("normal around 0", 0.02), ("constant", 0.0), ("constant", 1.0)],
    }
    assert [parameter.content for parameter in model.values()] == expected[weights]


def test_a_stand_in_refuses_what_the_real_package_would(monkeypatch: pytest.MonkeyPatch) -> None:
    package = standins.vllm(monkeypatch).package
    for wrong in ({"enable_block_reuse": False}, {"max_num_seqs": 1.5}, {"enable_prefix_caching": 1}, {"seed": True}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            package.LLM(model="model", **wrong)


def test_a_cell_without_a_measurement_has_the_columns_of_a_row() -> None:
    row = unmeasured_cell(spec("vllm"), {"input_tokens": 64, "output_tokens": 32, "flags": "kv_limited"}, "reason")
    window = {f"uncertainty_{cause}" for cause in ("gain", "counter_step", "tail")}
    window |= {
        "event_reasons",
        "power_capped_share",
        "gpu_uuid",
        "driver_version",
        "sm_clock_mhz",
        "temperature_c",
        "time_s",
    }
    assert set(row) >= COLUMNS - window - {"window_s"}
    assert row["valid"] is False
    assert row["reasons"] == "reason"
    assert row["flags"] == "kv_limited;random_weights"
