"""Shared by the adapters of real engines: the model's directory, memory, random prompts, checks of the replies."""

import gc
import importlib
import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from sweetspot.engines import BatchRun, Engine, EngineSpec, RequestTimes
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine, first_line
from sweetspot.files import read_object, write_atomically
from sweetspot.memory import Memory, split_in_waves
from sweetspot.models.quantization import stored as stored_format
from sweetspot.precision import Precision
from sweetspot.sensors import open_sensors
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Sensor

Prompt = TypeVar("Prompt")

PASS_TOKENS = 8192  # prompt tokens per pass: TensorRT-LLM's default max_num_tokens, used for every engine

_PLAIN = ("bfloat16", "float16")
_WEIGHT_FILES = ("*.safetensors", "*.bin")
# A prompt is a slice of this many random ids, at a random position: drawing each token of 128 prompts of 4096 tokens
# would keep the GPU waiting for tenths of a second in every run.
_PLACES = 1 << 18
_KNOWN = 0.9  # share of requests whose times must be known; fewer may not be typical
_OWN_IDS = 4  # 2^60 beginnings of a prompt, or more
# How PyTorch, CUDA, TensorRT and vLLM (its KV-cache checks at load) report a shortage of memory.
_SHORTAGES = (
    *("out of memory", "outofmemory", "cudaerrormemoryallocation", "no available memory for the cache blocks"),
    *("larger than the available kv cache memory", "free memory on device"),
)


def load_package(name: str, remedy: str) -> Any:
    """Import an engine's package. Raises UnfitMachine with `remedy` if it is missing or does not load."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation may raise anything
        raise UnfitMachine(f"the package {name} cannot be imported ({first_line(error)}); {remedy}") from None


def memory_plan(spec: EngineSpec) -> Memory | None:
    """How the model fills its boards; None: unknown boards. Raises OutOfMemory if not one longest request fits."""
    gpu, arch = spec.known_board, spec.architecture
    if gpu is None:
        return None
    memory = spec.parallelism.memory(arch, gpu, spec.precision, spec.kv_cache_fraction)
    if memory.requests(spec.total_tokens, 0) < 1:
        raise OutOfMemory(
            f"{arch.name}: weights and the KV cache of one request of {spec.total_tokens} tokens exceed the memory of "
            f"{spec.parallelism.on(gpu)}; choose shorter cells, a larger GPU, or more of them (tensor_parallel)"
        )
    return memory


def prepare_model(spec: EngineSpec, directory: Path, quantization: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write or check the directory that an engine reads the model from (`model_place`); returns its memory in bytes.

    If the position table is too short for the longest cell, the config.json extends it (random weights only), and it
    names the `quantization` of random weights. Raises OutOfMemory as `memory_plan` does, SweetspotError if there is no
    published config.json, or the checkpoint is of another model or precision or has no weights.
    """
    plan = memory_plan(spec)
    found = {"memory": plan and plan.as_dict()}
    if spec.weights == "checkpoint":
        _check_checkpoint(spec)
        return found
    if "architectures" not in spec.model_config:
        raise SweetspotError(
            f"{spec.architecture.name}: key 'architectures' is missing from its config.json; "
            "copy it from the publisher's config.json, so that the engine recognises the model"
        )
    # auto_map makes an engine download and run code; the engines have these models built in.
    config = {key: value for key, value in spec.model_config.items() if key not in ("auto_map", "dtype")}
    config["torch_dtype"] = Precision.of(spec.precision).plain
    if stored_format(config) != kind(spec.precision):
        config.pop("quantization_config", None)
    if quantization:
        config["quantization_config"] = quantization
    if spec.total_tokens > spec.architecture.max_positions:
        config["max_position_embeddings"] = spec.total_tokens
    write_atomically(model_place(spec, directory) / "config.json", json.dumps(config, indent=2) + "\n")
    return found


def model_place(spec: EngineSpec, directory: Path) -> Path:
    """The checkpoint, or a directory in `directory` with only a config.json."""
    return Path(spec.checkpoint or "") if spec.weights == "checkpoint" else directory / "model"


