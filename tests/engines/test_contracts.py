"""Checks what helpers/api records about vLLM and TensorRT-LLM against the installed packages:

PYTHON_OF_THE_ENGINE -m pytest --noconftest -m contract tests/engines/test_contracts.py
"""

import importlib
import inspect
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest

import standins
from simulation import ARCHITECTURES, H100
from sweetspot import engines, models
from sweetspot.engines import vllm as adapter

pytestmark = pytest.mark.contract
PACKAGES = ("vllm", "tensorrt_llm")


def installed(package: str) -> Any:
    """The real package; skips loudly without it."""
    try:
        module = importlib.import_module(package)
        assert hasattr(module, "LLM")
    except (ImportError, OSError, AssertionError) as error:
        pytest.skip(f"NOT CHECKED against the real {package}, which is not installed here ({error})")
    return module


def resolve(name: str) -> Any:
    """The object of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


def cases(kind: str) -> list[tuple[str, str]]:
    return [(package, name) for package in PACKAGES for name in standins.api(package)[kind]]


@pytest.mark.parametrize(("package", "name"), cases("classes"))
def test_arguments_and_defaults_are_the_real_ones(package: str, name: str) -> None:
    version = installed(package).__version__
    about = standins.api(package)["classes"][name]
    if name.startswith("tensorrt_llm._tensorrt_engine") and not version.startswith("1.2"):
        pytest.skip(f"NOT CHECKED: TensorRT-LLM {version} has no TensorRT engines")
    real = inspect.signature(resolve(about.get("signature_of", name))).parameters
    for argument, expected in about["arguments"].items():
        assert argument in real, f"{name} of {package} {version} has no argument {argument}"
        if "default" in expected:
            default = real[argument].default
            assert (default.value if isinstance(default, Enum) else default) == expected["default"], argument


@pytest.mark.parametrize(("package", "name"), cases("methods"))
def test_methods_accept_the_recorded_arguments(package: str, name: str) -> None:
    version = installed(package).__version__
    if "_tensorrt_engine" in name and not version.startswith("1.2"):
        pytest.skip(f"NOT CHECKED: TensorRT-LLM {version} has no TensorRT engines")
    parameters = inspect.signature(resolve(name)).parameters
    assert set(standins.api(package)["methods"][name]) <= set(parameters)
    given = {"self", *standins.api(package)["methods"][name]}
    assert not [
        parameter.name
        for parameter in parameters.values()
        if parameter.name not in given
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ], "an argument is missing"


@pytest.mark.parametrize(("package", "name"), cases("registries"))
def test_the_registries_know_the_recorded_architectures(package: str, name: str) -> None:
    version = installed(package).__version__
    if name == "tensorrt_llm.models.MODEL_MAP" and not version.startswith("1.2"):
        pytest.skip(f"NOT CHECKED: TensorRT-LLM {version} has no TensorRT engines")
    found = resolve(name)
    recorded = {f"{family}ForCausalLM" for family in standins.api(package)["registries"][name]}
    assert recorded <= set(found() if callable(found) else found)


@pytest.mark.parametrize("kind", [kind for kind in adapter._KINDS if kind != "mxfp4"])
def test_vllm_reads_how_random_weights_are_stored(kind: str) -> None:
    """Its own reader of compressed-tensors takes every description; only a GPU could tell whether it has a kernel."""
    installed("vllm")
    config = resolve("vllm.model_executor.layers.quantization.get_quantization_config")("compressed-tensors")
    read = config.from_config(adapter._quantization(kind)).target_scheme_map["Linear"]
    assert read["weights"].num_bits == (4 if "4" in kind.partition("+")[0] else 8)
    assert (read["input_activations"] is None) == (kind == "int4" or "+" in kind)


def test_vllm_knows_the_formats_of_the_cache() -> None:
    installed("vllm")
    assert set(adapter._CACHES.values()) | {"auto"} <= set(get_args(resolve("vllm.config.cache.CacheDType")))


MODELS = sorted(path.stem for path in ARCHITECTURES.glob("*.json"))


@pytest.mark.parametrize("model", MODELS)
def test_vllm_accepts_every_model_and_its_arguments(model: str, tmp_path: Path) -> None:
    """As far as vLLM goes without a GPU: the registry, its own arguments, and reading the config.json."""
    package = installed("vllm")
    path = ARCHITECTURES / f"{model}.json"
    arch = models.load(path)
    config = models.resolved(path)["config"]
    spec = engines.EngineSpec("vllm", arch, "bfloat16", "dummy", H100.name, 8, 512, 256, 0.9, 1, model_config=config)
    engines.build(spec, tmp_path)
    arguments = adapter._arguments(spec, tmp_path)
    built = resolve("vllm.engine.arg_utils.EngineArgs")(**arguments)
    assert built.trust_remote_code is False
    package.SamplingParams(temperature=0.0, max_tokens=8, min_tokens=8, ignore_eos=True, detokenize=False)
    read = importlib.import_module("transformers").AutoConfig.from_pretrained(arguments["model"])
    assert read.vocab_size == arch.vocabulary
    assert read.num_hidden_layers == arch.layers
    assert read.max_position_embeddings == arch.max_positions
    longer = replace(spec, max_input_tokens=arch.max_positions, weights="dummy")
    engines.build(longer, tmp_path / "longer")
    read = importlib.import_module("transformers").AutoConfig.from_pretrained(tmp_path / "longer/model")
    assert read.max_position_embeddings == arch.max_positions + 256
