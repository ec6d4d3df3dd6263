"""vLLM, offline and in this process: checked against the published API of 0.26.0 and 0.33.0.

vLLM builds no engine: `build` checks everything that can be checked without loading, and writes the config.json.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from sweetspot.engines import EngineSpec, RequestTimes, adapter
from sweetspot.errors import UnfitMachine
from sweetspot.parallelism import Parallelism
from sweetspot.precision import Precision

ENGINES = {"vllm": "is vLLM, offline and in the process that measures"}
SIMULATED = False
FIXED = {"in_flight_batching": "has no static batches"}

_OLDEST = (0, 26)
# Run the engine in this process, so that NVML counts its GPU use as ours. On several GPUs it starts a worker for each;
# these are our descendants, and so ours too.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
_KINDS = ("fp8", "fp8+a_bfloat16", "int8", "int8+a_bfloat16", "int4", "nvfp4", "nvfp4+a_bfloat16", "mxfp4")
_CACHES = {"fp8": "fp8", "int8": "int8_per_token_head", "nvfp4": "nvfp4"}  # vLLM's names
_WEIGHTS: dict[str, dict[str, Any]] = {  # in the terms of compressed-tensors
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "int8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int4": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "nvfp4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
}
_PASSES_IN_FLIGHT = 2  # asynchronous scheduling prepares a pass while another runs
_GAUSSIAN_SD = 0.02  # the initializer_range of most published config.json files


def version() -> str:
    """Version of the installed package. Raises UnfitMachine if it is missing or too old."""
    return str(_package().__version__)


def refusal(name: str, precision: str, weights: str, parallelism: Parallelism) -> str:
    """Why vLLM cannot run any model so, or ""."""
    if weights == "gaussian" and adapter.kind(precision):
        return f"weights in {precision} cannot be gaussian; set weights to dummy"
    return adapter.precision_refusal(name, precision, _KINDS, _CACHES)


def build(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    """Write the model's directory; return the memory plan. Raises SweetspotError for what would fail at loading."""
    package = _package()
    found = adapter.prepare_model(spec, directory, _quantization(adapter.to_quantise(spec)))
    adapter.check_known(spec, f"vLLM {package.__version__}", package.ModelRegistry.get_supported_archs())
    return found


class VllmEngine(adapter.InProcess):
    """One loaded model."""

    def __init__(self, spec: EngineSpec, directory: Path) -> None:
        """Load the model, with the weights named by `spec.weights`."""
        super().__init__(spec, _package())
        with adapter.loading(spec):
            self._llm = self._package.LLM(**_arguments(spec, directory))
            self._llm.llm_engine.logger_manager = None  # a request's times are wanted, not Prometheus' histograms
            if spec.weights == "gaussian":
                self._llm.apply_model(partial(_initialize, seed=spec.seed))  # workers can unpickle this, but no lambda
            elif spec.weights == "dummy" and Precision.of(spec.precision).cache in _CACHES:
                self._llm.apply_model(_scale_by_one)

    def _sampling(self, output_tokens: int) -> Any:
        return self._package.SamplingParams(
            temperature=0.0, max_tokens=output_tokens, min_tokens=output_tokens, ignore_eos=True, detokenize=False
        )

    def _inputs(self, prompts: list[list[int]]) -> list[Any]:
        return [{"prompt_token_ids": ids} for ids in prompts]

    def _times(self, done: Any) -> RequestTimes | None:
        found = done.metrics
        known = found is not None and found.first_token_ts
        return RequestTimes(found.queued_ts, found.first_token_ts, found.last_token_ts) if known else None

    def _shut_down(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        adapter.load_package("vllm.distributed", "reinstall vLLM").cleanup_dist_env_and_memory()

    def _requests_that_fit(self, tokens: int) -> int:
        # Layers with the same kind of attention form a group; a block holds tokens of one group. A group whose sliding
        # window is exceeded keeps the window, the tokens of passes in flight, and one more block, as a window may
        # start inside one.
        cache = self._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
        blocks = 0
        for group in cache.kv_cache_groups:
            kind, held = group.kv_cache_spec, tokens
            window = getattr(kind, "sliding_window", None)
            if window is not None:
                held = min(tokens, window - 1 + _PASSES_IN_FLIGHT * adapter.PASS_TOKENS)
            blocks += -(-held // kind.block_size) + (held < tokens)
        return int((cache.num_blocks - 1) // blocks)  # vLLM reserves one block as a placeholder for freed ones


open_device = partial(adapter.open_in_process, VllmEngine)


def _quantization(kind: str) -> dict[str, Any] | None:
    """How a checkpoint of llm-compressor describes such weights; vLLM makes random ones by it."""
    if not kind:
        return None
    name, _, sixteen = kind.partition("+")
    weights = {**_WEIGHTS[name], "symmetric": True, "dynamic": False}
    at_once = {"dynamic": "local"} if name == "nvfp4" else {"strategy": "token", "dynamic": True}
    activations = None if sixteen or name == "int4" else weights | at_once
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    layout = "float" if name == "fp8" else "nvfp4-pack" if name == "nvfp4" else "int" if activations else "pack"
    groups = {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", "format": f"{layout}-quantized", **groups}


def _arguments(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    plan, precision = adapter.memory_plan(spec), Precision.of(spec.precision)
    copies = spec.parallelism.kv_copies(spec.architecture)
    return {
        "model": str(adapter.model_place(spec, directory)),
        "load_format": adapter.load_format(spec),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": precision.plain,
        "kv_cache_dtype": _CACHES.get(precision.cache, "auto"),
        "seed": spec.seed,
        "max_model_len": spec.total_tokens,
        "max_num_seqs": spec.batch,
        "max_num_batched_tokens": max(adapter.PASS_TOKENS, spec.batch),
        # Of each GPU, whatever it stores of the keys and values that others store too.
        "kv_cache_memory_bytes": plan and int(plan.kv_cache_bytes * copies / spec.gpus),
        "enable_prefix_caching": False,  # repeated prompts would cost no prefill
        "enforce_eager": not spec.cuda_graphs,
        "disable_log_stats": False,  # otherwise there are no times of requests
        "tensor_parallel_size": spec.tensor_parallel,
        "pipeline_parallel_size": spec.pipeline_parallel,
        "enable_expert_parallel": spec.expert_parallel,
    }


def _initialize(model: Any, seed: int) -> None:
    """Initialise the weights as before training: matrices N(0, 0.02), norms 1, biases 0."""
    torch = adapter.load_package("torch", "vLLM installs it")
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, _GAUSSIAN_SD)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)


def _scale_by_one(model: Any) -> None:
    """Undo the random scales, some negative, that random weights give a quantised KV cache."""
    for module in model.modules():
        for name in ("_q_scale", "_k_scale", "_v_scale"):
            if hasattr(module, f"{name}_float"):
                getattr(module, name).fill_(1.0)
                setattr(module, f"{name}_float", 1.0)


def _package() -> Any:
    os.environ.update(_ENVIRONMENT)
    package = adapter.load_package("vllm", "install vLLM 0.26.0 (docs/engines.md) and set engine.python to its Python")
    if tuple(int(part) for part in package.__version__.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise UnfitMachine(
            f"vLLM {package.__version__} is older than {'.'.join(map(str, _OLDEST))}; install 0.26.0 (docs/engines.md)"
        )
    return package
