"""Rows that others measured on one H100, and the models in them, for the benchmarks.

LLM-Inference-Bench (SC24 workshops; argonne-lcf/LLM-Inference-Bench, commit 4211f5d4, Plots/Fig_16_a_b; BSD-3-Clause,
Copyright (c) 2024, UChicago Argonne, LLC): 1024 tokens in, 1024 out; energy is average power times latency. ML.ENERGY
v3 (Chung et al., NeurIPS D&B 2025; ml-energy/leaderboard, commit 0cd52dab, Apache-2.0): vLLM 0.11.1, a server kept
busy; the length of the prompts is not published. Its mixtures of experts, hybrids with Mamba, and tasks with images or
video are left out.
"""

from typing import Any

from sweetspot import models

PROMPT_TOKENS = 200  # of ML.ENERGY: not published

# Chat. Running batch, output tokens of a request (both means), J of a request with its prompt, output tokens/s.
ML_ENERGY = {
    "Qwen/Qwen3-14B": [
        (7.99, 619.5, 437.45, 627.4),
        (15.97, 621.6, 247.58, 1168.2),
        (31.92, 611.4, 149.24, 2023.2),
        (63.84, 617.2, 103.19, 3140.3),
        (95.88, 622.8, 89.39, 3774.8),
        (127.71, 613.5, 78.44, 4474.4),
        (191.66, 612.6, 70.71, 5309.1),
        (253.41, 624.6, 69.90, 5760.3),
    ],
    "Qwen/Qwen3-32B": [
        (7.99, 637.7, 1100.48, 312.0),
        (15.97, 625.5, 601.34, 589.0),
        (29.26, 629.3, 392.69, 960.5),
    ],
    "Qwen/Qwen3-8B": [
        (7.97, 646.6, 287.09, 961.7),
        (15.96, 660.1, 170.75, 1744.9),
        (31.94, 646.8, 105.62, 2927.9),
        (63.88, 644.5, 76.84, 4314.7),
        (95.82, 642.0, 66.45, 5254.7),
        (127.80, 641.4, 61.98, 5930.3),
        (191.69, 658.6, 57.01, 6932.1),
        (255.49, 654.0, 53.62, 7718.8),
        (382.98, 648.3, 48.80, 8257.5),
        (474.40, 645.1, 46.53, 8534.6),
    ],
    "google/gemma-3-12b-it": [
        (7.98, 728.0, 511.13, 604.3),
        (15.97, 723.6, 302.40, 1082.3),
        (31.94, 725.2, 196.38, 1786.6),
        (63.89, 717.7, 144.14, 2691.4),
        (95.84, 729.1, 130.13, 3224.4),
        (127.78, 723.0, 120.11, 3545.6),
    ],
    "google/gemma-3-27b-it": [
        (7.99, 719.1, 1086.46, 337.8),
        (15.97, 725.5, 626.41, 624.6),
        (31.73, 714.3, 375.12, 1088.2),
    ],
    "meta-llama/Llama-3.1-8B-Instruct": [
        (7.98, 388.7, 176.77, 1069.6),
        (15.95, 404.2, 106.21, 1953.6),
        (31.91, 390.3, 64.43, 3391.1),
        (63.92, 395.5, 46.90, 5147.2),
        (95.70, 392.8, 40.41, 6260.1),
        (127.62, 404.6, 38.48, 7036.5),
        (191.66, 396.8, 33.21, 8223.3),
        (255.19, 404.2, 30.98, 9009.6),
        (383.01, 394.3, 29.27, 9248.0),
        (510.87, 396.7, 27.84, 9805.6),
        (690.87, 397.4, 28.35, 9602.8),
    ],
}
# The same for questions that need long replies (GPQA).
ML_ENERGY_GPQA = {
    "Qwen/Qwen3-14B": [
        (8.00, 6930.4, 6057.80, 553.3),
        (16.00, 7432.0, 3975.49, 924.0),
        (32.00, 6939.3, 2455.57, 1485.6),
        (59.01, 6710.8, 1876.09, 2146.2),
    ],
    "Qwen/Qwen3-8B": [
        (8.00, 7854.2, 4740.50, 817.9),
        (16.00, 7861.3, 3166.05, 1344.8),
        (31.99, 8170.4, 2592.43, 1917.2),
        (63.28, 8366.6, 2232.27, 2510.2),
        (81.99, 8052.4, 1780.09, 3117.4),
    ],
}
# Model, batch, latency of the whole batch in s, energy of the whole batch in J; 1024 tokens in, 1024 out
VLLM = [
    ("Llama-2-7B", 1, 7.84, 2877.4),
    ("Llama-2-7B", 16, 13.17, 6515.7),
    ("Llama-2-7B", 32, 18.99, 10448.7),
    ("Llama-2-7B", 64, 32.64, 19407.9),
    ("Llama-3-8B", 1, 8.10, 2941.7),
    ("Llama-3-8B", 16, 11.02, 4456.2),
    ("Llama-3-8B", 32, 13.06, 5681.9),
    ("Llama-3-8B", 64, 18.81, 8566.9),
]
TENSORRT_LLM = [
    ("Llama-2-7B", 1, 7.188, 2967.9),
    ("Llama-2-7B", 16, 11.633, 5218.0),
    ("Llama-2-7B", 32, 15.931, 7196.0),
    ("Llama-2-7B", 64, 32.587, 14641.7),
    ("Llama-3-8B", 1, 7.729, 3198.9),
    ("Llama-3-8B", 16, 10.157, 4566.5),
    ("Llama-3-8B", 32, 12.493, 5596.6),
    ("Llama-3-8B", 64, 17.483, 7844.5),
]


def dimensions(layers: int, hidden: int, heads: int, kv: int, size: int, ffn: int, vocabulary: int) -> dict[str, Any]:
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    config = dict(zip(keys, (layers, hidden, heads, kv, size), strict=True))
    sizes = {"intermediate_size": ffn, "vocab_size": vocabulary, "max_position_embeddings": 40960}
    return {"model_type": "llama", **config, **sizes}


def gemma_3(layers: int, hidden: int, heads: int, kv: int, size: int, ffn: int) -> dict[str, Any]:
    """The text model: every sixth layer attends to everything, the others to a window of 1024."""
    kinds = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(layers)]
    config = dimensions(layers, hidden, heads, kv, size, ffn, 262208)
    return config | {"model_type": "gemma2", "sliding_window": 1024, "layer_types": kinds}


# Dimensions as in the publishers' config.json.
CONFIGS = {
    "Llama-2-7B": dimensions(32, 4096, 32, 32, 128, 11008, 32000),
    "Llama-3-8B": dimensions(32, 4096, 32, 8, 128, 14336, 128256),
    "Qwen/Qwen3-8B": dimensions(36, 4096, 32, 8, 128, 12288, 151936),
    "Qwen/Qwen3-14B": dimensions(40, 5120, 40, 8, 128, 17408, 151936),
    "Qwen/Qwen3-32B": dimensions(64, 5120, 64, 8, 128, 25600, 151936),
    "meta-llama/Llama-3.1-8B-Instruct": dimensions(32, 4096, 32, 8, 128, 14336, 128256),
    "google/gemma-3-12b-it": gemma_3(48, 3840, 16, 8, 256, 15360),
    "google/gemma-3-27b-it": gemma_3(62, 5376, 32, 16, 128, 21504),
}
ARCHITECTURES = {name: models.from_config(config, name) for name, config in CONFIGS.items()}
