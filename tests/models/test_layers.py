"""FLOPs and bytes of every kind of layer, against a model written down by hand and walked token by token."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import pytest

import published_models
from sweetspot import models
from sweetspot.architecture import Architecture
from sweetspot.precision import ElementBytes

Matrices = list[tuple[int, int]]


@dataclass
class Layer:
    """One layer: its matrices, its experts, and what it attends to and keeps."""

    matrices: Matrices = field(default_factory=list)
    experts: int = 0
    chosen: int = 0
    expert: Matrices = field(default_factory=list)
    heads: int = 0
    key: int = 0  # elements of a head's key; of its value
    value: int = 0
    cached: int = 0
    latent: int = 0  # all heads read this many elements as values, and `cached` as keys
    keeps: bool = True
    window: int | None = None
    chunk: int | None = None
    state: int = 0  # bytes
    state_flops: int = 0

    def attended(self, token: int) -> list[int]:
        """The positions (from 1) that a token attends to, itself included."""
        if self.chunk:
            return [p for p in range(1, token + 1) if (p - 1) // self.chunk == (token - 1) // self.chunk]
        return [p for p in range(1, token + 1) if self.window is None or p > token - self.window]

    def kept(self, tokens: int) -> int:
        if not self.keeps:
            return 0
        return min(tokens, self.window or self.chunk or tokens) * self.cached


def base(name: str, **changes: Any) -> dict[str, Any]:
    config = published_models.models()[name]["config"]
    kept = {
        key: value for key, value in config.items() if key not in ("quantization_config", "rope_scaling", "auto_map")
    }
    return kept | changes


def mlp(hidden: int, inner: int) -> Matrices:
    return [(hidden, 2 * inner), (inner, hidden)]


MLA = base(
    "deepseek-ai/DeepSeek-V3",
    **{"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 8},
    **{
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
    },
    **{"intermediate_size": 40, "moe_intermediate_size": 10, "n_routed_experts": 8, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1, "vocab_size": 50, "num_nextn_predict_layers": 0},
)
_LATENT: dict[str, Any] = {"heads": 4, "key": 10, "value": 5, "cached": 12, "latent": 8}
_PROJECTIONS = [(32, 12), (12, 40), (32, 12), (8, 44), (20, 32)]
MLA_LAYERS = [
    Layer(_PROJECTIONS + mlp(32, 40), **_LATENT),
    *[Layer([*_PROJECTIONS, (32, 8), *mlp(32, 10)], 8, 2, mlp(32, 10), **_LATENT)] * 2,
]

QWEN3_MOE = base(
    "Qwen/Qwen3-30B-A3B",
    **{"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "num_hidden_layers": 2},
    **{"moe_intermediate_size": 6, "num_experts": 6, "num_experts_per_tok": 3, "vocab_size": 40},
    **{"intermediate_size": 14, "mlp_only_layers": [0]},
)
_GQA: dict[str, Any] = {"heads": 4, "key": 10, "value": 10, "cached": 40}
QWEN3_MOE_LAYERS = [
    Layer([(24, 80), (40, 24), *mlp(24, 14)], **_GQA),
    Layer([(24, 80), (40, 24), (24, 6)], 6, 3, mlp(24, 6), **_GQA),
]

GPT_OSS = base(
    "openai/gpt-oss-20b",
    **{"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6, "num_hidden_layers": 2},
    **{"intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 30, "sliding_window": 3},
    **{"layer_types": ["sliding_attention", "full_attention"]},
)
GPT_OSS_LAYERS = [
    Layer([(16, 36), (24, 16), (16, 4)], 4, 2, mlp(16, 8), heads=4, key=6, value=6, cached=12, window=window)
    for window in (3, None)
]

LLAMA_4 = {
    **base("meta-llama/Llama-4-Scout-17B-16E-Instruct")["text_config"],
    **{"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "rope_scaling": None},
    **{"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 4},
    **{"intermediate_size": 6, "intermediate_size_mlp": 20, "num_local_experts": 4, "num_experts_per_tok": 1},
    **{"interleave_moe_layer_step": 2, "vocab_size": 30, "attention_chunk_size": 5, "moe_layers": None},
    **{"no_rope_layers": [1, 1, 1, 0], "layer_types": None},
}
_LLAMA_4: dict[str, Any] = {"heads": 4, "key": 4, "value": 4, "cached": 16}
LLAMA_4_LAYERS = [
    Layer([(16, 32), (16, 16), *mlp(16, 20)], **_LLAMA_4, chunk=5),
    Layer([(16, 32), (16, 16), (16, 4), *mlp(16, 6)], 4, 1, mlp(16, 6), **_LLAMA_4, chunk=5),
    Layer([(16, 32), (16, 16), *mlp(16, 20)], **_LLAMA_4, chunk=5),
    Layer([(16, 32), (16, 16), (16, 4), *mlp(16, 6)], 4, 1, mlp(16, 6), **_LLAMA_4),
]

DELTA_NET = {
    **base("Qwen/Qwen3.5-27B")["text_config"],
    **{"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "mamba_ssm_dtype": "float32"},
    **{"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_hidden_layers": 2},
    **{"intermediate_size": 20, "vocab_size": 30, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 3, "linear_value_head_dim": 5, "linear_conv_kernel_dim": 4},
    **{"layer_types": ["linear_attention", "full_attention"], "tie_word_embeddings": False},
}
_STATE = 4 * 3 * 5
_CONVOLUTION = (2 * 2 * 3 + 4 * 5) * 4
DELTA_NET_LAYERS = [
    Layer(
        [(16, 32), (16, 20), (16, 4), (16, 4), (20, 16), *mlp(16, 20), (_CONVOLUTION, 1)],
        state=4 * _STATE + 2 * _CONVOLUTION,
        state_flops=8 * _STATE,
    ),
    Layer([(16, 48), (16, 16), *mlp(16, 20)], heads=2, key=8, value=8, cached=16),  # the query has a gate beside it
]

MAMBA_2 = base(
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    **{"hidden_size": 16, "num_hidden_layers": 4, "hybrid_override_pattern": "M*E-", "vocab_size": 30, "head_dim": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "mamba_num_heads": 3, "mamba_head_dim": 4, "n_groups": 1},
    **{"ssm_state_size": 5, "conv_kernel": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    **{"moe_intermediate_size": 6, "moe_shared_expert_intermediate_size": 8, "intermediate_size": 10},
    **{"n_group": 1, "topk_group": 1, "mamba_ssm_cache_dtype": "float32", "layers_block_type": None},
)
_WIDE = 3 * 4
MAMBA_2_LAYERS = [
    Layer(
        [(16, 2 * _WIDE + 2 * 5 + 3), (_WIDE, 16), ((_WIDE + 2 * 5) * 4, 1)],
        state=4 * _WIDE * 5 + 2 * (_WIDE + 2 * 5) * 4,
        state_flops=6 * _WIDE * 5,
    ),
    Layer([(16, 48), (24, 16)], heads=4, key=6, value=6, cached=24),
    Layer([(16, 4), (16, 8), (8, 16)], 4, 2, [(16, 6), (6, 16)]),
    Layer([(16, 10), (10, 16)]),
]

CASES: dict[str, tuple[dict[str, Any], list[Layer]]] = {
    "latent cache, shared and routed experts, a dense first layer": (MLA, MLA_LAYERS),
    "experts in some layers, heads wider than the hidden state": (QWEN3_MOE, QWEN3_MOE_LAYERS),
    "experts with biases, windows in every second layer": (GPT_OSS, GPT_OSS_LAYERS),
    "chunks, and layers without positions": (LLAMA_4, LLAMA_4_LAYERS),
    "gated delta net, and gated attention": (DELTA_NET, DELTA_NET_LAYERS),
    "Mamba-2, attention, experts or feed-forward alone": (MAMBA_2, MAMBA_2_LAYERS),
}
LENGTHS = [(1, 1), (1, 6), (5, 1), (4, 9), (12, 7)]


def multiplied(matrices: Matrices) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices)


def read(case: str) -> tuple[Architecture, list[Layer], int]:
    """What the library reads, the layers by hand, and the weights of the head."""
    config, layers = CASES[case]
    return models.from_config(config, case), layers, config["hidden_size"] * config["vocab_size"]


def flops(layers: list[Layer], head: int, tokens: range, emitted: int, decode: bool) -> int:
    total = 2 * head * emitted
    for token, layer in product(tokens, layers):
        total += 2 * multiplied(layer.matrices) + 2 * layer.chosen * multiplied(layer.expert) + layer.state_flops
        width = layer.cached + layer.latent if decode and layer.latent else layer.key + layer.value
        for _ in layer.attended(token):
            total += layer.heads * 2 * width
    return total


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_flops(case: str, n: int, m: int) -> None:
    found, layers, head = read(case)
    prefill = flops(layers, head, range(1, n + 1), 1, decode=False)
    decode = [flops(layers, head, range(token, token + 1), 1, decode=True) for token in range(n + 1, n + m)]
    assert found.prefill_flops(n) == prefill
    assert [found.decode_flops(context) for context in range(n + 1, n + m)] == decode
    assert found.request_flops(n, m) == prefill + sum(decode)


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_bytes_of_cache_and_state(case: str, n: int, m: int) -> None:
    found, layers, _ = read(case)
    written = sum(layer.kept(n) for layer in layers) * 2 + sum(layer.state for layer in layers)
    moved = written
    for token, layer in product(range(n + 1, n + m), layers):
        moved += 2 * layer.cached * (len(layer.attended(token)) + 1) + 2 * layer.state
    assert found.kv_bytes(n, 2) == written
    assert found.request_cache_bytes(n, m, 2) == moved


def choices(layer: Layer, tokens: int) -> Iterator[int]:
    """How many experts a pass reads, for every way that its tokens can choose them."""
    ways = list(combinations(range(layer.experts), layer.chosen))
    return (len(set().union(*way)) for way in product(ways, repeat=tokens))


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_bytes_of_weights(case: str, tokens: int) -> None:
    """Experts as on average over all choices."""
    found, layers, head = read(case)
    total: float = head
    for layer in layers:
        total += multiplied(layer.matrices)
        if layer.experts:
            numbers = list(choices(layer, tokens))
            total += sum(numbers) / len(numbers) * multiplied(layer.expert)
    assert found.pass_bytes(tokens, ElementBytes(2, 2, 2)) == pytest.approx(2 * total, rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_its_passes(case: str) -> None:
    found, _, _ = read(case)
    sizes = ElementBytes(0.5, 1, 2)
    whole = found.batch_weight_bytes(6, 4, 3, sizes) + 3 * found.request_cache_bytes(6, 4, sizes.cached)
    passes = found.prefill_bytes(6, 3, sizes) + sum(found.decode_bytes(context, 3, sizes) for context in (7, 8, 9))
    assert whole == pytest.approx(passes, rel=1e-12)


def test_layers_that_share_a_cache_read_it_and_keep_nothing() -> None:
    config = {
        **{"model_type": "gemma3n_text", "architectures": ["Gemma3nForCausalLM"], "hidden_size": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 4},
        **{"intermediate_size": 20, "vocab_size": 30, "vocab_size_per_layer_input": 30, "num_kv_shared_layers": 2},
        **{"layer_types": ["full_attention"] * 4, "hidden_size_per_layer_input": 4, "laurel_rank": 2},
        **{"activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2},
    }
    found = models.from_config(config, "shared")
    assert found.kv_bytes(10, 2) == 2 * 10 * 16 * 2
    assert found.request_cache_bytes(10, 2, 2) == 2 * 10 * 16 * 2 + 4 * (11 + 1) * 16 * 2


def test_layers_that_the_config_calls_linear_keep_a_state_and_no_positions() -> None:
    """The name of a class may say "linear" of a layer that attends; the config's name of the layer decides."""
    config = {
        **{"model_type": "minimax", "architectures": ["MiniMaxForCausalLM"], "hidden_size": 16, "vocab_size": 30},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 3},
        **{"intermediate_size": 6, "num_local_experts": 4, "num_experts_per_tok": 2},
        **{"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    }
    found = models.from_config(config, "linear")
    assert found.kv_bytes_per_token(2) == 1 * 2 * 2 * 4 * 2
    assert found.kv_bytes(10, 2) == 10 * 32 + 2 * (4 * 4 * 4) * 2
    latent = {
        **{"model_type": "kimi_linear", "architectures": ["KimiLinearForCausalLM"], "hidden_size": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2, "head_dim": 4},
        **{"kv_lora_rank": 8, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 4, "vocab_size": 30},
        **{"intermediate_size": 20, "layer_types": ["linear_attention", "full_attention"]},
    }
    assert models.from_config(latent, "latent").kv_bytes_per_token(2) == (8 + 2) * 2
