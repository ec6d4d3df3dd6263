"""Times of the kernels of a pass, from tables that NVIDIA measured; benchmarks/compile_kernels.py compiles them.

A table is a grid of measured times of one kernel. Between its points, and beyond its edges, the ratio of the time to
the roofline of the data sheet (the larger of compute and memory time) is interpolated linearly in logarithms and held
at the edges. The steps of a table stay: the tiles of a matrix product lie at neighbouring sizes, such as 128 and 129
rows, which are both points. Norms and activations are in no table: they cost their bytes, and each its launch.
"""

import gzip
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from sweetspot import gpus
from sweetspot.architecture import Architecture, Layers
from sweetspot.gpus import Gpu

DIRECTORY = Path(__file__).with_name("kernel_times")
PRECISIONS = ("bfloat16", "float16")
"""The tables are of bfloat16; float16 has the same rate and the same bytes."""

ELEMENT_BYTES = 2
# What the tables lack, calibrated on published rows of Llama 3 8B and judged on those of other models and engines by
# benchmarks/simulator_vs_published.py. Sampling takes as long, and as much energy, as moving that many bytes for each
# entry of the vocabulary and request.
HOST_S = 0.26e-3  # host and scheduler, per pass
LOGIT_BYTES = 1270.0
J_PER_FLOP = 0.8e-12  # not fitted: prompts draw the power cap, and a large product still runs at 680 TFLOP/s
J_PER_BYTE = 114e-12
HELD_OUT_ROWS, HELD_OUT_MEAN, HELD_OUT_WORST = 51, 0.065, 0.225
"""Published rows of one H100 that calibrated nothing, and the mean and largest relative error of their energies."""

# NVIDIA's own estimate for kernels that only move data, in AIConfigurator: 0.8 of the bandwidth, and 3 us for each.
MOVE_SHARE = 0.8
MOVE_S = 3e-6


