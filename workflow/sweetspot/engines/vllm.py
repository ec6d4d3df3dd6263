"""vLLM, offline and in this process: checked against the published API of 0.26.0 and 0.33.0.

vLLM builds no engine: `build` checks everything that can be checked without loading, and writes the config.json.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sweetspot.engines import BatchRun, EngineSpec, RequestTimes
from sweetspot.engines.adapter import (
    MODEL_DIRECTORY,
    PASS_TOKENS,
    PRECISIONS,
    Prompts,
    Reply,
    load_package,
    loading,
    memory_plan,
    prepare_model,
    release_memory,
    run_in_waves,
    synchronize,
)
from sweetspot.errors import SweetspotError, UnfitMachine
from sweetspot.parallelism import Parallelism
from sweetspot.sensors import open_sensors
from sweetspot.sensors.clock import Clock, WallClock
from sweetspot.sensors.meter import Sensor

ENGINES = {"vllm": "is vLLM, offline and in the process that measures"}
SIMULATED = False
FIXED = {"in_flight_batching": "has no static batches"}

_OLDEST = (0, 26)
_MODEL_TYPES = ("falcon", "gemma", "gemma2", "granite", "llama", "mistral", "opt", "qwen2")
# Run the engine in this process, so that NVML counts its GPU use as ours. On several GPUs it starts a worker for each;
# these are our descendants, and so ours too.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
_PASSES_IN_FLIGHT = 2  # asynchronous scheduling prepares a pass while another runs
_GAUSSIAN_SD = 0.02  # the initializer_range of most published config.json files


def version() -> str:
    """Version of the installed package. Raises UnfitMachine if it is missing or too old."""
    return str(_package().__version__)


def refusal(name: str, model_type: str, precision: str, weights: str, parallelism: Parallelism) -> str:
    """Why vLLM cannot run such a model, or ""."""
    if model_type not in _MODEL_TYPES:
        return f"engine {name} is not known to run {model_type} models; it runs {', '.join(_MODEL_TYPES)}"
    if precision not in PRECISIONS:
        return f"engine {name} runs in {' or '.join(PRECISIONS)} only, not in {precision}"
    return ""


def build(spec: EngineSpec, directory: Path) -> dict[str, dict[str, int]]:
    """Check version, architecture and memory; write the model's directory. Returns the memory plan in bytes.

    Raises SweetspotError, naming the remedy, for anything that would otherwise fail after minutes of loading.
    """
    package = _package()
    plan = memory_plan(spec)
    prepare_model(spec, directory)
    wanted = set(spec.model_config.get("architectures") or [])
    if not wanted & set(package.ModelRegistry.get_supported_archs()):
        raise SweetspotError(
            f"{spec.architecture.name}: vLLM {package.__version__} does not run {', '.join(sorted(wanted)) or 'it'}; "
            "install a version that does, or leave the model out with `select`"
        )
    return {"memory": plan.as_dict()}


def open_device(spec: EngineSpec, directory: Path) -> tuple["VllmEngine", Sequence[Sensor], Clock]:
    """Load the model on its GPUs; returns the engine, their sensors and the clock.

    Raises SweetspotError if the GPU is not the one specified, OutOfMemory if model and KV cache do not fit.
    """
    sensors = open_sensors(spec.gpu, spec.gpus)  # first, to find a wrong or busy GPU before minutes of loading
    return VllmEngine(spec, directory), sensors, WallClock()


class VllmEngine:
    """One loaded model. A batch whose KV cache does not fit runs in waves, so no request is ever preempted."""

    def __init__(self, spec: EngineSpec, directory: Path) -> None:
        """Load the model, with the weights named by `spec.weights`."""
        package = _package()
        self.version = str(package.__version__)
        self._spec, self._package, self._prompts = spec, package, Prompts(spec)
        with loading(spec):
            self._llm = package.LLM(**_arguments(spec, directory))
            self._llm.llm_engine.logger_manager = None  # a request's times are wanted, not Prometheus' histograms
            if spec.weights == "gaussian":
                self._llm.apply_model(partial(_initialize, seed=spec.seed))  # workers can unpickle this, but no lambda

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run one batch. Raises OutOfMemory, or SweetspotError if a reply has the wrong length."""
        sampling = self._package.SamplingParams(
            temperature=0.0, max_tokens=output_tokens, min_tokens=output_tokens, ignore_eos=True, detokenize=False
        )

        def generate(prompts: list[list[int]]) -> list[Reply]:
            done = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
            synchronize(self._spec)
            return [Reply(len(one.outputs[0].token_ids), _times(one.metrics)) for one in done]

        fit = self._requests_that_fit(input_tokens + output_tokens)
        return run_in_waves(self._spec, fit, self._prompts.take, input_tokens, output_tokens, generate)

    def reasons(self) -> tuple[str, ...]:
        """None: prompts are never cached, and no request is preempted."""
        return ()

    def close(self) -> None:
        """Free the GPU, so that this process can load again."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        load_package("vllm.distributed", "reinstall vLLM").cleanup_dist_env_and_memory()
        release_memory()

    def _requests_that_fit(self, tokens: int) -> int:
        """How many requests of `tokens` tokens fit in vLLM's KV cache at once.

        Layers with the same kind of attention form a group; a block holds tokens of one group. A group whose sliding
        window is exceeded keeps the window, the tokens of passes in flight, and one more block, as a window may start
        inside one.
        """
        cache = self._llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_config
        blocks = 0
        for group in cache.kv_cache_groups:
            kind, held = group.kv_cache_spec, tokens
            window = getattr(kind, "sliding_window", None)
            if window is not None:
                held = min(tokens, window - 1 + _PASSES_IN_FLIGHT * PASS_TOKENS)
            blocks += -(-held // kind.block_size) + (held < tokens)
        return int((cache.num_blocks - 1) // blocks)  # vLLM reserves one block as a placeholder for freed ones


def _arguments(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    plan = memory_plan(spec)
    checkpoint = spec.weights == "checkpoint"
    return {
        "model": str(spec.checkpoint if checkpoint else directory / MODEL_DIRECTORY),
        "load_format": "auto" if checkpoint else "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": spec.precision,
        "seed": spec.seed,
        "max_model_len": spec.total_tokens,
        "max_num_seqs": spec.batch,
        "max_num_batched_tokens": max(PASS_TOKENS, spec.batch),
        # Of each GPU, whatever it stores of the keys and values that others store too.
        "kv_cache_memory_bytes": int(plan.kv_cache_bytes * spec.parallelism.kv_copies(spec.architecture) / spec.gpus),
        "enable_prefix_caching": False,  # repeated prompts would cost no prefill
        "enforce_eager": not spec.cuda_graphs,
        "disable_log_stats": False,  # otherwise there are no times of requests
        "tensor_parallel_size": spec.tensor_parallel,
        "pipeline_parallel_size": spec.pipeline_parallel,
        "enable_expert_parallel": spec.expert_parallel,
    }


def _times(metrics: Any) -> RequestTimes | None:
    """A request's times by the clock of the engine's core, or None if this vLLM does not give them."""
    if metrics is None or not metrics.first_token_ts:
        return None
    return RequestTimes(metrics.queued_ts, metrics.first_token_ts, metrics.last_token_ts)


def _initialize(model: Any, seed: int) -> None:
    """Initialise the weights as before training: matrices N(0, 0.02), norms 1, biases 0."""
    torch = load_package("torch", "vLLM installs it")
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, _GAUSSIAN_SD)
        else:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)


def _package() -> Any:
    os.environ.update(_ENVIRONMENT)
    package = load_package("vllm", "install vLLM (envs/vllm.yaml) and set engine.python to its Python")
    if tuple(int(part) for part in package.__version__.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise UnfitMachine(
            f"vLLM {package.__version__} is older than {'.'.join(map(str, _OLDEST))}; install it again from "
            "envs/vllm.yaml"
        )
    return package
