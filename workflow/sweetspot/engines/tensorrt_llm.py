"""TensorRT-LLM: `trt-engine` builds a TensorRT engine, `trt-pytorch` runs the PyTorch backend.

Checked against the published sources of `tensorrt_llm.llmapi.llm_args`, `_tensorrt_engine` and `sampling_params`.
Version 1.2 was the last with TensorRT engines: 1.3 has only the PyTorch backend, which knows other models.
"""

import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sweetspot.engines import EngineSpec, RequestTimes, adapter
from sweetspot.errors import SweetspotError, UnfitMachine
from sweetspot.files import write_atomically
from sweetspot.parallelism import Parallelism
from sweetspot.precision import Precision
from sweetspot.sensors import open_sensors

_ENGINE, _PYTORCH = "trt-engine", "trt-pytorch"
ENGINES = {_ENGINE: "is TensorRT-LLM with built engines (1.2)", _PYTORCH: "is TensorRT-LLM's PyTorch backend (1.2)"}
SIMULATED = False
FIXED: dict[str, str] = {}

_ENGINE_DIRECTORY = "engine"
_REMEDY = "install it as docs/engines.md describes and set engine.python to its Python"

# The oldest version, and the first that these calls were not checked against: their arguments change from minor to
# minor, and 1.3 has no TensorRT engines.
_OLDEST, _ENDED = (1, 2), (1, 3)
# Where each backend registers the architectures that it knows.
_REGISTRIES = {
    _ENGINE: ("tensorrt_llm.models", "MODEL_MAP"),
    _PYTORCH: ("tensorrt_llm._torch.models.modeling_utils", "MODEL_CLASS_MAPPING"),
}
# What each backend calls the kinds of quantisation and the formats of the KV cache.
_BOTH = {"fp8": "FP8", "int8+a_bfloat16": "W8A16", "int4": "W4A16_AWQ", "nvfp4": "NVFP4"}
_ALGORITHMS = {
    _ENGINE: {**_BOTH, "int8": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"},
    _PYTORCH: {**_BOTH, "mxfp4": "W4A16_MXFP4"},
}
_CACHES = {_ENGINE: {"fp8": "FP8", "int8": "INT8"}, _PYTORCH: {"fp8": "fp8", "nvfp4": "nvfp4"}}
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRTLLM_NO_USAGE_STATS": "1"}
# Importing the package runs MPI_Init. Inside srun or mpirun, as under Slurm, that would join the launcher's MPI job or
# fail, so the launchers' variables go first, as trtllm-llmapi-launch does for its task.
_LAUNCHERS = ("SLURM_", "PMIX_", "PMI_", "OMPI_", "MPI_", "UCX_", "I_MPI_", "HYDRA_", "MPICH_", "MV2_", "CRAY_")
_CUDA_GRAPHS_KEPT = 1000  # as in trtllm-bench; with the default of 0 no graph is ever reused


def version() -> str:
    """Version of the installed package. Raises UnfitMachine if it is missing."""
    return str(_package().__version__)


def refusal(name: str, precision: str, weights: str, parallelism: Parallelism) -> str:
    """Why the backend `name` cannot run any model so, or ""."""
    if parallelism.experts and name == _ENGINE:
        return f"engine {name} is not known to spread experts over GPUs; use {_PYTORCH}, or leave expert_parallel out"
    if weights == "gaussian":
        return (
            f"engine {name} gives no access to its weights; write gaussian ones with transformers and use them as a "
            "checkpoint (docs/how-to.md), or set weights to dummy"
        )
    return adapter.precision_refusal(name, precision, _ALGORITHMS[name], _CACHES[name])


def build(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    """Write the model's directory, build a TensorRT engine; returns the memory plan and the gross energy of the build.

    Raises SweetspotError for anything that would fail later, OutOfMemory if the build does not fit.
    """
    package = _package()
    _check_version(spec.name, str(package.__version__))
    found, model = adapter.prepare_model(spec, directory), adapter.model_place(spec, directory)
    precision, algorithm = Precision.of(spec.precision), _ALGORITHMS[spec.name].get(adapter.to_quantise(spec))
    if algorithm and spec.name == _PYTORCH:
        said = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
        write_atomically(model / "hf_quant_config.json", json.dumps({"quantization": said}) + "\n")
    module, registry = _REGISTRIES[spec.name]
    known = getattr(adapter.load_package(module, _REMEDY), registry)
    adapter.check_known(spec, f"{spec.name} of TensorRT-LLM {package.__version__}", known)
    if spec.name == _ENGINE:
        sensors = open_sensors(spec.gpu, spec.gpus)  # first, as in open_device
        start_mj = sum(sensor.energy_mj() for sensor in sensors)
        with adapter.memory_watched(spec, "building the engine"):
            llm = _llm_class(spec)(
                model=str(model),
                load_format=adapter.load_format(spec),
                dtype=precision.plain,
                quant_config=package.llmapi.QuantConfig(
                    quant_algo=algorithm, kv_cache_quant_algo=_CACHES[_ENGINE].get(precision.cache)
                ),
                build_config=package.llmapi.BuildConfig(**_sizes(spec), max_beam_width=1),
                **_common(spec),
            )
            try:
                llm.save(str(directory / _ENGINE_DIRECTORY))
            finally:
                llm.shutdown()
        found["build_j"] = (sum(sensor.energy_mj() for sensor in sensors) - start_mj) / 1000
        for sensor in sensors:
            sensor.close()
    return found


class TensorRtLlmEngine(adapter.InProcess):
    """One loaded engine of either backend."""

    def __init__(self, spec: EngineSpec, directory: Path) -> None:
        """Load, generate one token, and read the number of KV-cache blocks."""
        super().__init__(spec, _package())
        _check_version(spec.name, self.version)
        with adapter.loading(spec):
            self._llm = _llm_class(spec)(**_common(spec), **_runtime(spec, directory))
        self._blocks, self._block_tokens = self._cache()

    def _requests_that_fit(self, tokens: int) -> int:
        return self._blocks // -(-tokens // self._block_tokens)

    def _sampling(self, output_tokens: int) -> Any:
        # Without a tokenizer, end_id is required; -1 is no token, so only the length ends a reply.
        ends = {"max_tokens": output_tokens, "end_id": -1, "pad_id": 0, "ignore_eos": True}
        return self._package.SamplingParams(**ends, detokenize=False, return_perf_metrics=True)  # a request's times

    def _times(self, done: Any) -> RequestTimes | None:
        if done.outputs[0].request_perf_metrics is None:
            return None
        timing = done.outputs[0].request_perf_metrics.timing_metrics
        times = timing.arrival_time, timing.first_token_time, timing.last_token_time
        return RequestTimes(*(one.total_seconds() for one in times))

    def _cache(self) -> tuple[int, int]:
        """Number of KV-cache blocks and tokens per block, from the statistics of a one-token run."""
        self._run(replace(self._spec, batch=1), 1, 1, 1)
        for statistics in reversed(self._llm.get_stats(timeout=5)):
            cache = statistics.get("kvCacheStats") or {}
            if cache.get("maxNumBlocks") and cache.get("tokensPerBlock"):
                return int(cache["maxNumBlocks"]), int(cache["tokensPerBlock"])
        self.close()
        raise SweetspotError(
            f"TensorRT-LLM {self.version} does not report the size of its KV cache (get_stats), so rows could not "
            "say how many requests ran at once; please report this version"
        )


open_device = partial(adapter.open_in_process, TensorRtLlmEngine)


def _common(spec: EngineSpec) -> dict[str, Any]:
    """Arguments common to building and running, for both backends."""
    api = _package().llmapi
    # A TensorRT engine has the format of its cache from its build.
    cached = _CACHES[_PYTORCH].get(Precision.of(spec.precision).cache, "auto") if spec.name == _PYTORCH else "auto"
    policies = api.CapacitySchedulerPolicy
    policy = policies.GUARANTEED_NO_EVICT if spec.in_flight_batching else policies.STATIC_BATCH
    return {
        "skip_tokenizer_init": True,
        **_sizes(spec),
        # Block reuse would skip the prefill of repeated prompts.
        "kv_cache_config": api.KvCacheConfig(
            enable_block_reuse=False, free_gpu_memory_fraction=spec.kv_cache_fraction, dtype=cached
        ),
        "scheduler_config": api.SchedulerConfig(capacity_scheduler_policy=policy),
        "tensor_parallel_size": spec.tensor_parallel,
        "pipeline_parallel_size": spec.pipeline_parallel,
        **({"moe_expert_parallel_size": spec.tensor_parallel} if spec.expert_parallel else {}),
    }


def _sizes(spec: EngineSpec) -> dict[str, int]:
    return {
        "max_batch_size": spec.batch,
        "max_input_len": spec.max_input_tokens,
        "max_seq_len": spec.total_tokens,
        # Without chunked prefill a prompt must fit in one pass.
        "max_num_tokens": max(adapter.PASS_TOKENS, spec.max_input_tokens, spec.batch),
    }


def _runtime(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    api = _package().llmapi
    if spec.name == _ENGINE:
        kept = _CUDA_GRAPHS_KEPT if spec.cuda_graphs else 0
        knobs = api.ExtendedRuntimePerfKnobConfig(cuda_graph_mode=spec.cuda_graphs, cuda_graph_cache_size=kept)
        return {"model": str(directory / _ENGINE_DIRECTORY), "extended_runtime_perf_knob_config": knobs}
    graphs = api.CudaGraphConfig(max_batch_size=spec.batch, enable_padding=True) if spec.cuda_graphs else None
    return {
        "model": str(adapter.model_place(spec, directory)),
        "load_format": adapter.load_format(spec),
        "dtype": Precision.of(spec.precision).plain,
        "cuda_graph_config": graphs,  # None: no CUDA graphs
        "enable_iter_perf_stats": True,  # otherwise get_stats returns nothing
    }


def _llm_class(spec: EngineSpec) -> Any:
    # Run the worker in this process, not in one started by MPI, so that NVML counts its GPU use as ours. Several GPUs
    # need a worker each, which MPI starts.
    os.environ["TLLM_WORKER_USE_SINGLE_PROCESS"] = "1" if spec.gpus == 1 else "0"
    if spec.name == _ENGINE:
        return adapter.load_package("tensorrt_llm._tensorrt_engine", _REMEDY).LLM
    return _package().LLM


def _package() -> Any:
    for name in [name for name in os.environ if name.startswith(_LAUNCHERS)]:
        del os.environ[name]
    os.environ.update(_ENVIRONMENT)
    package = adapter.load_package("tensorrt_llm", _REMEDY)
    if not hasattr(package, "LLM"):
        raise UnfitMachine(
            f"the package tensorrt_llm is the empty placeholder of the public index, not TensorRT-LLM; {_REMEDY}"
        )
    return package


def _check_version(name: str, found: str) -> None:
    release = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if not _OLDEST <= release < _ENDED:
        wanted = f">={'.'.join(map(str, _OLDEST))},<{'.'.join(map(str, _ENDED))}"
        raise UnfitMachine(f"engine {name} needs TensorRT-LLM {wanted}, but {found} is installed; {_REMEDY}")
