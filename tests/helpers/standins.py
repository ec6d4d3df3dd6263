"""Strict stand-ins for vLLM and TensorRT-LLM: they accept the arguments that api/ lists, and nothing else."""

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import transformers  # noqa: F401  (looks for torch when first imported, and must not find the stand-in)

from simulation import ARCHITECTURES, H100
from sweetspot import engines, models

REAL = ("vllm", "trt-engine", "trt-pytorch")
API = Path(__file__).resolve().parent / "api"
BOARD_BYTES = 81559 << 20  # what NVML says of an H100, less than its data sheet
ENVIRONMENT = (
    "HF_HUB_OFFLINE",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_NO_USAGE_STATS",
    "TLLM_WORKER_USE_SINGLE_PROCESS",
    "TRTLLM_NO_USAGE_STATS",
)
_TYPES: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": (int, float)}


def spec(name: str, model: str = "llama-3.2-1b", **changes: Any) -> engines.EngineSpec:
    """An engine for 8 requests of 512 + 256 tokens on an H100."""
    path = ARCHITECTURES / f"{model}.json"
    arch, config = models.load(path), models.resolved(path)["config"]
    whole = engines.EngineSpec(name, arch, "bfloat16", "dummy", H100.name, 8, 512, 256, 0.9, 1, model_config=config)
    return replace(whole, **changes)


def opened(wanted: engines.EngineSpec, directory: Path) -> Any:
    """Build an engine and load it."""
    engines.build(wanted, directory)
    return engines.open_device(wanted, directory)[0]


def api(package: str) -> dict[str, Any]:
    """What tests/helpers/api says of a package."""
    content: dict[str, Any] = json.loads((API / f"{package}.json").read_text())
    return content


class Reply:
    """The finished request `index` of a batch, with its times in vLLM's form and in TensorRT-LLM's.

    Requests arrive 1 ms apart; the first token takes 0.1 s and each further one 0.01 s.
    """

    def __init__(self, tokens: int, index: int = 0) -> None:
        arrived_s, first_s = 50 + index / 1000, 50.1 + index / 1000
        last_s = first_s + (tokens - 1) / 100
        self.metrics = SimpleNamespace(queued_ts=arrived_s, first_token_ts=first_s, last_token_ts=last_s)
        names = ("arrival_time", "first_token_time", "last_token_time")
        times = {name: timedelta(seconds=at_s) for name, at_s in zip(names, (arrived_s, first_s, last_s), strict=True)}
        perf = SimpleNamespace(timing_metrics=SimpleNamespace(**times))
        self.outputs = [SimpleNamespace(token_ids=[0] * tokens, request_perf_metrics=perf)]


class Attention:
    """A layer of vLLM with the scales of its cache, as random weights leave them."""

    def __init__(self) -> None:
        for name in ("_q_scale", "_k_scale", "_v_scale"):
            setattr(self, name, self.Scale())
            setattr(self, f"{name}_float", -0.001)

    class Scale:
        """A tensor of one number."""

        value = -0.001

        def fill_(self, value: float) -> None:
            """In place."""
            self.value = value

    def scales(self) -> list[float]:
        """All of them, as tensors and as numbers."""
        found = [getattr(self, f"_{name}_scale") for name in "qkv"]
        return [scale.value for scale in found] + [getattr(self, f"_{name}_scale_float") for name in "qkv"]


class Standin:
    """The package `name` in sys.modules, and a record of what was asked of it.

    In place of NVML there is a sensor that only tells `board_bytes`, the board's memory; `gpus` lists which GPU was
    wanted. `made` lists (class, arguments) in order, `batches` the prompts and sampling of every call of generate. A
    test may change `reply_tokens`, or have `fail` raise what the real package would: fail(doing) with doing "load" or
    "generate".
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []
        self.batches: list[tuple[list[list[int]], Any]] = []
        self.models: list[Any] = []
        self.closed = 0
        self.gpus: list[str | None] = []
        self.board_bytes = BOARD_BYTES
        self.boards: list[int | None] = []
        self.fail = lambda doing: None
        self.reply_tokens = lambda wanted: wanted
        self._monkeypatch, self.api, self._modules = monkeypatch, api(name), dict[str, ModuleType]()
        for variable in ENVIRONMENT:
            monkeypatch.setenv(variable, "unset")  # so that what an adapter sets ends with the test
        self.package = self.module(name, __version__=version)
        nvml = ModuleType("sweetspot.sensors.nvml")
        nvml.open_sensors = self._open_sensors  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sweetspot.sensors.nvml", nvml)
        cuda = SimpleNamespace(synchronize=lambda: None, empty_cache=lambda: None)
        self.module("torch", cuda=cuda, manual_seed=lambda seed: None, zeros=lambda size, device: None)
        for class_name in self.api["classes"]:
            place, _, own = class_name.rpartition(".")
            setattr(self._modules.get(place) or self.module(place), own, self.strict(class_name))

    def module(self, name: str, **members: Any) -> ModuleType:
        """A module of that name in sys.modules; also an attribute of its parent."""
        module = ModuleType(name)
        module.__dict__.update(members)
        self._modules[name] = module
        self._monkeypatch.setitem(sys.modules, name, module)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(self._modules.get(parent) or self.module(parent), own, module)
        return module

    def registry(self, place: str) -> dict[str, object]:
        """The architectures that the package is known to register in `place`."""
        return {f"{name}ForCausalLM": object() for name in self.api["registries"][place]}

    def strict(self, class_name: str) -> type:
        """A class that takes the listed keyword arguments, of the listed types, with the listed defaults."""
        known: dict[str, Any] = self.api["classes"][class_name]["arguments"]

        def create(instance: Any, **arguments: Any) -> None:
            for key, value in arguments.items():
                if key not in known:
                    raise TypeError(f"{class_name}: unknown argument {key!r}")
                kind = known[key]["type"]
                fits = isinstance(value, _TYPES[kind]) if kind in _TYPES else type(value).__name__ == kind
                fits |= value is None and known[key].get("optional", False)
                if not fits or (isinstance(value, bool) and kind != "bool"):
                    raise TypeError(f"{class_name}: {key} is {value!r}, not of type {kind}")
            defaults = {key: about["default"] for key, about in known.items() if "default" in about}
            instance.__dict__.update({**defaults, **arguments})
            self.made.append((class_name, arguments))
            if class_name.endswith("LLM"):
                self.models.append(instance)
                self.fail("load")

        return type(class_name.rpartition(".")[2], (), {"__init__": create})

    def last(self, class_name: str) -> dict[str, Any]:
        """Arguments of the latest instance of a class."""
        return next(arguments for name, arguments in reversed(self.made) if name == class_name)

    def generate(self, prompts: list[list[int]], sampling: Any, use_tqdm: bool = True) -> list[Reply]:
        """Both packages' generate, once the prompts are plain ids."""
        assert use_tqdm is False
        self.fail("generate")
        self.batches.append((prompts, sampling))
        return [Reply(self.reply_tokens(sampling.max_tokens), index) for index in range(len(prompts))]

    def _open_sensors(self, gpu: str | None, boards: int | None, uuid: str | None, servers: object) -> list[object]:
        self.gpus.append(gpu)
        self.boards.append(boards)
        told = {"memory_bytes": lambda: self.board_bytes, "power_limit_w": lambda: 700.0}
        return [
            SimpleNamespace(energy_mj=iter((1_000_000, 4_500_000)).__next__, close=lambda: None, **told)
            for _ in range(boards or 1)
        ]

    def close(self) -> None:
        """Counted."""
        self.closed += 1


