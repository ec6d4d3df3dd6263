"""Parameters, FLOPs, bytes moved and KV cache of a decoder-only transformer, from its published config.json.

Symbols of the formulas: L layers, d hidden size, h query heads, k_h key/value heads, d_h head size, a = h d_h,
k = k_h d_h, f feed-forward width, g matrices per feed-forward block, V vocabulary, s bytes per element, n input tokens,
m output tokens, B requests per batch. The prefill pass emits output token 1; m - 1 decode passes emit the rest.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sweetspot.errors import SweetspotError

_OPT_POSITION_OFFSET = 2  # OPT's position table starts at index 2, so it has two rows more than positions


class ElementBytes(NamedTuple):
    """Bytes of a weight and of a cached key or value."""

    weight: float
    cached: int


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a model, in elements and tokens. `dataclasses.asdict` makes it plain JSON, fit for a digest."""

    name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    gated: bool
    vocabulary: int
    tied_embeddings: bool
    max_positions: int
    learned_positions: bool
    sliding_window: int | None
    sliding_layers: int
    embedding_size: int  # differs from `hidden` if the embeddings are projected (OPT-350M)
    norms: int  # normalisations per layer
    norm_vectors: int  # 1: RMSNorm (weight); 2: LayerNorm (weight and bias)
    final_norm: bool
    qkv_bias: bool
    output_bias: bool
    ffn_bias: bool
    source: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> "Architecture":
        """Read the keys of a publisher's config.json (the layout of Hugging Face transformers).

        Absent keys take the default that transformers gives them for the model type. Raises SweetspotError, naming the
        key and the remedy, for anything missing, malformed or not modelled.
        """
        family = _family(config, name)
        read = _Reader(config, name, family)
        layers, hidden, heads = (
            read.integer(key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        kv_heads = _kv_heads(read, heads)
        head_size = _head_size(read, hidden, heads)
        window, sliding_layers = _sliding(read, layers)
        model_type = config["model_type"]
        opt, falcon, qwen2 = (model_type == kind for kind in ("opt", "falcon", "qwen2"))
        bias = (opt and read.flag("enable_bias")) or (falcon and read.flag("bias"))
        attention_bias = bias or (not qwen2 and read.flag("attention_bias"))
        return cls(
            name=name,
            model_type=model_type,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            ffn=read.integer(family.ffn_key, default=4 * hidden if falcon else None),
            gated=family.gated,
            vocabulary=read.integer("vocab_size"),
            tied_embeddings=read.flag("tie_word_embeddings"),
            max_positions=read.integer("max_position_embeddings"),
            learned_positions=opt,
            sliding_window=window,
            sliding_layers=sliding_layers,
            embedding_size=read.integer("word_embed_proj_dim", default=hidden) if opt else hidden,
            norms=1 if falcon and read.flag("parallel_attn") else family.norms,
            norm_vectors=family.norm_vectors,
            final_norm=not opt or read.flag("do_layer_norm_before"),
            qkv_bias=attention_bias or qwen2,
            output_bias=attention_bias,
            ffn_bias=bias or read.flag("mlp_bias"),
            source=str(config.get("_source", "")),
        )

    @property
    def attention(self) -> str:
        """How query heads share keys and values: "MHA" (not at all), "GQA" (in groups) or "MQA" (all of them)."""
        if self.kv_heads == self.heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"

    def parameters(self) -> int:
        """Return the number of parameters, shared ones counted once; s bytes each give the memory footprint."""
        d, a, k = self.hidden, self._query_width, self._kv_width
        norm = self.norm_vectors * d
        per_layer = self.layer_weights() + self.norms * norm
        per_layer += self.qkv_bias * (a + 2 * k) + self.output_bias * d
        per_layer += self.ffn_bias * ((self._ffn_matrices - 1) * self.ffn + d)
        embeddings = self._head_weights * (1 if self.tied_embeddings else 2) + self._projection_weights
        positions = (self.max_positions + _OPT_POSITION_OFFSET) * d if self.learned_positions else 0
        return self.layers * per_layer + embeddings + positions + self.final_norm * norm

    def layer_weights(self) -> int:
        """Return W_l = 2 d a + 2 d k + g d f, the elements of a layer's weight matrices."""
        return self.hidden * (2 * self._query_width + 2 * self._kv_width + self._ffn_matrices * self.ffn)

    def matmul_weights(self) -> int:
        """Return W = L W_l + V d, the elements of the weight matrices that every pass reads.

        With projected embeddings (width e instead of d) it is L W_l + 2 d e + V e.
        """
        return self._token_weights + self._head_weights

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Return c_kv = 2 L k s, the bytes that one token adds to the KV cache while no sliding window is full."""
        return self.layers * self._kv_bytes_per_layer(bytes_per_element)

    def kv_bytes(self, tokens: int, bytes_per_element: int) -> int:
        """Return the bytes of KV cache of one request of `tokens` tokens; a sliding layer keeps at most its window."""
        return self._over_layers(tokens, self._kept(tokens)) * self._kv_bytes_per_layer(bytes_per_element)

    def prefill_flops(self, input_tokens: int) -> int:
        """Return the FLOPs of one request's prefill: causal attention, logits of the last token only."""
        return 2 * self._token_weights * input_tokens + 2 * self._head_weights + self._attention_flops(0, input_tokens)

    def decode_flops(self, context: int) -> int:
        """Return the FLOPs of one request's decode pass that attends to `context` positions, its own included.

        Decode pass j (j = 1 .. m - 1) after a prompt of n tokens has context n + j.
        """
        return 2 * self.matmul_weights() + self._attention_flops(context - 1, context)

    def request_flops(self, input_tokens: int, output_tokens: int) -> int:
        """Return F(n, m) = 2 L W_l (n+m-1) + 2 V d m + 2 L a (n+m-1)(n+m), the FLOPs of one request (n, m >= 1).

        A sliding layer attends to at most its window, which lowers its share of the last term.
        """
        processed = input_tokens + output_tokens - 1
        matmul = 2 * self._token_weights * processed + 2 * self._head_weights * output_tokens
        return matmul + self._attention_flops(0, processed)

    def prefill_bytes(self, input_tokens: int, batch: int, sizes: ElementBytes) -> float:
        """Return the bytes that a batch's prefill moves: weights read once, KV cache written. No activations."""
        return self.matmul_weights() * sizes.weight + batch * self.kv_bytes(input_tokens, sizes.cached)

    def decode_bytes(self, context: int, batch: int, sizes: ElementBytes) -> float:
        """Return the bytes that a batch's decode pass moves; `context` as in `decode_flops`. No activations.

        All weights are read once; each request reads `context` cached positions and writes one.
        """
        written = self.kv_bytes_per_token(sizes.cached)
        read = self.kv_bytes(context, sizes.cached)
        return self.matmul_weights() * sizes.weight + batch * (read + written)

    def request_batch_bytes(self, input_tokens: int, output_tokens: int, batch: int, sizes: ElementBytes) -> float:
        """Return Y(n, m) = m W s + B c_kv (n m + m - 1 + m (m - 1) / 2), the bytes of one batch. No activations.

        Summed over its passes (n, m >= 1). A sliding layer reads and keeps at most its window.
        """
        n, m, window = input_tokens, output_tokens, self.sliding_window
        last = n + m - 1
        full = n + (m - 1) + _attended(last, None) - _attended(n, None)
        sliding = self._kept(n) + (m - 1) + _attended(last, window) - _attended(n, window)
        cache = self._over_layers(full, sliding) * self._kv_bytes_per_layer(sizes.cached)
        return m * self.matmul_weights() * sizes.weight + batch * cache

    @property
    def _query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def _kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def _ffn_matrices(self) -> int:
        return 3 if self.gated else 2

    @property
    def _projection_weights(self) -> int:
        return 0 if self.embedding_size == self.hidden else 2 * self.hidden * self.embedding_size

    @cached_property
    def _token_weights(self) -> int:
        """Weights applied to every processed token, prompt tokens included."""
        return self.layers * self.layer_weights() + self._projection_weights

    @cached_property
    def _head_weights(self) -> int:
        """Weights applied only to tokens whose successor is generated."""
        return self.vocabulary * self.embedding_size

    def _kv_bytes_per_layer(self, bytes_per_element: int) -> int:
        return 2 * self._kv_width * bytes_per_element

    def _kept(self, tokens: int) -> int:
        return tokens if self.sliding_window is None else min(tokens, self.sliding_window)

    def _over_layers(self, full: int, sliding: int) -> int:
        return (self.layers - self.sliding_layers) * full + self.sliding_layers * sliding

    def _attention_flops(self, before: int, upto: int) -> int:
        """FLOPs of scores and weighted values (2 a each per attended position) for tokens before + 1 .. upto."""
        full = _attended(upto, None) - _attended(before, None)
        sliding = _attended(upto, self.sliding_window) - _attended(before, self.sliding_window)
        return 4 * self._query_width * self._over_layers(full, sliding)


def load(path: Path) -> Architecture:
    """Read an architecture file, or the config.json in a directory; the model is named after the file or directory.

    Raises SweetspotError naming the file, the key and the remedy.
    """
    file, config = _read(path)
    try:
        return Architecture.from_config(config, file.parent.resolve().name if file.name == "config.json" else file.stem)
    except SweetspotError as error:
        raise SweetspotError(f"{file}: {error}") from None


def resolved(path: Path) -> dict[str, Any]:
    """What a job needs to know about a model: dimensions, parameters, the publisher's keys (without our own "_" keys).

    Raises SweetspotError as `load` does.
    """
    architecture, config = load(path), _read(path)[1]
    return {
        "schema_version": 1,
        "parameters": architecture.parameters(),
        "architecture": asdict(architecture),
        "config": {key: value for key, value in config.items() if not key.startswith("_")},
    }


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SweetspotError(
            f"{file}: no such file; give an architecture file or a directory that holds the publisher's config.json"
        ) from None
    except OSError as error:
        raise SweetspotError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
    except ValueError as error:
        raise SweetspotError(f"{file}: not valid JSON ({error}); truncated? Copy the config.json again") from None
    if not isinstance(config, dict):
        raise SweetspotError(f"{file}: is not a JSON object; give the publisher's config.json, not a list or a number")
    return file, config


@dataclass(frozen=True)
class _Family:
    """What a model type implies beyond its config.json. `defaults`: values that transformers gives to absent keys."""

    gated: bool = True
    ffn_key: str = "intermediate_size"
    norms: int = 2
    norm_vectors: int = 1
    defaults: Mapping[str, int | bool] = field(default_factory=dict)
    optional_kv_heads: bool = False  # without num_key_value_heads there is one per query head
    needs_head_dim: bool = False  # without head_dim the head size is not hidden / heads


_UNTIED, _TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
_FALCON = {"max_position_embeddings": 2048, "multi_query": True, "parallel_attn": True}
# Sources: configuration_*.py and modeling_*.py of these model types in Hugging Face transformers.
_FAMILIES = {
    "falcon": _Family(gated=False, ffn_key="ffn_hidden_size", norm_vectors=2, defaults=_TIED | _FALCON),
    "gemma": _Family(needs_head_dim=True, defaults=_TIED),
    "gemma2": _Family(needs_head_dim=True, norms=4, defaults=_TIED),
    "granite": _Family(optional_kv_heads=True, defaults=_UNTIED),
    "llama": _Family(optional_kv_heads=True, defaults=_UNTIED),
    "mistral": _Family(defaults=_UNTIED),
    "opt": _Family(
        gated=False,
        ffn_key="ffn_dim",
        norm_vectors=2,
        defaults=_TIED | {"enable_bias": True, "do_layer_norm_before": True},
    ),
    "qwen2": _Family(defaults=_UNTIED),
}
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")


class _Reader:
    """Checked access to a config.json. A key that is null counts as absent."""

    def __init__(self, config: Mapping[str, Any], name: str, family: _Family) -> None:
        self.config, self.name, self.family = config, name, family

    def refuse(self, key: str, problem: str) -> SweetspotError:
        return SweetspotError(f"{self.name}: key {key!r} {problem}")

    def get(self, key: str) -> Any:
        value = self.config.get(key)
        return self.family.defaults.get(key) if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise self.refuse(key, "is missing; copy it from the publisher's config.json")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(key, f"is {value!r}, not an integer; write it as in the publisher's config.json")
        if value <= 0:
            raise self.refuse(key, f"is {value}; it must be positive, as in the publisher's config.json")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, f"is {value!r}; write true or false")
        return bool(value)


def _family(config: Mapping[str, Any], name: str) -> _Family:
    for key in _EXPERT_KEYS:
        if config.get(key) not in (None, 0, 1):
            raise SweetspotError(
                f"{name}: key {key!r} is {config[key]!r}: mixtures of experts are not modelled yet; "
                "choose a dense model"
            )
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        problem = "is missing" if model_type is None else f"is {model_type!r}, which is not known"
        raise SweetspotError(
            f"{name}: key 'model_type' {problem}; known: {', '.join(_FAMILIES)}. To add one, describe it in _FAMILIES "
            "of workflow/sweetspot/architecture.py and test its parameter count against the published one"
        )
    return _FAMILIES[model_type]


def _kv_heads(read: _Reader, heads: int) -> int:
    if read.config["model_type"] == "opt":
        return heads
    if read.config["model_type"] == "falcon":
        if read.flag("new_decoder_architecture"):
            raise read.refuse("new_decoder_architecture", "is true: not modelled yet; choose a first-generation Falcon")
        # Falcon ignores num_kv_heads when multi_query is set: the published file of Falcon 7B says 71 but means 1.
        key, default = ("num_kv_heads", heads)
        kv_heads = 1 if read.flag("multi_query") else read.integer(key, default)
    else:
        key, optional = "num_key_value_heads", heads if read.family.optional_kv_heads else None
        kv_heads = read.integer(key, optional)
    if heads % kv_heads:
        raise read.refuse(key, f"is {kv_heads}, which does not divide num_attention_heads {heads}; correct one of them")
    return kv_heads


def _head_size(read: _Reader, hidden: int, heads: int) -> int:
    if read.get("head_dim") is None and not read.family.needs_head_dim and hidden % heads:
        raise read.refuse(
            "hidden_size", f"is {hidden}, not divisible by num_attention_heads {heads}; add head_dim or correct one"
        )
    return read.integer("head_dim", default=None if read.family.needs_head_dim else hidden // heads)


def _sliding(read: _Reader, layers: int) -> tuple[int | None, int]:
    """Return the window (tokens) and how many layers use it."""
    model_type, kinds = read.config["model_type"], read.get("layer_types")
    if model_type not in ("gemma2", "mistral", "qwen2") or (
        model_type == "qwen2" and not read.flag("use_sliding_window")
    ):
        return None, 0
    if model_type != "gemma2" and read.get("sliding_window") is None:
        return None, 0
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
            raise read.refuse("layer_types", f"must list full_attention or sliding_attention for {layers} layers")
        sliding = kinds.count("sliding_attention")
    elif model_type == "gemma2":
        sliding = (layers + 1) // 2
    elif model_type == "qwen2":
        sliding = max(0, layers - read.integer("max_window_layers"))
    else:
        sliding = layers
    return (read.integer("sliding_window"), sliding) if sliding else (None, 0)


def _attended(tokens: int, window: int | None) -> int:
    """Return how many positions tokens 1 .. `tokens` attend to in one layer: the sum of min(i, window)."""
    full = tokens if window is None else min(tokens, window)
    return full * (full + 1) // 2 + (tokens - full) * full
