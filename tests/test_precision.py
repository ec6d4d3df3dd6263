"""Names and sizes of precisions, as people write them."""

from pathlib import Path

import pytest

from sweetspot.errors import SweetspotError
from sweetspot.models.quantization import read
from sweetspot.precision import ACTIVATIONS, BITS, NAMES, Precision, name_of
from sweetspot.table.read import read as read_table


@pytest.mark.parametrize(
    ("written", "name", "formats"),
    [
        ("bf16", "bfloat16", ("bfloat16", "bfloat16", "bfloat16")),
        ("BFloat16", "bfloat16", ("bfloat16", "bfloat16", "bfloat16")),
        ("torch.float16", "float16", ("float16", "float16", "float16")),
        ("half", "float16", ("float16", "float16", "float16")),
        ("fp32", "float32", ("float32", "float32", "float32")),
        ("FP8", "fp8", ("fp8", "fp8", "bfloat16")),
        ("float8_e4m3fn", "fp8", ("fp8", "fp8", "bfloat16")),
        ("fp8+kv_fp8", "fp8+kv_fp8", ("fp8", "fp8", "fp8")),
        ("FP8+KV_FP8", "fp8+kv_fp8", ("fp8", "fp8", "fp8")),
        ("bf16+kv_fp8", "bfloat16+kv_fp8", ("bfloat16", "bfloat16", "fp8")),
        ("int8", "int8", ("int8", "int8", "bfloat16")),
        ("w8a16", "int8+a_bfloat16", ("int8", "bfloat16", "bfloat16")),
        ("w4a16", "int4", ("int4", "bfloat16", "bfloat16")),
        ("AWQ", "int4", ("int4", "bfloat16", "bfloat16")),
        ("int4+a_fp16", "int4+a_float16", ("int4", "float16", "float16")),
        ("int4+a_fp8", "int4+a_fp8", ("int4", "fp8", "bfloat16")),
        ("NVFP4", "nvfp4", ("nvfp4", "nvfp4", "bfloat16")),
        ("mxfp4", "mxfp4", ("mxfp4", "bfloat16", "bfloat16")),
        ("nvfp4+kv_auto", "nvfp4", ("nvfp4", "nvfp4", "bfloat16")),
    ],
)
def test_names_mean_what_people_mean(written: str, name: str, formats: tuple[str, str, str]) -> None:
    assert tuple(Precision.of(written)) == formats
    assert Precision.of(written).name == name


@pytest.mark.parametrize("weights", NAMES)
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("cache", ["auto", "fp8", "float16"])
def test_a_name_is_read_as_what_it_names(weights: str, activations: str, cache: str) -> None:
    precision = Precision.of(weights, activations, cache)
    assert Precision.of(precision.name) == precision


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("fp4", "it may be nvfp4 or mxfp4: write which"),
        ("w8a8", "it may be fp8 or int8: write which"),
        ("bf15", "known: float32, bfloat16"),
        ("", "known: float32, bfloat16"),
        ("fp8+fp8", "write \\+a_FORMAT or \\+kv_FORMAT"),
        ("fp8+kv_int4", "'int4' is not known here"),
    ],
)
def test_what_is_not_known_is_refused(written: str, says: str) -> None:
    with pytest.raises(SweetspotError, match=says):
        Precision.of(written)


def test_sizes_have_their_share_of_the_scales() -> None:
    """AWQ: a 16-bit scale and a 4-bit zero point for 128 weights; NVFP4: 8 bits for 16; MXFP4: 8 bits for 32."""
    assert [BITS[name] for name in ("int4", "nvfp4", "mxfp4")] == [4 + 20 / 128, 4.5, 4.25]
    assert Precision.of("nvfp4+kv_fp8").sizes == (4.5 / 8, 1, 2)
    assert Precision.of("float32").sizes == (4, 4, 4)


def test_another_tables_own_label_stays() -> None:
    assert [name_of(label) for label in ("FP8", "Q4_K_M", "unspecified")] == ["fp8", "Q4_K_M", "unspecified"]


INT4 = {"num_bits": 4, "type": "int", "group_size": 128}
FP8 = {"num_bits": 8, "type": "float"}
NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}


@pytest.mark.parametrize(
    ("described", "module", "formats", "cache"),
    [
        ({"quant_method": "awq", "bits": 4}, "model.layers.0.mlp.up_proj", ("int4", "bfloat16"), "auto"),
        ({"quant_method": "gptq", "bits": 8}, "model.layers.0.mlp.up_proj", ("int8", "bfloat16"), "auto"),
        ({"quant_method": "fp8"}, "model.layers.0.mlp.up_proj", ("fp8", "fp8"), "auto"),
        ({"quant_method": "fp8"}, "model.layers.0.mlp.gate", ("bfloat16", "bfloat16"), "auto"),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.1"]},
            "model.layers.1.mlp.up_proj",
            ("bfloat16", "bfloat16"),
            "auto",
        ),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.1"]},
            "model.layers.11.mlp.up_proj",
            ("fp8", "fp8"),
            "auto",
        ),
        (
            {"quant_method": "compressed-tensors", "ignore": ["re:.*self_attn.*"]}
            | {"config_groups": {"g": {"targets": ["Linear"], "weights": INT4}}},
            "model.layers.0.self_attn.q_proj",
            ("bfloat16", "bfloat16"),
            "auto",
        ),
        (
            {"quant_method": "compressed-tensors", "kv_cache_scheme": FP8}
            | {"config_groups": {"g": {"targets": ["Linear"], "weights": FP8, "input_activations": FP8}}},
            "model.layers.0.self_attn.q_proj",
            ("fp8", "fp8"),
            "fp8",
        ),
        (
            {
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {"model.layers.0.mlp.experts.3.up": {"quant_algo": "NVFP4"}},
            },
            "model.layers.0.mlp.experts.gate_up_proj",
            ("nvfp4", "nvfp4"),
            "auto",
        ),
        (
            {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["model.layers.0*"]},
            "model.layers.0.mlp.up_proj",
            ("bfloat16", "bfloat16"),
            "fp8",
        ),
        ({"quant_method": "mxfp4"}, "model.layers.0.mlp.experts.gate_up_proj", ("mxfp4", "bfloat16"), "auto"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "model.layers.0.mlp.up_proj",
            ("int4", "bfloat16"),
            "auto",
        ),
    ],
)
def test_how_a_checkpoint_stores_a_module(
    described: dict[str, object], module: str, formats: tuple[str, str], cache: str
) -> None:
    found = read({"quantization_config": described})
    assert found is not None
    assert found.format(module) == formats
    assert found.cache == cache


@pytest.mark.parametrize(
    "described",
    [
        {"quant_method": "aqlm"},
        {"quant_method": "gptq", "bits": 3},
        {"quant_algo": "W2A16"},
        {"config_groups": {"g": {"weights": {"num_bits": 2, "type": "int"}}}},
        ["awq"],
    ],
)
def test_an_unknown_quantization_is_refused(described: object) -> None:
    with pytest.raises(SweetspotError, match="key 'quantization_config'"):
        read({"quantization_config": described})


def test_a_table_is_read_with_one_name_for_each_precision(tmp_path: Path) -> None:
    lines = [
        f"m,1,{n},{m},{n + 10 * m},{label}" for n, m, label in ((8, 8, "bf16"), (8, 16, "BFLOAT16"), (16, 8, "q4"))
    ]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["model,batch,input_tokens,output_tokens,energy_j,precision", *lines]))
    assert read_table([path]).frame["precision"].to_list() == ["bfloat16", "bfloat16", "q4"]
