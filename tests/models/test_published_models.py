"""Models as their publishers describe them, against the modules that transformers builds on torch's meta device."""

import json
from pathlib import Path
from typing import Any

import pytest

import published_models
from sweetspot import models
from sweetspot.commands.main import main
from sweetspot.errors import SweetspotError
from sweetspot.models import quantization
from sweetspot.precision import ElementBytes, Precision

MODELS = published_models.models()
KNOWN = [name for name, model in MODELS.items() if model["parameters"]]


def read(name: str) -> models.Architecture:
    return models.from_config(MODELS[name]["config"], name, MODELS[name]["hf_quant_config"])


def test_they_are_many() -> None:
    assert len(KNOWN) >= 80
    assert len({MODELS[name]["config"]["model_type"] for name in KNOWN}) >= 15


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_those_of_the_real_class(name: str) -> None:
    assert read(name).parameters == MODELS[name]["parameters"]


@pytest.mark.contract
@pytest.mark.parametrize("name", KNOWN)
def test_the_kept_numbers_are_what_torch_counts(name: str) -> None:
    """Opt-in: pip install torch beside this environment's transformers."""
    torch = pytest.importorskip("torch", reason="NOT CHECKED against torch's meta device, which is not installed here")
    transformers = pytest.importorskip("transformers")
    config = json.loads(json.dumps(MODELS[name]["config"]))
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
        part.pop("auto_map", None)
    parsed = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    with torch.device("meta"):
        model = getattr(transformers, MODELS[name]["class"])._from_config(parsed)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == MODELS[name]["parameters"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # what their model cards call active
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("deepseek-ai/DeepSeek-V3", 37),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 17),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 17),
        ("moonshotai/Kimi-K2-Instruct", 32),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 3.6),
        ("google/gemma-4-26B-A4B", 3.8),
        ("meta-llama/Meta-Llama-3.1-70B", 70.6),
    ],
)
def test_active_parameters_are_those_of_the_model_card(name: str, billions: float) -> None:
    assert read(name).active_parameters / 1e9 == pytest.approx(billions, rel=0.03)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [  # sizes of the published checkpoints
        ("openai/gpt-oss-120b", 65.25),
        ("openai/gpt-oss-20b", 13.76),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", 72.7),
        ("Qwen/Qwen3-8B", 16.38),
    ],
)
def test_weights_are_as_large_as_the_checkpoint(name: str, gigabytes: float) -> None:
    found = read(name)
    assert found.weight_bytes(Precision.of(found.precision).sizes) / 1e9 == pytest.approx(gigabytes, rel=0.002)


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("meta-llama/Meta-Llama-3.1-70B", 2 * 80 * 8 * 128 * 2),
        ("deepseek-ai/DeepSeek-V3", 61 * (512 + 64) * 2),
        ("openai/gpt-oss-20b", 2 * 24 * 8 * 64 * 2),
        ("Qwen/Qwen3.5-27B", 2 * 16 * 4 * 256 * 2),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 2 * 6 * 2 * 128 * 2),
        ("google/gemma-4-26B-A4B", 2 * (25 * 8 * 256 + 5 * 2 * 512) * 2),
        ("XiaomiMiMo/MiMo-V2-Flash", (9 * 4 + 39 * 8) * (192 + 128) * 2),
    ],
)
def test_cache_of_a_token_in_16_bits(name: str, kv_bytes: int) -> None:
    assert read(name).kv_bytes_per_token(2) == kv_bytes


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Qwen/Qwen3-8B", "bfloat16"),
        ("Qwen/Qwen3-32B-FP8", "fp8"),
        ("Qwen/Qwen3-32B-FP8-Static-PerTensor", "fp8+kv_fp8"),
        ("deepseek-ai/DeepSeek-V3", "fp8"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "nvfp4+kv_fp8"),
        ("openai/gpt-oss-20b", "mxfp4"),
        ("moonshotai/Kimi-K2.5", "int4"),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8", "fp8+kv_fp8"),
        ("nvidia/MiniMax-M3-NVFP4", "nvfp4"),
    ],
)
def test_the_precision_of_a_checkpoint(name: str, precision: str) -> None:
    assert read(name).precision == precision