def load_format(spec: EngineSpec) -> str:
    """What both packages call weights of their own, and those of a checkpoint."""
    return "auto" if spec.weights == "checkpoint" else "dummy"


def kind(precision: str) -> str:
    """The name of a quantised precision without its cache, 16-bit activations called bfloat16; "" if none of it is."""
    weights, computed, _ = Precision.of(precision)
    if weights in _PLAIN and computed == weights:
        return ""
    return Precision.of(weights, "bfloat16" if computed in _PLAIN else computed).name


def precision_refusal(name: str, precision: str, kinds: Collection[str], caches: Collection[str]) -> str:
    """Why the engine `name`, which runs these kinds, with these caches besides the 16-bit ones, does not; or ""."""
    wanted = Precision.of(precision)
    if wanted.plain == "float32" or kind(precision) not in ("", *kinds):
        return f"engine {name} does not run in {precision}, but in {', '.join([*_PLAIN, *kinds])}"
    if wanted.cache not in (wanted.plain, *caches):
        return f"engine {name} does not cache in {wanted.cache}, but in {', '.join([wanted.plain, *caches])}"
    return ""


def to_quantise(spec: EngineSpec) -> str:
    """The `kind` that an engine must give random weights; "" if none, or if the config.json describes such weights."""
    found = kind(spec.precision)
    if spec.weights == "checkpoint" or stored_format(spec.model_config) == found:
        return ""
    if found == "mxfp4":
        raise SweetspotError(f"{spec.architecture.name}: {spec.name} has mxfp4 weights only of models published so")
    return found


def check_known(spec: EngineSpec, engine: str, known: Collection[str]) -> None:
    """Raise SweetspotError unless the engine's own registry has an architecture that the model's config.json names."""
    wanted = [str(name) for name in spec.model_config.get("architectures") or []]
    if not set(wanted) & set(known):
        raise SweetspotError(
            f"{spec.architecture.name}: {engine} does not run {', '.join(wanted) or 'it'}; install a version that "
            "does, or leave the model out with `select`"
        )


def _check_weights(place: Path) -> None:
    """Raise SweetspotError if a checkpoint has no weights, or lacks files that its index lists."""
    remedy = "download them, or set weights to dummy to measure with random ones"
    if not any(path.name != "training_args.bin" for pattern in _WEIGHT_FILES for path in place.glob(pattern)):
        raise SweetspotError(f"checkpoint {place} has no weights ({' or '.join(_WEIGHT_FILES)}); {remedy}")
    indices = [read_object(path) for path in place.glob("*.index.json")]
    named = [dict(index.get("weight_map", {})).values() for index in indices]
    missing = [{name for name in names if not (place / name).is_file()} for names in named]
    if missing and all(missing):
        raise SweetspotError(f"checkpoint {place}: {', '.join(sorted(missing[0]))} missing; {remedy}")


def _check_checkpoint(spec: EngineSpec) -> None:
    place = Path(spec.checkpoint or "")
    if spec.checkpoint is None or not (place / "config.json").is_file():
        raise SweetspotError(f"checkpoint {spec.checkpoint} has no config.json; give a downloaded model's directory")
    _check_weights(place)
    config = read_object(place / "config.json")
    own, published = _sizes(config), _sizes(spec.model_config)
    if differing := sorted(name for name in own.keys() & published.keys() if own[name] != published[name]):
        first = differing[0]
        raise SweetspotError(
            f"checkpoint {place}: a different model from {spec.architecture.name} ({first} {own[first]} instead of "
            f"{published[first]}); give the directory that the architecture was read from, or set the architecture to "
            "this directory too"
        )
    precision = Precision.of(spec.precision)
    beside = place / "hf_quant_config.json"  # NVIDIA's ModelOpt
    more = read_object(beside) if beside.is_file() else None
    stored = stored_format(config, more) or precision.plain
    if stored != precision.weights:
        raise SweetspotError(f"checkpoint {place} has {stored} weights, not {spec.precision}: set precision so")
    if spec.total_tokens > spec.architecture.max_positions:
        raise SweetspotError(
            f"checkpoint {place}: {spec.total_tokens} tokens exceed its {spec.architecture.max_positions} positions; "
            "set positions to skip, or measure with random weights"
        )


