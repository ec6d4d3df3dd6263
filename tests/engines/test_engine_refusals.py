"""What the adapters of vLLM and TensorRT-LLM refuse, and how they report a shortage of memory."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import standins
from simulation import ARCHITECTURES
from standins import REAL, opened, spec
from sweetspot import engines
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine


@pytest.mark.parametrize("name", REAL)
def test_a_request_that_exceeds_the_cache_is_out_of_memory(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standins.of(monkeypatch, name, blocks=20)
    engine = opened(spec(name), tmp_path)
    with pytest.raises(OutOfMemory, match=r"512 \+ 256 tokens exceeds the KV cache"):
        engine.run(512, 256)


def checkpoint(place: Path, model: str = "llama-3.2-1b", weights: bool = True) -> str:
    place.mkdir()
    (place / "config.json").write_text((ARCHITECTURES / f"{model}.json").read_text())
    if weights:
        (place / "model.safetensors").write_bytes(b"weights")
    return str(place)


@pytest.mark.parametrize("name", REAL)
def test_a_checkpoint_is_loaded_from_its_directory(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.of(monkeypatch, name)
    place = checkpoint(tmp_path / "weights")
    opened(spec(name, weights="checkpoint", checkpoint=place), tmp_path / "engine")
    arguments = next(arguments for kind, arguments in package.made if kind.endswith("LLM"))
    assert arguments["model"] == place
    assert arguments["load_format"] == "auto"


@pytest.mark.parametrize(
    ("model", "weights", "longest", "message"),
    [
        ("llama-3.2-1b", False, 0, "has no weights"),
        ("llama-3.2-3b", True, 0, "a different model from llama-3.2-1b"),
        ("llama-3.2-1b", True, 200_000, "200000 tokens exceed its 131072 positions; set positions to skip"),
    ],
)
@pytest.mark.parametrize("name", REAL)
def test_a_checkpoint_that_cannot_serve_is_refused(
    name: str, model: str, weights: bool, longest: int, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, name)
    place = checkpoint(tmp_path / "weights", model, weights)
    wanted = spec(name, weights="checkpoint", checkpoint=place, max_total_tokens=longest)
    with pytest.raises(SweetspotError, match=message):
        engines.build(wanted, tmp_path / "engine")
    with pytest.raises(SweetspotError, match=r"has no config\.json"):
        engines.build(replace(wanted, checkpoint=str(tmp_path / "nowhere")), tmp_path / "engine")
    assert package.models == [], "refused before anything is loaded"


def test_a_checkpoint_with_missing_shards_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    standins.of(monkeypatch, "vllm")
    place = Path(checkpoint(tmp_path / "weights", weights=False))
    wanted = spec("vllm", weights="checkpoint", checkpoint=str(place))
    (place / "training_args.bin").write_bytes(b"no weights")
    with pytest.raises(SweetspotError, match="has no weights"):
        engines.build(wanted, tmp_path / "engine")
    (place / "model-1.safetensors").write_bytes(b"weights")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SweetspotError, match=r"model-2\.safetensors missing"):
        engines.build(wanted, tmp_path / "engine")
    (place / "model-2.safetensors").write_bytes(b"weights")
    engines.build(wanted, tmp_path / "engine")


REFUSED: dict[str, tuple[engines.EngineSpec, dict[str, Any], str]] = {
    "old vLLM": (spec("vllm"), {"version": "0.9.2"}, "vLLM 0.9.2 is older than 0.26"),
    "engines after their end": (
        spec("trt-engine"),
        {"version": "1.3.0rc22"},
        r"needs TensorRT-LLM >=1.2,<1.3, but 1.3",
    ),
    "old TensorRT-LLM": (spec("trt-pytorch"), {"version": "1.1.0"}, r"needs TensorRT-LLM >=1.2,<1.3, but 1.1.0"),
    "unchecked TensorRT-LLM": (spec("trt-pytorch"), {"version": "1.3.0"}, r"needs TensorRT-LLM >=1.2,<1.3, but 1.3.0"),
    "OPT in PyTorch": (
        spec("trt-pytorch", "opt-1.3b"),
        {},
        "opt-1.3b: trt-pytorch of TensorRT-LLM 1.2.1 does not run OPTForCausalLM; install a version that does",
    ),
    "gaussian in TensorRT-LLM": (spec("trt-engine", weights="gaussian"), {}, "no access to its weights"),
    "float32": (spec("vllm", precision="float32"), {}, "does not run in float32, but in bfloat16, float16, fp8"),
    "too large": (spec("vllm", max_total_tokens=10_000_000), {}, "one request of 10000000 tokens exceed the memory"),
    **{
        f"unknown to {name}": (
            spec(name, model_config={"architectures": ["NewForCausalLM"]}),
            {},
            "llama-3.2-1b: .* does not run NewForCausalLM; install a version that does, or leave the model out",
        )
        for name in REAL
    },
    "no published config": (spec("trt-engine", model_config={}), {}, "key 'architectures' is missing"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_run_is_refused_before_anything_is_loaded(
    mistake: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted, changes, message = REFUSED[mistake]
    package = standins.of(monkeypatch, wanted.name)
    if "version" in changes:
        package.package.__version__ = changes["version"]
    with pytest.raises(SweetspotError, match=message):
        engines.build(wanted, tmp_path)
    assert package.models == []
    assert not (tmp_path / "engine.json").exists()


@pytest.mark.parametrize(
    "error", [ImportError("libcudart.so.13"), OSError("libnvinfer"), RuntimeError("driver too old"), AttributeError()]
)
@pytest.mark.parametrize("name", REAL)
def test_a_package_that_does_not_load_makes_the_machine_unfit(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = "vllm" if name == "vllm" else "tensorrt_llm"
    (tmp_path / f"{package}.py").write_text(f"raise {type(error).__name__}({str(error)!r})")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for variable in standins.ENVIRONMENT:
        monkeypatch.setenv(variable, "unset")
    said = str(error) or "AttributeError"
    with pytest.raises(UnfitMachine, match=rf"{package} cannot be imported \({said}\); install"):
        engines.build(spec(name), tmp_path)


@pytest.mark.parametrize("name", REAL)
def test_a_load_that_fails_where_cuda_does_not_work_makes_the_machine_unfit(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, name)
    engines.build(spec(name), tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    package.fail = fail
    with pytest.raises(RuntimeError, match="too old"):
        engines.open_device(spec(name), tmp_path)
    monkeypatch.setattr(sys.modules["torch"], "zeros", fail)
    with pytest.raises(UnfitMachine, match=r"CUDA does not work .*too old.*nvidia-smi"):
        engines.open_device(spec(name), tmp_path)


def test_tensorrt_llm_is_imported_outside_the_job_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its import runs MPI_Init, which inside srun would join that step."""
    standins.of(monkeypatch, "trt-engine")
    launchers = ("SLURM_PROCID", "SLURM_JOB_ID", "PMIX_RANK", "PMI_FD", "OMPI_COMM_WORLD_RANK", "UCX_TLS", "MPI_ROOT")
    for variable in launchers:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    engines.build(spec("trt-engine"), tmp_path)
    assert not set(launchers) & os.environ.keys()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.mark.parametrize("name", REAL)
