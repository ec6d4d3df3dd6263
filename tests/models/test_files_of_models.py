"""Files of models: what is refused, in one line with file, key and remedy, and how a file names its model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_architecture import BIASED, FILES, GQA, MHA, SLIDING

from sweetspot import models
from sweetspot.errors import SweetspotError
from sweetspot.models import load


def write(path: Path, config: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    return path


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: {k: v for k, v in config.items() if k != key}


NEEDED = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")
REFUSALS = [
    (GQA, lambda c: c | {"head_dim": -8}, "key 'head_dim' is -8"),
    (GQA, lambda c: c | {"vocab_size": 10**30}, "key 'vocab_size' is 1000000000"),
    (GQA, lambda c: c | {"num_hidden_layers": 10**6}, "key 'num_hidden_layers' is 1000000"),
    (GQA, lambda c: c | {"max_position_embeddings": -8}, "key 'max_position_embeddings' is -8"),
    (GQA, lambda c: c | {"text_config": [1]}, "key 'text_config' is [1], not an object"),
    (GQA, lambda c: c | {"quantization_config": {"config_groups": [1]}}, "key 'quantization_config' has a layout"),
    (GQA, lambda c: c | {"quantization_config": {"quant_method": "fp8", "ignored_layers": 5}}, "'quantization_config'"),
    *[(GQA, without(key), f"key '{key}' is missing; copy it from the publisher's config.json") for key in NEEDED],
    (GQA, without("model_type"), "key 'model_type' is missing, and transformers"),
    (MHA, without("ffn_dim"), "key 'ffn_dim' is missing; copy it from the publisher's config.json"),
    (BIASED, without("num_key_value_heads"), "key 'num_key_value_heads' is missing; copy it from the publisher's"),
    (GQA, lambda c: c | {"hidden_size": None}, "key 'hidden_size' is missing; copy"),
    (GQA, lambda c: c | {"hidden_size": "12"}, "key 'hidden_size' is '12', not an integer; write it as in"),
    (GQA, lambda c: c | {"hidden_size": 12.0}, "key 'hidden_size' is 12.0, not an integer; write it as in"),
    (GQA, lambda c: c | {"num_hidden_layers": True}, "key 'num_hidden_layers' is True, not an integer"),
    (GQA, lambda c: c | {"vocab_size": 0}, "key 'vocab_size' is 0; it must be positive, as in the published"),
    (GQA, lambda c: c | {"intermediate_size": -20}, "key 'intermediate_size' is -20; it must be positive"),
    (GQA, lambda c: c | {"num_key_value_heads": 0}, "key 'num_key_value_heads' is 0; it must be positive"),
    (GQA, lambda c: c | {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (GQA, lambda c: c | {"hidden_size": 13}, "not a multiple of the number of attention heads (6)"),
    (GQA, lambda c: c | {"num_key_value_heads": 4}, "4 key/value heads, which do not divide 6 query heads"),
    (GQA, lambda c: c | {"model_type": "no-such"}, "key 'model_type' is 'no-such', and transformers"),
    (GQA, lambda c: c | {"model_type": ["llama"]}, "key 'model_type' is"),
    (SLIDING, lambda c: c | {"layer_types": ["full_attention"]}, "layer_types"),
    (GQA, lambda c: c | {"model_type": "bert"}, "key 'model_type' is 'bert', an encoder"),
    (GQA, lambda c: c | {"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM, which does not generate text"),
    (GQA, lambda c: c | {"architectures": "LlamaForCausalLM"}, "key 'architectures' is 'LlamaForCausalLM', not a list"),
    (
        GQA,
        lambda c: {"model_type": "t5", "num_layers": 2, "d_model": 8, "vocab_size": 9},
        "'t5', which does not generate",
    ),
    (GQA, lambda c: {"model_type": "siglip_vision_model", "hidden_size": 8, "num_hidden_layers": 2}, "generate text"),
]


@pytest.mark.parametrize(("base", "change", "says"), REFUSALS)
def test_refuses_in_one_line_and_names_file_key_and_remedy(
    tmp_path: Path, base: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]], says: str
) -> None:
    file = write(tmp_path / "broken.json", change(base))
    with pytest.raises(SweetspotError) as refusal:
        load(file)
    message = str(refusal.value)
    assert str(file) in message
    assert says in message
    assert "\n" not in message


def test_loads_a_directory_and_takes_its_name(tmp_path: Path) -> None:
    file = write(tmp_path / "my-model" / "config.json", GQA)
    assert load(file.parent).name == "my-model"
    assert load(file) == load(file.parent) == models.from_config(GQA, "my-model")


@pytest.mark.parametrize("path", ["absent.json", "absent", "."])
def test_missing_file_says_what_to_give(tmp_path: Path, path: str) -> None:
    with pytest.raises(SweetspotError, match=r"no such file; give an architecture file or a directory .* config\.json"):
        load(tmp_path / path)


@pytest.mark.parametrize("content", [b"", b"not json", FILES[0].read_bytes()[:200], b"\xff\xfe\x00"])
def test_broken_json_says_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(SweetspotError, match=r"broken\.json: not valid JSON .*truncated\? Copy the file again"):
        load(file)


@pytest.mark.parametrize("content", [[GQA], 3, "text", None])
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(SweetspotError, match="not a JSON object"):
        load(write(tmp_path / "list.json", content))