def test_what_is_left_in_16_bits_counts_so() -> None:
    """Of gpt-oss only the experts are quantised; attention, router, embeddings and head are not."""
    whole = read("openai/gpt-oss-20b")
    block = whole.blocks[0]
    assert block.plain_weights == block.weights
    assert block.plain_expert_weights == 0
    assert whole.plain_head
    halves, quarters = ElementBytes(2, 2, 2), ElementBytes(0, 2, 2)
    experts = sum(one.count * one.experts * one.expert_weights for one in whole.blocks)
    assert whole.weight_bytes(halves) - whole.weight_bytes(quarters) == 2 * experts


def test_towers_beside_the_text_model_are_named_with_their_share(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["Qwen/Qwen3-VL-8B-Instruct"]["config"]))
    assert main(["model", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (tower,) = found["not_modelled"]
    assert "visual" in tower["what"]
    assert tower["share"] == pytest.approx(576_387_312 / found["parameters"], rel=0.01)
    assert found["active_parameters"] == found["parameters"] - tower["parameters"]


@pytest.mark.parametrize(
    "name",
    ["MiniMaxAI/MiniMax-M3", "XiaomiMiMo/MiMo-7B-Base", "moonshotai/Kimi-K3", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"],
)
def test_a_model_that_transformers_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(SweetspotError) as refusal:
        read(name)
    assert f"key 'model_type' is '{MODELS[name]['config']['model_type']}', and transformers" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["moonshotai/Kimi-K2-Instruct", "sgl-project/DeepSeek-V4-Flash-FP8"])
def test_a_publishers_own_name_for_a_known_class_is_read(name: str) -> None:
    assert read(name).model_type == MODELS[name]["config"]["model_type"]


def describe(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["model", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_says_what_was_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "Mixtral"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(MODELS["mistralai/Mixtral-8x7B-v0.1"]["config"]))
    found = describe(capsys, str(place))
    assert (found["model"], found["precision"]) == ("Mixtral", "bfloat16")
    assert found["parameters"] == 46_702_792_704
    assert found["weight_bytes"] == 2 * found["parameters"]
    assert found["kv_bytes_per_token"] == 131_072
    head, table = 4096 * 32000, 4096 * 32000
    assert found["flops_per_prompt_token"] == pytest.approx(2 * (found["active_parameters"] - head - table), rel=1e-4)
    assert found["flops_per_reply_token"] == pytest.approx(2 * (found["active_parameters"] - table), rel=1e-4)
    assert found["attention_flops_per_position"] == 32 * 4 * 4096
    assert found["fits"]["NVIDIA H200"]["boards"] == 1
    assert found["fits"]["NVIDIA H100 80GB HBM3"]["boards"] == 2
    quarter = describe(capsys, str(place), "--precision", "w4a16")
    assert quarter["precision"] == "int4"
    assert quarter["fits"]["NVIDIA H100 80GB HBM3"]["boards"] == 1
    assert main(["model", str(place)]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("46.7 billion, 12.88 active", "2 of 8 experts", "131.1 kB per token"))


def test_a_precision_that_contradicts_the_checkpoint_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["openai/gpt-oss-20b"]["config"]))
    assert main(["model", str(tmp_path), "--precision", "bf16"]) == 1
    said = capsys.readouterr().err
    assert "bfloat16" in said
    assert "mxfp4" in said


def test_a_name_on_the_hub_is_read_from_its_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub/models--Qwen--Qwen3-8B"
    (cached / "snapshots/abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    (cached / "snapshots/abc/config.json").write_text(json.dumps(MODELS["Qwen/Qwen3-8B"]["config"]))
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = describe(capsys, "Qwen/Qwen3-8B")
    assert (found["model"], found["parameters"]) == ("Qwen3-8B", 8_190_735_360)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["model", "Qwen/Qwen-none"]) == 1
    assert "download the config.json and name the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("described", "head"),
    [
        ({"quant_method": "awq", "bits": 4, "modules_to_not_convert": None}, True),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, True),
        ({"quant_method": "gptq", "bits": 8, "lm_head": True}, False),
        ({"quant_method": "fp8", "ignored_layers": "lm_head"}, True),
    ],
)
def test_the_head_stays_in_16_bits_unless_it_is_named(described: dict[str, Any], head: bool) -> None:
    config = MODELS["meta-llama/Meta-Llama-3.1-8B"]["config"] | {"quantization_config": described}
    assert models.from_config(config, "x").plain_head is head


