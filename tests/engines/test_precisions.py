"""How engines are asked for a precision, what they refuse, and whose word on a model's weights counts."""

import json
from pathlib import Path
from typing import Any

import pytest

import standins
from simulation import ARCHITECTURES
from standins import REAL, opened, spec
from sweetspot import engines
from sweetspot.errors import SweetspotError
from sweetspot.models.quantization import stored

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
PER_TOKEN = {"strategy": "token", "dynamic": True}
FP8, FP4 = INT8 | {"type": "float"}, {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
FP4 |= {"symmetric": True, "dynamic": False}
INT4 = INT8 | {"num_bits": 4, "strategy": "group", "group_size": 128}
STORED: dict[str, tuple[str, Any, Any]] = {
    "fp8": ("float-quantized", FP8, FP8 | PER_TOKEN),
    "fp8+a_bfloat16": ("float-quantized", FP8, None),
    "int8": ("int-quantized", INT8, INT8 | PER_TOKEN),
    "int8+a_float16": ("pack-quantized", INT8, None),
    "w4a16": ("pack-quantized", INT4, None),
    "nvfp4": ("nvfp4-pack-quantized", FP4, FP4 | {"dynamic": "local"}),
    "nvfp4+a_bfloat16": ("nvfp4-pack-quantized", FP4, None),
}


def written(place: Path) -> dict[str, Any]:
    """The config.json that the engine reads."""
    config: dict[str, Any] = json.loads((place / "model/config.json").read_text())
    return config


@pytest.mark.parametrize("precision", STORED)
def test_vllm_stores_random_weights_as_llm_compressor_does(
    precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.vllm(monkeypatch)
    opened(spec("vllm", precision=precision), tmp_path)
    found = written(tmp_path)["quantization_config"]
    layout, weights, activations = STORED[precision]
    assert (found["quant_method"], found["format"], found["ignore"]) == ("compressed-tensors", layout, ["lm_head"])
    assert found["config_groups"] == {
        "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    }
    plain = "float16" if precision.endswith("float16") and not precision.endswith("bfloat16") else "bfloat16"
    assert written(tmp_path)["torch_dtype"] == package.last("vllm.LLM")["dtype"] == plain
    assert package.last("vllm.LLM")["kv_cache_dtype"] == "auto"


ALGORITHMS = {"fp8": "FP8", "int4": "W4A16_AWQ", "int8+a_float16": "W8A16", "nvfp4": "NVFP4"}


@pytest.mark.parametrize(
    ("precision", "algorithm"),
    [*ALGORITHMS.items(), ("int8", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"), ("float16", None)],
)
def test_a_tensorrt_engine_is_built_with_a_quantisation(
    precision: str, algorithm: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.tensorrt_llm(monkeypatch)
    opened(spec("trt-engine", precision=precision), tmp_path)
    built, _ = [arguments for name, arguments in package.made if name.endswith("_tensorrt_engine.LLM")]
    assert built["quant_config"].quant_algo == algorithm
    assert built["quant_config"].kv_cache_quant_algo is None
    assert built["dtype"] == ("float16" if "_float16" in f"_{precision}" else "bfloat16")
    assert not (tmp_path / "model/hf_quant_config.json").exists()


@pytest.mark.parametrize("precision", ALGORITHMS)
def test_the_pytorch_backend_reads_a_quantisation_beside_the_model(
    precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standins.tensorrt_llm(monkeypatch)
    opened(spec("trt-pytorch", precision=precision), tmp_path)
    said = json.loads((tmp_path / "model/hf_quant_config.json").read_text())["quantization"]
    assert said == {"quant_algo": ALGORITHMS[precision], "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    assert "quantization_config" not in written(tmp_path)


def test_each_engine_has_a_name_for_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cache(engine: str, name: str) -> Any:
        package = standins.of(monkeypatch, engine)
        opened(spec(engine, precision=f"bfloat16+kv_{name}"), tmp_path / f"{engine}-{name}")
        if engine == "vllm":
            return package.last("vllm.LLM")["kv_cache_dtype"]
        if engine == "trt-engine":
            return package.last("tensorrt_llm.llmapi.QuantConfig")["kv_cache_quant_algo"]
        return package.last("tensorrt_llm.llmapi.KvCacheConfig")["dtype"]

    assert [cache("vllm", name) for name in ("fp8", "int8", "nvfp4")] == ["fp8", "int8_per_token_head", "nvfp4"]
    assert [cache("trt-engine", name) for name in ("fp8", "int8", "bfloat16")] == ["FP8", "INT8", None]
    assert [cache("trt-pytorch", name) for name in ("fp8", "nvfp4", "bfloat16")] == ["fp8", "nvfp4", "auto"]


def test_a_quantised_cache_of_random_weights_is_scaled_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """vLLM draws its scales at random too, some of them negative; a checkpoint's are its own."""
    package = standins.vllm(monkeypatch)
    opened(spec("vllm", precision="fp8+kv_fp8"), tmp_path / "quantised")
    assert package.attention.scales() == [1.0] * 6
    package = standins.vllm(monkeypatch)
    opened(spec("vllm", precision="fp8"), tmp_path / "plain")
    assert package.attention.scales() == [-0.001] * 6


@pytest.mark.parametrize(
    ("engine", "precision", "said"),
    [
        ("vllm", "float32", "engine vllm does not run in float32, but in bfloat16, float16, fp8, "),
        ("vllm", "int4+a_fp8", r"does not run in int4\+a_fp8, but in .*, int4, nvfp4, "),
        ("vllm", "bfloat16+a_float16", r"does not run in bfloat16\+a_float16"),
        ("vllm", "bfloat16+kv_float32", "does not cache in float32, but in bfloat16, fp8, int8, nvfp4"),
        (
            "trt-engine",
            "fp8+a_bfloat16",
            r"engine trt-engine does not run in fp8\+a_bfloat16, but in bfloat16, float16",
        ),
        ("trt-engine", "mxfp4", "does not run in mxfp4"),
        ("trt-engine", "fp8+kv_nvfp4", "does not cache in nvfp4, but in bfloat16, fp8, int8"),
        ("trt-pytorch", "int8", "does not run in int8, but in .*, fp8, "),
        ("trt-pytorch", "fp8+kv_int8", "does not cache in int8, but in bfloat16, fp8, nvfp4"),
        ("trt-pytorch", "mxfp4", "llama-3.2-1b: trt-pytorch has mxfp4 weights only of models published so"),
        ("vllm", "mxfp4", "llama-3.2-1b: vllm has mxfp4 weights only of models published so"),
    ],
)
def test_what_an_engine_does_not_have_is_refused_before_anything_is_loaded(
    engine: str, precision: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = standins.of(monkeypatch, engine)
    with pytest.raises(SweetspotError, match=said):
        engines.build(spec(engine, precision=precision), tmp_path)
    assert package.models == []


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
PUBLISHED = {
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "int4": AWQ,
}


@pytest.mark.parametrize("name", ["vllm", "trt-pytorch"])
@pytest.mark.parametrize("precision", PUBLISHED)
def test_random_weights_are_as_the_publisher_has_them_if_the_precision_is(
    precision: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standins.of(monkeypatch, name)
    config = {**spec(name).model_config, "quantization_config": PUBLISHED[precision]}
    engines.build(spec(name, precision=precision, model_config=config), tmp_path / "same")
    assert written(tmp_path / "same")["quantization_config"] == PUBLISHED[precision]
    assert not (tmp_path / "same/model/hf_quant_config.json").exists()
    engines.build(spec(name, model_config=config), tmp_path / "plain")
    assert "quantization_config" not in written(tmp_path / "plain"), "bfloat16 is asked for"


@pytest.mark.parametrize(
    ("described", "found"),
    [
        ({}, ""),
        (AWQ, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_algo": "W4A16_AWQ", "group_size": 128}, "int4"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"g": {"weights": INT4}},
            },
            "int4",
        ),
    ],
)
def test_a_config_says_the_format_of_its_weights(described: dict[str, Any], found: str) -> None:
    assert stored({"quantization_config": described}) == found
    assert stored({}) == ""


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    ("own", "beside", "precision", "said"),
    [
        (None, None, "fp8", "has bfloat16 weights, not fp8: set precision so"),
        (AWQ, None, "bfloat16", "has int4 weights, not bfloat16: set precision so"),
        (None, "FP8", "bfloat16", "has fp8 weights, not bfloat16: set precision so"),
        (None, "FP8", "fp8", ""),
        (AWQ, None, "int4", ""),
        (None, None, "float16", ""),
    ],
)
def test_the_weights_of_a_checkpoint_are_its_own(
    own: dict[str, Any] | None,
    beside: str | None,
    precision: str,
    said: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    package = standins.of(monkeypatch, name)
    place = tmp_path / "weights"
    place.mkdir()
    config = json.loads((ARCHITECTURES / "llama-3.2-1b.json").read_text())
    (place / "config.json").write_text(json.dumps(config | ({"quantization_config": own} if own else {})))
    (place / "model.safetensors").write_bytes(b"weights")
    if beside:
        (place / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": beside}}))
    wanted = spec(name, precision=precision, weights="checkpoint", checkpoint=str(place))
    if said:
        with pytest.raises(SweetspotError, match=said):
            engines.build(wanted, tmp_path / "engine")
    else:
        opened(wanted, tmp_path / "engine")
        if name == "trt-engine":
            assert package.last("tensorrt_llm.llmapi.QuantConfig")["quant_algo"] is None, "it reads the checkpoint's"