def test_a_missing_package_is_one_clear_message(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = "vllm" if name == "vllm" else "tensorrt_llm"
    monkeypatch.setitem(sys.modules, package, None)
    for variable in standins.ENVIRONMENT:
        monkeypatch.setenv(variable, "unset")
    with pytest.raises(
        SweetspotError, match=rf"{package} cannot be imported .*; install .*docs/engines.md.*engine.python"
    ):
        engines.build(spec(name), tmp_path)


def test_the_empty_package_of_the_public_index_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    del package.package.LLM
    with pytest.raises(SweetspotError, match="empty placeholder of the public index"):
        engines.build(spec("trt-pytorch"), tmp_path)


def test_an_engine_of_another_version_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engines_of = standins.tensorrt_llm(monkeypatch)
    engines.build(spec("trt-engine"), tmp_path)
    engines_of.package.__version__ = "1.2.2"
    with pytest.raises(
        SweetspotError, match=r"built by version 1.2.1 of trt-engine, but 1.2.2 is installed; delete it"
    ):
        engines.open_device(spec("trt-engine"), tmp_path)
    engines_of.package.__version__ = "1.2.1"
    with pytest.raises(SweetspotError, match="built for another model_config; delete it"):
        engines.open_device(spec("trt-engine", model_config={}), tmp_path)


def raising(*errors: Exception) -> Callable[[str], None]:
    def fail(doing: str) -> None:
        if doing == "generate":
            try:
                raise errors[0]
            except Exception as cause:
                raise errors[-1] from cause

    return fail


SHORTAGES = [
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),),
    (ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"),),
    (MemoryError("torch.OutOfMemoryError"), RuntimeError("Executor worker returned error")),
]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("errors", SHORTAGES)
def test_out_of_memory_is_distinguished_from_other_failures(
    name: str, errors: tuple[Exception, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, name)
    engine = opened(spec(name), tmp_path)
    package.fail = raising(*errors)
    with pytest.raises(OutOfMemory, match=r"llama-3.2-1b, batch 8, 64 \+ 32 tokens: out of GPU memory .*; lower"):
        engine.run(64, 32)
    package.fail = raising(RuntimeError("device-side assert"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        engine.run(64, 32)


@pytest.mark.parametrize("name", REAL)
def test_out_of_memory_at_load_says_so(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.of(monkeypatch, name)
    engines.build(spec(name), tmp_path)

    def fail(doing: str) -> None:
        raise RuntimeError("CUDA out of memory")

    package.fail = fail
    with pytest.raises(OutOfMemory, match="loading: out of GPU memory"):
        engines.open_device(spec(name), tmp_path)


def test_a_kv_cache_of_unknown_size_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    package.package.LLM.get_stats = lambda llm, timeout=2: [{"iter": 1}]
    engines.build(spec("trt-pytorch"), tmp_path)
    with pytest.raises(SweetspotError, match="does not report the size of its KV cache"):
        engines.open_device(spec("trt-pytorch"), tmp_path)
    assert package.closed == 1
