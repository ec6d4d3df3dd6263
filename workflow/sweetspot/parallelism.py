"""How one model is spread over several boards of a node. Standard library only."""

from typing import NamedTuple

from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError
from sweetspot.gpus import Gpu
from sweetspot.memory import KV_CACHE_FRACTION, Memory
from sweetspot.precision import element_bytes


class Parallelism(NamedTuple):
    """Boards that share each layer (`tensor`), groups of layers (`pipeline`), experts whole on a board (`experts`)."""

    tensor: int = 1
    pipeline: int = 1
    experts: bool = False

    @classmethod
    def parse(cls, label: str) -> "Parallelism":
        """The inverse of `label`. Raises SweetspotError for any other text."""
        numbers = {"tp": 1, "pp": 1, "ep": 0}
        for part in label.split("-"):
            name, number = part[:2], part[2:]
            if name not in numbers or not (number.isdecimal() and int(number) if name != "ep" else number == ""):
                raise SweetspotError(f"parallelism {label!r}: write it like tp1, tp4, tp2-pp2 or tp8-ep")
            numbers[name] = int(number or 1)
        return cls(numbers["tp"], numbers["pp"], bool(numbers["ep"]))

    @property
    def label(self) -> str:
        """As in tables: "tp1", "tp4", "tp2-pp2", "tp8-ep"."""
        return f"tp{self.tensor}" + f"-pp{self.pipeline}" * (self.pipeline > 1) + "-ep" * self.experts

    @property
    def gpus(self) -> int:
        """The number of boards."""
        return self.tensor * self.pipeline

    def on(self, gpu: Gpu) -> str:
        """The boards in words: their kind, with their number if there are several."""
        return f"{self.gpus} {gpu.name}" if self.gpus > 1 else gpu.name

    def kv_copies(self, architecture: Architecture) -> float:
        """Copies of a cached key: a layer's boards per key/value head, at least 1; a latent cache (MLA) is one head."""
        attends = architecture.attention_layers
        if attends is None:
            return 1.0
        return max(1.0, self.tensor / (1 if attends.latent else attends.kv_heads))

    def exchanged(self, architecture: Architecture, tokens: float) -> tuple[float, float]:
        """Bytes that a board sends to others for a pass of `tokens` tokens, and how often it waits for them.

        Boards that share a layer add up their results twice, around a ring: 2 (t - 1)/t of them pass each link. A stage
        of the pipeline hands its results over once; stages are taken to be busy all the time.
        """
        sums, handed = 2 * architecture.layers / self.pipeline * (self.tensor > 1), float(self.pipeline > 1)
        return (sums * 2 * (self.tensor - 1) / self.tensor + handed) * tokens * architecture.hidden * 2, sums + handed

    def refusal(self, architecture: Architecture) -> str:
        """Why a model cannot be spread like this, or ""."""
        for block in architecture.blocks:
            heads, kv_heads = block.heads, block.kv_heads
            if heads % self.tensor:
                return f"tensor_parallel {self.tensor} does not divide the {heads} attention heads"
            if kv_heads and kv_heads % self.tensor and self.tensor % kv_heads:
                return (
                    f"tensor_parallel {self.tensor} neither divides nor is a multiple of the {kv_heads} key/value heads"
                )
        if self.pipeline > architecture.layers:
            return f"pipeline_parallel {self.pipeline} exceeds the {architecture.layers} layers"
        if self.experts and self.tensor == 1:
            return "expert_parallel spreads experts over the boards of tensor_parallel, which is 1"
        if self.experts and not any(block.experts for block in architecture.blocks):
            return "expert_parallel needs a mixture of experts, and this model has no experts"
        return ""

    def memory(
        self, architecture: Architecture, gpu: Gpu, precision: str, kv_cache_fraction: float = KV_CACHE_FRACTION
    ) -> Memory:
        """How a model fills the memory of all boards together.

        Of G boards with M bytes each, the weights leave G M - W, of which the share f is the KV cache. With t boards to
        a layer and fewer than t key/value heads k, each is stored t / k times, so the cache counts as f k / t.
        """
        sizes, pooled = element_bytes(precision), self.gpus * gpu.memory_bytes
        weights = architecture.weight_bytes(sizes)
        cache = int(kv_cache_fraction / self.kv_copies(architecture) * (pooled - weights))
        return Memory(architecture, pooled, int(weights), cache, sizes.cached)