def of(monkeypatch: pytest.MonkeyPatch, engine: str, **options: Any) -> Standin:
    """The stand-in of the package that an engine of that name runs on."""
    return (vllm if engine == "vllm" else tensorrt_llm)(monkeypatch, **options)


def vllm(monkeypatch: pytest.MonkeyPatch, blocks: int = 10_000, windows: tuple[int | None, ...] = (None,)) -> Standin:
    """vLLM with a KV cache of `blocks` blocks of 16 tokens, and a group of layers for each of `windows`."""
    standin = Standin(monkeypatch, "vllm", "0.26.0")
    groups = [
        SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=16, sliding_window=window)) for window in windows
    ]
    cache = SimpleNamespace(num_blocks=blocks, kv_cache_groups=groups)
    client = SimpleNamespace(
        engine_core=SimpleNamespace(scheduler=SimpleNamespace(kv_cache_config=cache)), shutdown=standin.close
    )

    def generate(_: Any, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Reply]:
        assert [list(prompt) for prompt in prompts] == [["prompt_token_ids"]] * len(prompts)
        return standin.generate([prompt["prompt_token_ids"] for prompt in prompts], sampling_params, use_tqdm)

    standin.package.LLM.generate = generate
    standin.package.LLM.llm_engine = SimpleNamespace(engine_core=client)
    standin.package.LLM.apply_model = lambda llm, func: [func(llm)]
    standin.attention = Attention()  # type: ignore[attr-defined]
    standin.package.LLM.modules = lambda llm: [object(), standin.attention]
    known = standin.registry("vllm.ModelRegistry.get_supported_archs").keys
    standin.package.ModelRegistry = SimpleNamespace(get_supported_archs=known)
    standin.module("vllm.distributed", cleanup_dist_env_and_memory=lambda: None)
    return standin


def tensorrt_llm(monkeypatch: pytest.MonkeyPatch, version: str = "1.2.1", blocks: int = 10_000) -> Standin:
    """TensorRT-LLM with a KV cache of `blocks` blocks of 32 tokens."""
    standin = Standin(monkeypatch, "tensorrt_llm", version)
    for place in standin.api["registries"]:
        module, _, name = place.rpartition(".")
        setattr(standin.module(module), name, standin.registry(place))
    policies = SimpleNamespace(GUARANTEED_NO_EVICT="GUARANTEED_NO_EVICT", STATIC_BATCH="STATIC_BATCH")
    standin.package.llmapi.CapacitySchedulerPolicy = policies

    def generate(_: Any, inputs: Any, sampling_params: Any = None, use_tqdm: bool = True) -> list[Reply]:
        assert sampling_params.end_id is not None, "the tokenizer is skipped"
        return standin.generate(inputs, sampling_params, use_tqdm)

    def get_stats(llm: Any, timeout: float | None = 2) -> list[dict[str, Any]]:
        told = getattr(llm, "enable_iter_perf_stats", True)  # an argument of the PyTorch backend alone
        return (
            [{"iter": 0, "kvCacheStats": {"maxNumBlocks": blocks, "tokensPerBlock": 32}}, {"iter": 1}] if told else []
        )

    def save(llm: Any, engine_dir: str) -> None:
        assert llm.build_config is not None
        Path(engine_dir).mkdir(parents=True)
        (Path(engine_dir) / "rank0.engine").write_bytes(b"engine")

    for kind in (standin.package.LLM, standin.package._tensorrt_engine.LLM):
        kind.generate, kind.get_stats, kind.shutdown = generate, get_stats, lambda llm: standin.close()
    standin.package._tensorrt_engine.LLM.save = save
    return standin
