"""What release 0.1 recognised the rows of a model by. Rows measured by it stay done as long as this is kept."""

from collections.abc import Mapping
from typing import Any

from sweetspot.architecture import Architecture

_FAMILIES = ("falcon", "gemma", "gemma2", "granite", "llama", "mistral", "opt", "qwen2")


def known_by(found: Architecture, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a model as release 0.1 wrote it; None for a model that it did not know."""
    before = dimensions(found, config)
    if before is None:
        return None
    named = {"name": found.name, **before, "source": found.source}
    return {"schema_version": 1, "parameters": found.parameters, "architecture": named, "config": dict(config)}


def dimensions(found: Architecture, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The dimensions in that record; None for a model that release 0.1 did not know."""
    family, first = found.model_type, found.blocks[0]
    if family not in _FAMILIES or "quantization_config" in config or any(block.experts for block in found.blocks):
        return None
    opt, falcon = family == "opt", family == "falcon"
    windowed = [block for block in found.blocks if block.window]
    bias = bool(config.get("enable_bias", True) if opt else config.get("bias") if falcon else False)
    attention_bias = bias or (family != "qwen2" and bool(config.get("attention_bias")))
    tied = family in ("falcon", "gemma", "gemma2", "opt")
    return {
        "model_type": family,
        "layers": found.layers,
        "hidden": found.hidden,
        "heads": first.heads,
        "kv_heads": first.kv_heads,
        "head_size": first.head_size,
        "ffn": first.ffn,
        "gated": first.gated,
        "vocabulary": found.vocabulary,
        "tied_embeddings": bool(config.get("tie_word_embeddings", tied)),
        "max_positions": found.max_positions,
        "learned_positions": opt,
        "sliding_window": windowed[0].window if windowed else None,
        "sliding_layers": sum(block.count for block in windowed),
        "embedding_size": config.get("word_embed_proj_dim", found.hidden) if opt else found.hidden,
        "norms": first.norms,
        "norm_vectors": 2 if opt or falcon else 1,
        "final_norm": not opt or bool(config.get("do_layer_norm_before", True)),
        "qkv_bias": attention_bias or family == "qwen2",
        "output_bias": attention_bias,
        "ffn_bias": bias or bool(config.get("mlp_bias")),
    }
