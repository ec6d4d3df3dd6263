"""What fits in a board's memory: bytes of weights and KV cache by precision, concurrent requests, waves.

The plan, the engines, the simulator and the law across models all use it. Standard library only.
"""

import bisect
from dataclasses import dataclass
from typing import Any

from sweetspot.architecture import Architecture

KV_CACHE_FRACTION = 0.9
"""Share of the memory left by the weights that the KV cache may take: the default of campaigns, close to that of vLLM
and TensorRT-LLM, and assumed for tables that do not record it."""


_MANY = 1 << 20  # requests of a model that keeps nothing


@dataclass(frozen=True)
class Memory:
    """How a model fills the memory of its boards, in bytes. `kv_cache_bytes` is 0 or less if its weights do not fit."""

    architecture: Architecture
    board_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    cached_bytes: float  # of one cached key or value

    def requests(self, input_tokens: int, output_tokens: int) -> int:
        """How many requests of these lengths fit in the KV cache at once; 0 if not even one does."""
        kept = self.architecture.kv_bytes(input_tokens + output_tokens, self.cached_bytes)
        return int(max(0, self.kv_cache_bytes) // kept) if kept else _MANY

    def limit(self, where: str) -> dict[str, Any]:
        """The most `tokens` that one request may have, prompt and reply together, and what it is that they fill."""
        limit = self.architecture.limit
        fit = bisect.bisect_left(range(limit["tokens"]), True, key=lambda tokens: not self.requests(tokens, 1))
        return {"tokens": fit, "because": f"the KV cache of {where}"} if fit < limit["tokens"] else limit

    def as_dict(self) -> dict[str, int]:
        """The fields recorded in engine.json."""
        sizes = {"memory_bytes": self.board_bytes, "weights_bytes": self.weights_bytes}
        return {**sizes, "kv_cache_bytes": self.kv_cache_bytes}


def split_in_waves(batch: int, at_once: int) -> list[int]:
    """The sizes of the waves in which a batch runs if at most `at_once` (>= 1) of its requests run together."""
    whole, rest = divmod(batch, min(at_once, batch))
    return [min(at_once, batch)] * whole + [rest] * bool(rest)