def file_name(gpu: str) -> str:
    """The name of the file that holds the tables of a board with NVML's name `gpu`."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()) + ".json.gz"


def boards() -> list[str]:
    """The names of the boards whose kernels were measured."""
    return [name for name in gpus.names() if (DIRECTORY / file_name(name)).is_file()]


@cache
def load(board: str, precision: str) -> "Kernels | None":
    """The kernels of a board, by its name; None if none were measured on it, or not in this precision."""
    gpu = gpus.find(board)
    path = DIRECTORY / file_name(gpu.name if gpu else "")
    if gpu is None or precision not in PRECISIONS or not path.is_file():
        return None
    return Kernels(gpu, json.loads(gzip.decompress(path.read_bytes())))


class Kernels:
    """Kernels of one board. Tokens and requests may be fractions: those of an average pass."""

    def __init__(self, gpu: Gpu, tables: Mapping[str, Any]) -> None:
        """`tables` as kernel_times/README.md describes them."""
        self._gpu = gpu
        self._flops = gpu.peak_flops[str(tables["precision"])]
        product = tables["matmul"]
        self._matmul = _Table(product["n"], product["k"], product["m"], product["us"], self._matmul_roofline_s)
        self._prefill = self._attention(tables["prefill_attention"], self._prefill_roofline_s)
        self._decode = self._attention(tables["decode_attention"], self._decode_roofline_s)
        self.matmul_s = lru_cache(maxsize=4096)(self._matmul_s)

    def covers(self, architecture: Architecture) -> bool:
        """Whether every layer has kernels that were measured: attention of such head sizes, no experts, no state."""
        sizes = [size for table in (self._prefill, self._decode) for _, size in table]
        return all(
            min(sizes) <= one.head_size <= max(sizes) and not (one.experts or one.latent or one.state_flops)
            for one in architecture.blocks
        )

    def dense_s(self, arch: Architecture, tokens: float, sampled: float) -> float:
        """Seconds of a pass apart from its attention: `tokens` through all layers, logits for `sampled` of them."""
        time_s = 0.0
        for block in arch.blocks:
            layer = sum(self.matmul_s(tokens, outputs, inputs) for inputs, outputs in block.matrices)
            # A norm reads and writes the hidden state and its residual; an activation reads what up (and gate) wrote.
            layer += block.norms * self._move_s(tokens * 4 * arch.hidden)
            layer += self._move_s(tokens * (2 + block.gated) * block.ffn)
            time_s += block.count * layer
        time_s += sum(self.matmul_s(tokens, outputs, inputs) for inputs, outputs in arch.ends)
        return time_s + sum(self.matmul_s(sampled, outputs, inputs) for inputs, outputs in arch.head)

    def prefill_attention_s(self, arch: Architecture, requests: float, tokens: float) -> float:
        """Seconds of the attention of all layers for prompts of `tokens` tokens; a window saves its share."""
        time_s, every = 0.0, int(tokens) * (int(tokens) + 1) / 2
        for block in arch.blocks:
            full = self._attend(self._prefill, self._prefill_roofline_s, block, requests, tokens)
            time_s += block.count * full * (block.attended(int(tokens)) / every)
        return time_s

    def decode_attention_s(self, arch: Architecture, requests: float, context: float) -> float:
        """Seconds of the attention of all layers for one token each of `requests`, at `context` positions."""
        time_s = 0.0
        for block in arch.blocks:
            seen = min(context, block.window or context)
            time_s += block.count * self._attend(self._decode, self._decode_roofline_s, block, requests, seen)
        return time_s

    def _matmul_s(self, m: float, n: int, k: int) -> float:
        """Seconds of a product of m x k and k x n."""
        return self._matmul.ratio(n, k, m) * self._matmul_roofline_s(n, k, m)

    def _move_s(self, elements: float) -> float:
        return MOVE_S + elements * ELEMENT_BYTES / (self._gpu.bandwidth_bytes_per_s * MOVE_SHARE)

    def _attend(
        self, tables: Mapping[tuple[int, int], "_Table"], roofline: Callable[..., float], block: Layers, *at: float
    ) -> float:
        """Seconds for one layer, from the table of the nearest head size and number of shared key/value heads, or 0."""
        shared = block.kv_heads if block.kv_heads < block.heads else 0

        def distance(key: tuple[int, int]) -> tuple[bool, float, float]:
            kv_heads, size = key
            apart = abs(math.log(kv_heads / shared)) if kv_heads and shared else 0.0
            return bool(kv_heads) != bool(shared), abs(math.log(size / block.head_size)), apart

        nearest = min(tables, key=distance)
        ratio = tables[nearest].ratio(block.heads, *at)
        return ratio * roofline(block.heads, *at, kv_heads=block.kv_heads, size=block.head_size)

    def _attention(
        self, tables: Sequence[Mapping[str, Any]], roofline: Callable[..., float]
    ) -> dict[tuple[int, int], "_Table"]:
        found = {}
        for one in tables:
            ideal = partial(roofline, kv_heads=one["kv_heads"], size=one["head_size"])
            table = _Table(one["heads"], one["requests"], one["tokens"], one["us"], ideal)
            found[one["kv_heads"], one["head_size"]] = table
        return found

    def _roofline_s(self, flops: float, elements: float) -> float:
        return max(flops / self._flops, elements * ELEMENT_BYTES / self._gpu.bandwidth_bytes_per_s)

    def _matmul_roofline_s(self, n: float, k: float, m: float) -> float:
        return self._roofline_s(2 * m * n * k, m * k + k * n + m * n)

    def _prefill_roofline_s(self, heads: float, requests: float, tokens: float, kv_heads: float, size: float) -> float:
        flops = 2 * heads * size * tokens * (tokens + 1)
        return self._roofline_s(requests * flops, requests * 2 * (heads + (kv_heads or heads)) * size * tokens)

    def _decode_roofline_s(self, heads: float, requests: float, tokens: float, kv_heads: float, size: float) -> float:
        flops = 4 * heads * size * tokens
        return self._roofline_s(requests * flops, requests * 2 * (heads + (kv_heads or heads) * tokens) * size)


class _Table:
    """Measured times of one kernel over two outer sizes and an inner one; some points may be missing (null)."""

    def __init__(
        self,
        first: Sequence[int],
        second: Sequence[int],
        inner: Sequence[int],
        us: Sequence[Sequence[Sequence[float | None]]],
        roofline: Callable[[float, float, float], float],
    ) -> None:
        self._first, self._second, self._inner, self._us, self._roofline = first, second, inner, us, roofline
        self._row = cache(self._logarithms)

    def ratio(self, first: float, second: float, inner: float) -> float:
        """Time over roofline."""
        total = shares = 0.0
        for i, share in _between(self._first, first):
            for j, part in _between(self._second, second):
                sizes, ratios = self._row(i, j)
                if sizes:
                    total += share * part * sum(weight * ratios[at] for at, weight in _between(sizes, inner))
                    shares += share * part
        return math.exp(total / shares)

    def _logarithms(self, i: int, j: int) -> tuple[list[int], list[float]]:
        """The measured inner sizes of a row, and the logarithms of their ratios."""
        first, second = self._first[i], self._second[j]
        found = [(size, us) for size, us in zip(self._inner, self._us[i][j], strict=True) if us is not None]
        ratios = [math.log(us * 1e-6 / self._roofline(first, second, size)) for size, us in found]
        return [size for size, _ in found], ratios


def _between(values: Sequence[int], value: float) -> list[tuple[int, float]]:
    """The places in sorted `values` beside `value`, each with its weight on a logarithmic scale; an edge beyond it."""
    after = bisect_right(values, value)
    if after in (0, len(values)):
        return [(max(after - 1, 0), 1.0)]
    low, high = values[after - 1], values[after]
    share = math.log(value / low) / math.log(high / low)
    return [(after - 1, 1 - share), (after, share)] if share else [(after - 1, 1.0)]