LAYERS_8_BIT = {"-:.*lm_head": {}, r"+:model\.layers\.(0|1)\..*": {"bits": 8}, r"-:model\.layers\.2\.mlp.*": {}}
INT4 = {"num_bits": 4, "type": "int", "group_size": 128}


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"quant_method": "gptq", "bits": 4, "dynamic": LAYERS_8_BIT}, {0: (8, 8), 2: (4, 16), 3: (4, 4)}),
        (
            {
                "quant_method": "intel/auto-round",
                "bits": 4,
                "extra_config": {
                    "model.layers.0.self_attn.q_proj": {"bits": 8, "group_size": 128},
                    "model.layers.2.mlp.up_proj": {"bits": 16},
                },
            },
            {0: (8, 4), 2: (4, 16), 3: (4, 4)},
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "a": {"targets": [r"re:.*self_attn\.q_proj$"], "weights": {"num_bits": 8, "type": "int"}},
                    "b": {"targets": ["Linear"], "weights": INT4},
                },
                "ignore": [r"re:.*layers\.2\.mlp.*"],
            },
            {0: (8, 4), 2: (8, 16), 3: (8, 4)},
        ),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, {0: (4.625, 4.625)}),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, {0: (4, 4)}),
    ],
    ids=["gptqmodel", "auto-round", "compressed-tensors", "small groups", "no groups"],
)
def test_layers_of_a_checkpoint_have_their_own_bits(
    described: dict[str, Any], expected: dict[int, tuple[float, float]]
) -> None:
    """Of the query projection and of an MLP's matrix; int4 with the scales and zero points of its groups."""
    found = quantization.read({"quantization_config": described})
    assert found is not None
    for layer, bits in expected.items():
        for name, wanted in zip(("self_attn.q_proj", "mlp.up_proj"), bits, strict=True):
            for prefix in ("model.layers", "language_model.model.layers"):
                scales = 20 / 128 if wanted == 4 and described.get("group_size") != -1 else 0
                assert found.bits(f"{prefix}.{layer}.{name}") == pytest.approx(wanted + scales), (layer, name)


def test_bits_that_no_engine_here_runs_are_refused() -> None:
    with pytest.raises(SweetspotError, match="bits 3"):
        quantization.read({"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": {".*": {"bits": 3}}}})


@pytest.mark.parametrize(
    ("own", "asked", "found"),
    [
        ({"quant_method": "awq", "bits": 4}, "w4a16", "int4+a_float16"),
        ({"quant_method": "awq", "bits": 4}, "int4+kv_fp8", "int4+kv_fp8"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8+kv_fp8", "fp8+kv_fp8"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8", ""),
        ({"quant_algo": "FP8"}, "int8", ""),
    ],
)
def test_a_precision_and_a_checkpoint_agree_or_are_refused(own: dict[str, Any], asked: str, found: str) -> None:
    config = MODELS["meta-llama/Meta-Llama-3.1-8B"]["config"] | {"quantization_config": own, "torch_dtype": "float16"}
    architecture = models.from_config(config, "x")
    if found:
        assert models.precision(architecture, Precision.of(asked)).name == found
    else:
        with pytest.raises(SweetspotError, match="its quantization_config says fp8"):
            models.precision(architecture, Precision.of(asked))


def test_models_spelled_as_their_publishers_do() -> None:
    bloom = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_embed": 1024, "n_layer": 24}
    assert models.from_config(bloom | {"num_attention_heads": 16, "vocab_size": 250880}, "x").parameters == 559_214_592
    sizes = {"hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 32, "num_attention_heads": 24}
    sizes |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 256000}
    minitron = {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron", **sizes}
    assert models.from_config(minitron, "x").parameters == 4_190_509_056