def _sizes(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The numbers and lists of a config.json that tell one model from another, by their keys."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and name.endswith("_config") and name != "quantization_config":
            found |= _sizes(value, f"{above}{name}.")
        elif isinstance(value, (int, list)) and not re.search("token|architectures", name):
            found[above + name] = value
    return found


class Reply(NamedTuple):
    """One finished request: its tokens and times, and what a server counted; None for what it does not tell."""

    tokens: int
    times: RequestTimes | None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


class Prompts:
    """Random token ids that differ for every request and run; the same seed gives the same sequence."""

    def __init__(self, spec: EngineSpec) -> None:
        """Prompts of at most `spec.max_input_tokens` tokens of the model's vocabulary."""
        self._random = random.Random(f"{spec.seed}/{spec.architecture.name}/{spec.batch}")
        self._vocabulary = spec.architecture.vocabulary
        self._ids = self._random.choices(range(spec.architecture.vocabulary), k=_PLACES + spec.max_input_tokens)

    def take(self, requests: int, tokens: int) -> list[list[int]]:
        """The prompts of one run: `requests` of `tokens` ids each."""
        return [self._ids[start : start + tokens] for start in self._random.sample(range(_PLACES), requests)]

    @cached_property
    def _texts(self) -> list[str]:
        return list(map(str, self._ids))

    def as_text(self, requests: int, tokens: int) -> list[str]:
        """As `take`, each in a string as in JSON, and beginning with ids of its own, so that no server can know it."""
        prompts = []
        for start in self._random.sample(range(_PLACES), requests):
            own = [str(self._random.randrange(self._vocabulary)) for _ in range(min(_OWN_IDS, tokens))]
            prompts.append(",".join(own + self._texts[start : start + tokens - len(own)]))
        return prompts


def run_in_waves(
    spec: EngineSpec,
    fit: int,
    take: Callable[[int, int], list[Prompt]],
    input_tokens: int,
    output_tokens: int,
    generate: Callable[[list[Prompt]], Sequence[Reply]],
) -> BatchRun:
    """Run the whole batch through `generate`, at most `fit` requests at once: as many as the KV cache holds.

    `take` makes prompts (see `Prompts.take`). The engine never gets more, so no request waits or is preempted, and the
    number of waves is known. Raises OutOfMemory if not even one request fits, SweetspotError if a reply has the wrong
    length.
    """
    if fit < 1:
        raise OutOfMemory(
            f"{spec.architecture.name}: one request of {input_tokens} + {output_tokens} tokens exceeds the KV cache; "
            "give the KV cache more memory (engine.kv_cache_fraction) or choose shorter cells"
        )
    waves = split_in_waves(spec.batch, fit)
    times: list[RequestTimes | None] = []
    for requests in waves:
        with memory_watched(spec, f"{input_tokens} + {output_tokens} tokens"):
            replies = generate(take(requests, input_tokens))
        lengths = [reply.tokens for reply in replies]
        if lengths != [output_tokens] * requests:
            wrong = sorted(set(lengths) - {output_tokens})
            raise SweetspotError(
                f"{spec.name} returned {len(lengths)} replies of {', '.join(map(str, wrong or [output_tokens]))} "
                f"tokens instead of {requests} of {output_tokens}; this version of the engine cannot be measured"
            )
        times += [reply.times for reply in replies]
    known = tuple(one for one in times if one)
    return BatchRun(waves[0], len(waves), known if len(known) >= _KNOWN * spec.batch else ())


def shortage_in(text: str) -> str:
    """The first line that reports a shortage of memory; "" if none does."""
    return next((line for line in text.splitlines() if any(words in line.lower() for words in _SHORTAGES)), "")


@contextmanager
def memory_watched(spec: EngineSpec, doing: str) -> Iterator[None]:
    """Turn the many exceptions that report a shortage of memory into OutOfMemory; others pass through."""
    try:
        yield
    except SweetspotError:
        raise
    except Exception as error:
        links: list[BaseException] = []
        link: BaseException | None = error
        while link is not None and link not in links:
            links.append(link)
            link = link.__cause__ or link.__context__
        if not (short := shortage_in("\n".join(f"{type(link).__name__}: {link}" for link in links))):
            raise
        raise OutOfMemory(
            f"{spec.architecture.name}, batch {spec.batch}, {doing}: out of GPU memory ({short}); "
            "lower engine.kv_cache_fraction or the batch size"
        ) from error


@contextmanager
def loading(spec: EngineSpec) -> Iterator[None]:
    """As memory_watched, while an engine loads; raises UnfitMachine if it fails where CUDA does not work at all."""
    try:
        with memory_watched(spec, "loading"):
            yield
    except SweetspotError:
        raise
    except Exception as error:
        try:
            importlib.import_module("torch").zeros(1, device="cuda")
            synchronize(spec)
        except Exception as failure:
            raise UnfitMachine(
                f"CUDA does not work on this machine ({first_line(failure)}): compare the CUDA version that the driver "
                'supports (nvidia-smi) with the one of the engine (python -c "import torch; print(torch.version.cuda)")'
            ) from error
        raise


def synchronize(spec: EngineSpec) -> None:
    """Wait until the GPU has finished. Of several, only the engine's processes use any: nothing is left to wait for."""
    if spec.gpus == 1:
        importlib.import_module("torch").cuda.synchronize()


class InProcess(Engine):
    """A model that this process loads. A batch whose KV cache does not fit runs in waves, so none is ever preempted."""

    _requests_that_fit: Callable[[int], int]  # at once in the KV cache, of so many tokens
    _sampling: Callable[[int], Any]  # what the package calls replies of exactly so many tokens
    _times: Callable[[Any], RequestTimes | None]  # of a finished request by the engine's own clock, if it tells them

    def __init__(self, spec: EngineSpec, package: Any) -> None:
        """For a model that is loaded next."""
        self.version, self._spec, self._package = str(package.__version__), spec, package
        self._prompts, self._llm = Prompts(spec), cast(Any, None)

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run one batch. Raises OutOfMemory, or SweetspotError if a reply has the wrong length."""
        return self._run(self._spec, self._requests_that_fit(input_tokens + output_tokens), input_tokens, output_tokens)

    def close(self) -> None:
        """Free the GPU, so that this process can load again."""
        if self._llm is not None:
            self._shut_down()
            self._llm = None
            gc.collect()
            importlib.import_module("torch").cuda.empty_cache()

    def _run(self, spec: EngineSpec, fit: int, input_tokens: int, output_tokens: int) -> BatchRun:
        sampling = self._sampling(output_tokens)

        def generate(prompts: list[list[int]]) -> list[Reply]:
            done = self._llm.generate(self._inputs(prompts), sampling, use_tqdm=False)
            synchronize(spec)
            return [Reply(len(one.outputs[0].token_ids), self._times(one)) for one in done]

        return run_in_waves(spec, fit, self._prompts.take, input_tokens, output_tokens, generate)

    def _inputs(self, prompts: list[list[int]]) -> list[Any]:
        return prompts

    def _shut_down(self) -> None:
        self._llm.shutdown()


def open_in_process(
    kind: Callable[[EngineSpec, Path], InProcess], spec: EngineSpec, directory: Path
) -> tuple[Engine, Sequence[Sensor], Clock]:
    """As engines.open_device, for the engine that `kind` makes. Raises SweetspotError for another GPU."""
    sensors = open_sensors(spec.gpu, spec.gpus)  # first, to find a wrong or busy GPU before minutes of loading
    memory_plan(spec := spec.on(sensors[0]))
    return kind(spec, directory), sensors, Clock()
