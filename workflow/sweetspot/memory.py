"""What fits in a board's memory: bytes of weights and KV cache by precision, concurrent requests, waves.

The plan, the engines, the simulator and the law across models all use it. Standard library only.
"""

import re
from dataclasses import dataclass

from sweetspot.architecture import Architecture, ElementBytes
from sweetspot.gpus import Gpu

PRECISIONS = ("float32", "bfloat16", "float16", "fp8")
"""Data types for weights and KV cache that a campaign can use."""

KV_CACHE_FRACTION = 0.9
"""Share of the memory left by the weights that the KV cache may take: the default of campaigns, close to that of vLLM
and TensorRT-LLM, and assumed for tables that do not record it."""


def element_bytes(precision: str) -> ElementBytes:
    """Bytes of a weight and of a cached key or value, by the first number in the name: "fp8", "int4", "w4a16".

    Weights below 8 bits imply a 16-bit cache. A name without such a number counts as 16 bits; if that is wrong, the
    fitted cost per byte is off by that factor, and so is the memory that a model needs.
    """
    found = re.search(r"\d+", precision)
    bits = int(found[0]) if found and int(found[0]) in (4, 8, 16, 32) else 16
    return ElementBytes(bits / 8, 2 if bits < 8 else bits // 8)


@dataclass(frozen=True)
class Memory:
    """How a model fills the memory of one board, in bytes. `kv_cache_bytes` is 0 or less if its weights do not fit."""

    architecture: Architecture
    board_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    cached_bytes: int  # of one cached key or value

    @classmethod
    def of(
        cls, architecture: Architecture, gpu: Gpu, precision: str, kv_cache_fraction: float = KV_CACHE_FRACTION
    ) -> "Memory":
        """How a model in `precision` fills `gpu`; the KV cache gets `kv_cache_fraction` of what the weights leave."""
        weight, cached = element_bytes(precision)
        weights = architecture.parameters() * weight
        cache = int(kv_cache_fraction * (gpu.memory_bytes - weights))
        return cls(architecture, gpu.memory_bytes, int(weights), cache, cached)

    def requests(self, input_tokens: int, output_tokens: int) -> int:
        """How many requests of these lengths fit in the KV cache at once; 0 if not even one does."""
        return max(0, self.kv_cache_bytes) // self.architecture.kv_bytes(
            input_tokens + output_tokens, self.cached_bytes
        )

    def as_dict(self) -> dict[str, int]:
        """The fields recorded in engine.json."""
        return {
            "memory_bytes": self.board_bytes,
            "weights_bytes": self.weights_bytes,
            "kv_cache_bytes": self.kv_cache_bytes,
        }


def split_in_waves(batch: int, at_once: int) -> list[int]:
    """The sizes of the waves in which a batch runs if at most `at_once` (>= 1) of its requests run together."""
    whole, rest = divmod(batch, min(at_once, batch))
    return [min(at_once, batch)] * whole + [rest] * bool(rest)
