"""What fits a board: bytes of weights and KV cache by precision, requests at once, waves.

The one place that decides it, for the plan, the engines, the simulator and the law across models. Standard library
only.
"""

import re
from dataclasses import dataclass

from sweetspot.architecture import Architecture, ElementBytes
from sweetspot.gpus import Gpu

PRECISIONS = ("float32", "bfloat16", "float16", "fp8")
"""Data types of weights and KV cache that a campaign can be configured with."""

KV_CACHE_FRACTION = 0.9
"""Share of the memory beside the weights that the KV cache may take: the default of campaigns, and near that of vLLM
and TensorRT-LLM, so it also stands in for tables that do not record it."""


def element_bytes(precision: str) -> ElementBytes:
    """Bytes of a weight and of a cached key or value, by the first number in the name: "fp8", "int4", "w4a16".

    Weights of fewer than 8 bits go with a cache of 16 bits. A name without such a number counts as 16 bits: if that is
    wrong, the prices of bytes are scaled and what fits a board is misjudged.
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
        """The memory of a model in `precision` on `gpu`; `kv_cache_fraction` of what the weights leave is KV cache."""
        weight, cached = element_bytes(precision)
        weights = architecture.parameters() * weight
        cache = int(kv_cache_fraction * (gpu.memory_bytes - weights))
        return cls(architecture, gpu.memory_bytes, int(weights), cache, cached)

    def requests(self, input_tokens: int, output_tokens: int) -> int:
        """How many requests of these lengths have their KV cache on the board at once; 0 if not even one."""
        return max(0, self.kv_cache_bytes) // self.architecture.kv_bytes(
            input_tokens + output_tokens, self.cached_bytes
        )

    def as_dict(self) -> dict[str, int]:
        """For engine.json."""
        return {
            "memory_bytes": self.board_bytes,
            "weights_bytes": self.weights_bytes,
            "kv_cache_bytes": self.kv_cache_bytes,
        }


def split_in_waves(batch: int, at_once: int) -> list[int]:
    """The sizes of the waves in which a batch runs if at most `at_once` (>= 1) of its requests run together."""
    whole, rest = divmod(batch, min(at_once, batch))
    return [min(at_once, batch)] * whole + [rest] * bool(rest)
