import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweetspot import models
from sweetspot.architecture import Architecture
from sweetspot.memory import Memory
from sweetspot.models import load
from sweetspot.precision import ElementBytes

FILES = sorted((Path(__file__).parents[1] / "resources" / "architectures").glob("*.json"))

# Small models of every kind
GQA = {
    "model_type": "llama",
    "hidden_size": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MHA = {
    "model_type": "opt",
    "hidden_size": 8,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "vocab_size": 31,
    "max_position_embeddings": 40,
}
PROJECTED = MHA | {"word_embed_proj_dim": 4, "do_layer_norm_before": False}
MQA = {
    "model_type": "falcon",
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_kv_heads": 3,
    "multi_query": True,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}
SLIDING = {
    "model_type": "gemma2",
    "hidden_size": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 14,
    "num_hidden_layers": 5,
    "vocab_size": 60,
    "max_position_embeddings": 128,
    "sliding_window": 7,
}
BIASED = GQA | {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 4}
ALL_SLIDING = GQA | {"model_type": "mistral", "sliding_window": 5, "head_dim": 4}
SMALL = {
    "gqa": GQA,
    "mha": MHA,
    "projected": PROJECTED,
    "mqa": MQA,
    "sliding": SLIDING,
    "biased": BIASED,
    "all-sliding": ALL_SLIDING,
    "llama-biased": GQA | {"attention_bias": True, "mlp_bias": True, "head_dim": 4},
    "qwen2-ignored-bias": BIASED | {"attention_bias": True},
    "opt-unbiased": MHA | {"enable_bias": False},
    "falcon-sequential": MQA | {"multi_query": False, "parallel_attn": False, "bias": True},
}
# (n, m) below, across and above the sliding windows of 5 and 7 tokens.
LENGTHS = [(1, 1), (1, 5), (6, 1), (4, 9), (7, 2), (7, 7), (8, 1), (15, 6)]


class Model:
    """A model written down matrix by matrix from its family's code in transformers, walked token by token."""

    def __init__(self, config: dict[str, Any]) -> None:
        kind, d, h = config["model_type"], config["hidden_size"], config["num_attention_heads"]
        falcon_kv = 1 if config.get("multi_query") else h
        kv: int = {"opt": h, "falcon": falcon_kv}.get(kind) or config["num_key_value_heads"]
        size: int = config.get("head_dim", d // h)
        f: int = 4 * d if kind == "falcon" else config["ffn_dim" if kind == "opt" else "intermediate_size"]
        count, vocabulary, e = config["num_hidden_layers"], config["vocab_size"], config.get("word_embed_proj_dim", d)
        plain = kind in ("opt", "falcon")
        self.kv_heads, self.heads, self.head_size = kv, int(h), size
        # One layer: (rows, columns) of its matrices, and the lengths of its vectors.
        self.matrices: list[tuple[int, int]] = [(d, h * size), (d, kv * size), (d, kv * size), (h * size, d)]
        self.matrices += [(d, f), (f, d)] if plain else [(d, f), (d, f), (f, d)]
        outputs = [columns for _, columns in self.matrices]
        biases = {"opt": outputs, "qwen2": outputs[:3]}.get(kind, [])
        if config.get("bias") or config.get("mlp_bias"):
            biases = outputs
        biases = biases if config.get("enable_bias", True) else []
        norms = {"opt": 2, "falcon": 1 if config.get("parallel_attn", True) else 2, "gemma2": 4}.get(kind, 2)
        norm = [d, d] if plain else [d]
        self.vectors: list[int] = biases + norm * norms
        self.projections: list[tuple[int, int]] = [(e, d), (d, e)] if e != d else []
        self.head: tuple[int, int] = (e, vocabulary)
        self.windows: list[int | None] = [None] * count
        if kind == "gemma2":
            self.windows = [config["sliding_window"] if layer % 2 == 0 else None for layer in range(count)]
        if kind == "mistral":
            self.windows = [config["sliding_window"]] * count
        self.extra: int = vocabulary * e * (1 if config.get("tie_word_embeddings", True) else 2)
        self.extra += (config["max_position_embeddings"] + 2) * d if kind == "opt" else 0
        self.extra += sum(norm) if config.get("do_layer_norm_before", True) else 0

    def parameters(self) -> int:
        total = self.extra + sum(rows * columns for rows, columns in self.projections)
        for _ in self.windows:
            total += sum(rows * columns for rows, columns in self.matrices) + sum(self.vectors)
        return total

    def weights_read(self) -> int:
        total = self.head[0] * self.head[1] + sum(rows * columns for rows, columns in self.projections)
        for _ in self.windows:
            total += sum(rows * columns for rows, columns in self.matrices)
        return total

    def attended(self, token: int, window: int | None) -> list[int]:
        """The positions (from 1) that a token attends to in a layer, itself included."""
        return [p for p in range(1, token + 1) if window is None or p > token - window]

    def flops(self, tokens: range, emitted: int) -> int:
        total = 0
        for token in tokens:
            total += sum(2 * rows * columns for rows, columns in self.projections)
            for window in self.windows:
                total += sum(2 * rows * columns for rows, columns in self.matrices)
                for _ in range(self.heads):
                    for _ in self.attended(token, window):
                        total += 2 * self.head_size  # the score: a dot product
                        total += 2 * self.head_size  # the weighted value added to the result
        return total + emitted * 2 * self.head[0] * self.head[1]

    def cached(self, tokens: int) -> int:
        """Elements in the KV cache of a request of that many tokens: those the next token may still attend to."""
        return sum(2 * self.kv_heads * self.head_size * len(self.attended(tokens, w)) for w in self.windows)

    def bytes_moved(self, n: int, m: int, batch: int, size: int) -> int:
        total = self.weights_read() * size + batch * self.cached(n) * size
        for generated in range(1, m):
            total += self.weights_read() * size
            for _ in range(batch):
                total += self.cached(n + generated) * size
                total += sum(2 * self.kv_heads * self.head_size for _ in self.windows) * size
        return total


def whole_batch(a: Architecture, n: int, m: int, batch: int, sizes: ElementBytes) -> float:
    return a.batch_weight_bytes(n, m, batch, sizes) + batch * a.request_cache_bytes(n, m, sizes.cached)


def windows(a: Architecture) -> tuple[int | None, int]:
    """The window, and how many layers have one."""
    found = [block for block in a.blocks if block.window]
    return (found[0].window if found else None), sum(block.count for block in found)


def small(kind: str) -> tuple[Architecture, Model]:
    return models.from_config(SMALL[kind], kind), Model(SMALL[kind])


def test_the_models_of_the_study_and_the_demo_are_there() -> None:
    sizes = (
        "falcon 7b, gemma-2 2b 9b, granite-3.1 2b 8b, llama-3.1 8b, llama-3.2 1b 3b, opt 1.3b 2.7b 6.7b, "
        "qwen2 1.5b 7b, qwen3 30b-a3b 8b"
    )
    families = [line.split() for line in sizes.split(",")]
    assert [file.stem for file in FILES] == [f"{family}-{size}" for family, *rest in families for size in rest]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parameters_equal_the_published_total(file: Path) -> None:
    assert load(file).parameters == json.loads(file.read_text())["_published_parameters"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_is_named_after_its_source(file: Path) -> None:
    architecture = load(file)
    assert architecture.name == file.stem
    assert file.stem in architecture.source.lower()
    assert "published 20" in architecture.source


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("opt-1.3b", ("MHA", 2048, None, 0)),
        ("falcon-7b", ("MQA", 2048, None, 0)),
        ("llama-3.1-8b", ("GQA", 131072, None, 0)),
        ("gemma-2-9b", ("GQA", 8192, 4096, 21)),
        ("qwen2-7b", ("GQA", 131072, None, 0)),
        ("granite-3.1-2b", ("GQA", 131072, None, 0)),
    ],
)
def test_published_facts(name: str, facts: tuple[str, int, int | None, int]) -> None:
    a = load(next(file for file in FILES if file.stem == name))
    assert (a.attention, a.max_positions, *windows(a)) == facts


def test_known_kv_cache_sizes() -> None:
    """KiB per token in 16 bits, as widely published."""
    sizes = {file.stem: load(file).kv_bytes_per_token(2) for file in FILES}
    assert [sizes[name] / 1024 for name in ("llama-3.1-8b", "falcon-7b", "opt-6.7b")] == [128, 8, 512]


def test_opt_350m_projects_its_embeddings() -> None:
    """OPT-350M (331,196,416 parameters) is the only OPT with projected embeddings and without a final norm."""
    config = {
        "model_type": "opt",
        "hidden_size": 1024,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
    }
    assert models.from_config(config, "opt-350m").parameters == 331_196_416


# Formulas against brute force


@pytest.mark.parametrize("kind", SMALL)
def test_weights_by_brute_force(kind: str) -> None:
    architecture, model = small(kind)
    assert architecture.blocks[0].weights == sum(rows * columns for rows, columns in model.matrices)
    assert architecture.pass_bytes(1, ElementBytes(1, 1, 1)) == model.weights_read()
    assert architecture.parameters == model.parameters()


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("kind", SMALL)
def test_flops_by_brute_force(kind: str, n: int, m: int) -> None:
    architecture, model = small(kind)
    assert architecture.prefill_flops(n) == model.flops(range(1, n + 1), emitted=1)
    assert architecture.decode_flops(n) == model.flops(range(n, n + 1), emitted=1)
    assert architecture.request_flops(n, m) == model.flops(range(1, n + m), emitted=m)


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("kind", SMALL)
def test_bytes_by_brute_force(kind: str, n: int, m: int) -> None:
    architecture, model = small(kind)
    for batch, size in ((1, 2), (3, 1), (5, 4)):
        sizes = ElementBytes(size, size, size)
        assert architecture.prefill_bytes(n, batch, sizes) == model.bytes_moved(n, 1, batch, size)
        assert whole_batch(architecture, n, m, batch, sizes) == model.bytes_moved(n, m, batch, size)
        assert architecture.kv_bytes(n, size) == model.cached(n) * size


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("kind", SMALL)
def test_a_request_is_the_sum_of_its_passes(kind: str, n: int, m: int) -> None:
    a, _ = small(kind)
    contexts = range(n + 1, n + m)
    assert a.request_flops(n, m) == a.prefill_flops(n) + sum(a.decode_flops(c) for c in contexts)
    sizes = ElementBytes(0.5, 2, 2)
    passes = a.prefill_bytes(n, 3, sizes) + sum(a.decode_bytes(c, 3, sizes) for c in contexts)
    assert whole_batch(a, n, m, 3, sizes) == passes


def test_formulas_as_written_down() -> None:
    """F and Y of the documentation, term by term, for a model without a window."""
    a, _ = small("gqa")
    n, m, batch, s = 9, 4, 3, 2
    layer, width, head = a.blocks[0].weights, a.heads * a.blocks[0].head_size, a.vocabulary * a.hidden
    f = 2 * a.layers * layer * (n + m - 1) + 2 * head * m + 2 * a.layers * width * (n + m - 1) * (n + m)
    y = m * a.pass_bytes(1, ElementBytes(s, s, s)) + batch * a.kv_bytes_per_token(s) * (
        n * m + m - 1 + m * (m - 1) // 2
    )
    assert a.request_flops(n, m) == f
    assert whole_batch(a, n, m, batch, ElementBytes(s, s, s)) == y


def test_kinds_of_attention() -> None:
    assert [small(kind)[0].attention for kind in ("mha", "gqa", "mqa")] == ["MHA", "GQA", "MQA"]


@pytest.mark.parametrize("kind", SMALL)
def test_kv_capacity_is_the_last_request_that_fits(kind: str) -> None:
    architecture, model = small(kind)
    for n, m in LENGTHS:
        one = model.cached(n + m) * 2
        for cache, fit in ((10 * one, 10), (10 * one - 1, 9), (one - 1, 0), (-one, 0)):
            assert Memory(architecture, 0, 0, cache, 2).requests(n, m) == fit


def test_windows_of_newer_configs() -> None:
    """`layer_types` of newer files and Qwen2's `max_window_layers` say which layers slide."""
    kinds = ["full_attention"] * 4 + ["sliding_attention"]
    assert windows(models.from_config(SLIDING | {"layer_types": kinds}, "x")) == (7, 1)
    qwen2 = BIASED | {"use_sliding_window": True, "max_window_layers": 2}
    assert windows(models.from_config(qwen2, "x")) == (4, 1)
    assert windows(models.from_config(qwen2 | {"max_window_layers": 3}, "x")) == (None, 0)
    assert windows(models.from_config(ALL_SLIDING | {"sliding_window": None}, "x")) == (None, 0)


def test_multi_head_models_may_leave_out_their_kv_heads() -> None:
    config = {key: value for key, value in GQA.items() if key != "num_key_value_heads"}
    assert models.from_config(config, "x").kv_heads == 6


@pytest.mark.parametrize("kind", SMALL)
def test_an_architecture_survives_json(kind: str) -> None:
    architecture, _ = small(kind)
    assert Architecture.of(json.loads(json.dumps(architecture.as_dict()))) == architecture


def test_needs_the_standard_library_only() -> None:
    """The module runs in an engine's environment, where the analysis packages are absent."""
    code = (
        "import sys; before = set(sys.modules); import sweetspot.architecture; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["sweetspot"]
