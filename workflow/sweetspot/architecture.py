"""FLOPs, bytes moved, memory and KV cache of a decoder-only model. Package `models` reads one.

Symbols of the formulas: n input tokens, m output tokens, B requests per batch, s bytes per element; a layer has weights
W (elements of its matrices, without its routed experts), attention over a = h d_h query elements and c cached elements
per token. The prefill pass emits output token 1; m - 1 decode passes emit the rest. Standard library only.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sweetspot import precision
from sweetspot.precision import ElementBytes, Precision

NO_LIMIT = 1 << 31
"""The number of positions of a model without a limit."""


@dataclass(frozen=True)
class Layers:
    """Equal layers. Sizes in elements.

    A layer without attention has no `heads`, one without recurrent state no `state_bytes`. A latent cache (MLA) is
    read by all heads at once: `latent` elements for keys and values, the rest of `cached` for keys only.
    """

    count: int
    matrices: tuple[tuple[int, int], ...]  # inputs and outputs of each product; those of one input are one
    convolution: int = 0  # weights of short convolutions
    vectors: int = 0  # norms and biases, those of the experts included
    norms: int = 0  # normalisations of the hidden state
    ffn: int = 0  # inner width of the feed-forward block that every token passes; 0: none
    gated: bool = False
    heads: int = 0
    kv_heads: int = 0
    head_size: int = 0
    value_size: int = 0
    cached: int = 0  # that one token adds to the KV cache
    latent: int = 0
    shares_cache: bool = False  # whether it reads what an earlier layer keeps
    window: int | None = None  # positions attended to at most, its own included
    chunked: bool = False  # whether windows lie side by side instead of sliding
    state_bytes: int = 0  # of one request's recurrent state
    state_flops: int = 0  # per token
    experts: int = 0
    experts_per_token: int = 0
    expert_weights: int = 0  # of one routed expert
    plain_weights: float = 0  # of the matrices and convolutions, what stays in 16 bits if the rest is quantised
    plain_expert_weights: float = 0

    @property
    def weights(self) -> int:
        """W: weights that every token passes."""
        return _elements(self.matrices) + self.convolution

    def experts_read(self, tokens: float) -> float:
        """How many experts a pass of `tokens` tokens reads: E (1 - (1 - k / E)^tokens), if routing is uniform."""
        if not self.experts:
            return 0.0
        return float(self.experts * (1 - (1 - self.experts_per_token / self.experts) ** tokens))

    def kept(self, tokens: int) -> int:
        """Positions whose keys and values are kept for a request of `tokens` tokens."""
        if self.shares_cache:
            return 0
        return tokens if self.window is None else min(tokens, self.window)

    def attended(self, tokens: int) -> int:
        """How many positions tokens 1 .. `tokens` attend to in all."""
        if self.window is None or tokens <= self.window:
            return tokens * (tokens + 1) // 2
        window, whole = self.window, self.window * (self.window + 1) // 2
        if self.chunked:
            chunks, rest = divmod(tokens, window)
            return chunks * whole + rest * (rest + 1) // 2
        return whole + (tokens - window) * window

    def attention_flops(self, positions: int, decode: bool) -> int:
        """FLOPs of scores and weighted values: 2 (d_h + d_v) h per position; decode works on a latent cache itself."""
        width = self.cached + self.latent if decode and self.latent else self.head_size + self.value_size
        return 2 * self.heads * width * positions

    def weight_bytes(self, experts: float, sizes: ElementBytes) -> float:
        """Bytes of the matrices of one layer, with so many routed experts."""
        plain = self.plain_weights + experts * self.plain_expert_weights
        return (self.weights + experts * self.expert_weights - plain) * sizes.weight + plain * sizes.plain


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a model, in elements and tokens. `as_dict` makes it plain JSON, `of` reads that again."""

    name: str
    model_type: str
    hidden: int
    vocabulary: int
    max_positions: int
    blocks: tuple[Layers, ...]
    parameters: int  # all, shared ones counted once
    ends: tuple[tuple[int, int], ...]  # matrices beside the layers that every token passes
    head: tuple[tuple[int, int], ...]  # matrices for tokens whose successor is generated
    plain_head: bool = True  # whether the head stays in 16 bits if the rest is quantised
    not_modelled: tuple[tuple[str, int], ...] = ()  # what no number here accounts for, but memory, with its parameters
    precision: str = ""  # of the published weights
    source: str = ""
    digest: str = ""  # the same for models that differ only in their weights

    @property
    def limit(self) -> dict[str, Any]:
        """The most `tokens` of a request, prompt and reply together, and what it is that they fill."""
        return {"tokens": self.max_positions, "because": f"the {self.max_positions} positions of {self.name}"}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Architecture":
        """From what `as_dict` returned, or its JSON. Raises TypeError or KeyError for anything else."""
        pairs = {name: tuple(map(tuple, plain[name])) for name in ("ends", "head", "not_modelled")}
        blocks = [Layers(**{**block, "matrices": tuple(map(tuple, block["matrices"]))}) for block in plain["blocks"]]
        return cls(**{**plain, **pairs, "blocks": tuple(blocks)})

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def quantised(self) -> bool:
        """Whether the published weights are."""
        return precision.BITS[Precision.of(self.precision or "bfloat16").weights] < 16

    @cached_property
    def layers(self) -> int:
        """The number of layers."""
        return sum(block.count for block in self.blocks)

    @cached_property
    def attention_layers(self) -> Layers | None:
        """The first of the layers that attend, whose heads stand for all; None if none does."""
        return next((block for block in self.blocks if block.heads), None)

    @property
    def heads(self) -> int:
        """Query heads of a layer that attends; 0 if none does."""
        return self.attention_layers.heads if self.attention_layers else 0

    @property
    def kv_heads(self) -> int:
        """Key/value heads of a layer that attends; 0 if none does."""
        return self.attention_layers.kv_heads if self.attention_layers else 0

    @property
    def attention(self) -> str:
        """How query heads share keys and values: "MHA" (not at all), "GQA" (in groups), "MQA" or "MLA" (all one)."""
        attends = self.attention_layers
        if attends is None:
            return "none"
        if attends.latent:
            return "MLA"
        return "MHA" if self.kv_heads == self.heads else "MQA" if self.kv_heads == 1 else "GQA"

    @cached_property
    def active_parameters(self) -> int:
        """The parameters that a token passes, embeddings included: without other experts and what is not modelled."""
        idle = self._over_layers(lambda one: (one.experts - one.experts_per_token) * one.expert_weights)
        return self.parameters - int(idle) - sum(count for _, count in self.not_modelled)

    def weight_bytes(self, sizes: ElementBytes) -> float:
        """Bytes of all weights; tables that are looked up, and what is not modelled, in 16 bits."""
        layers = self._over_layers(lambda one: one.weight_bytes(one.experts, sizes) + one.vectors * sizes.plain)
        counted = self._over_layers(lambda one: one.weights + one.experts * one.expert_weights + one.vectors)
        rest = self.parameters * sizes.plain - counted * sizes.plain
        return layers + rest - (0 if self.plain_head else _elements(self.head) * (sizes.plain - sizes.weight))

    def pass_bytes(self, tokens: float, sizes: ElementBytes) -> float:
        """Bytes of weights that a pass of `tokens` tokens reads, each once; of experts those that its tokens choose."""
        layers = self._over_layers(lambda one: one.weight_bytes(one.experts_read(tokens), sizes))
        head = _elements(self.head) * (sizes.plain if self.plain_head else sizes.weight)
        return layers + _elements(self.ends) * sizes.plain + head

    def kv_bytes_per_token(self, bytes_per_element: float) -> float:
        """Bytes that one token adds to the KV cache while no window is full."""
        return self._over_layers(lambda one: 0 if one.shares_cache else one.cached) * bytes_per_element

    def kv_bytes(self, tokens: int, bytes_per_element: float) -> float:
        """Bytes that one request of `tokens` tokens keeps: KV cache, at most a window of it, and state."""
        return self._over_layers(lambda one: one.kept(tokens) * one.cached * bytes_per_element + one.state_bytes)

    def prefill_flops(self, input_tokens: int) -> int:
        """FLOPs of one request's prefill: causal attention, logits of the last token only."""
        attention = self._over_layers(lambda one: one.attention_flops(one.attended(input_tokens), decode=False))
        return self._token_flops * input_tokens + 2 * _elements(self.head) + int(attention)

    def decode_flops(self, context: int) -> int:
        """FLOPs of one request's decode pass to `context` positions, its own included: n + j in pass j = 1 .. m - 1."""
        return self._token_flops + 2 * _elements(self.head) + self._decode_attention(context - 1, context)

    def request_flops(self, input_tokens: int, output_tokens: int) -> int:
        """FLOPs of one request (n, m >= 1): the sum over its prefill and its m - 1 decode passes."""
        n, passes = input_tokens, output_tokens - 1
        decode = passes * (self._token_flops + 2 * _elements(self.head)) + self._decode_attention(n, n + passes)
        return self.prefill_flops(n) + decode

    def prefill_bytes(self, input_tokens: int, batch: int, sizes: ElementBytes) -> float:
        """Bytes that a batch's prefill moves: weights read once, KV cache and state written. No activations."""
        return self.pass_bytes(batch * input_tokens, sizes) + batch * self.kv_bytes(input_tokens, sizes.cached)

    def decode_bytes(self, context: int, batch: int, sizes: ElementBytes) -> float:
        """Bytes that a batch's decode pass moves; `context` as in `decode_flops`. No activations.

        All weights that the batch needs are read once; each request reads `context` cached positions and writes one,
        and reads and writes its state.
        """
        return self.pass_bytes(batch, sizes) + batch * self._decode_cache(context - 1, context, sizes.cached)

    def request_cache_bytes(self, input_tokens: int, output_tokens: int, bytes_per_element: float) -> float:
        """Bytes of KV cache and state that one request (n, m >= 1) writes and reads: the sum over its passes."""
        n, last = input_tokens, input_tokens + output_tokens - 1
        return self.kv_bytes(n, bytes_per_element) + self._decode_cache(n, last, bytes_per_element)

    def batch_weight_bytes(self, input_tokens: int, output_tokens: int, batch: float, sizes: ElementBytes) -> float:
        """Bytes of weights that one batch reads: by its prefill pass, and by m - 1 passes of a token per request."""
        decode = (output_tokens - 1) * self.pass_bytes(batch, sizes)
        return self.pass_bytes(batch * input_tokens, sizes) + decode

    def _over_layers(self, of: Callable[[Layers], float]) -> float:
        return sum(block.count * of(block) for block in self.blocks)

    @cached_property
    def _token_flops(self) -> int:
        """FLOPs for every processed token, prompt tokens included, without attention."""
        layers = self._over_layers(
            lambda one: 2 * (one.weights + one.experts_per_token * one.expert_weights) + one.state_flops
        )
        return int(layers) + 2 * _elements(self.ends)

    def _decode_attention(self, before: int, upto: int) -> int:
        """FLOPs of attention for tokens before + 1 .. upto, a pass each."""
        new = self._over_layers(lambda one: one.attention_flops(one.attended(upto) - one.attended(before), decode=True))
        return int(new)

    def _decode_cache(self, before: int, upto: int, bytes_per_element: float) -> float:
        """Bytes of cache and state that tokens before + 1 .. upto, a pass each, read and write."""

        def of_layer(one: Layers) -> float:
            moved = one.attended(upto) - one.attended(before) + upto - before
            return moved * one.cached * bytes_per_element + 2 * (upto - before) * one.state_bytes

        return self._over_layers(of_layer)


def _elements(matrices: tuple[tuple[int, int], ...]) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices)
