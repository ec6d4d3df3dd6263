"""An engine that computes nothing: a model of each pass turns a batch into times and dynamic energies.

It models the physics, not the fitted law: chunked prefill, KV-cache capacity with waves of requests, and passes whose
times are composed of measured kernels where there are tables (`engines/kernels.py`); elsewhere a roofline, with compute
and memory time per pass, a saturating efficiency and launch overhead. `source` tells the two apart.
benchmarks/simulator_vs_published.py compares both with published rows.
"""

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sweetspot import gpus
from sweetspot.engines import BatchRun, Engine, EngineSpec, RequestTimes, kernels
from sweetspot.engines.adapter import PASS_TOKENS
from sweetspot.errors import SweetspotError
from sweetspot.memory import split_in_waves
from sweetspot.parallelism import Parallelism
from sweetspot.precision import Precision, element_bytes
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Sensor
from sweetspot.sensors.simulated import SimulatedGpu, SimulatedSensor, Work
from sweetspot.vocabulary import ON_MEASURED_KERNELS, ON_ROOFLINE

ENGINES = {"simulated": "needs no GPU, and labels everything it makes SIMULATED"}
SIMULATED = True
FIXED = {"cuda_graphs": "times its passes in one way", "in_flight_batching": "has no static batches"}

VERSION = "2"

# Constants of the roofline. Measured shares of the data sheet's rates on H100s: a copy moves 3.0 of 3.35 TB/s, a large
# bf16 matrix product runs at 798 of 989 TFLOP/s.
MEMORY_EFFICIENCY = 0.90
COMPUTE_EFFICIENCY = 0.80
HALF_TOKENS = 128  # tokens per pass at which the matrix units reach half of that rate: one tile of a GEMM
LAUNCH_S = 0.3e-3  # host and scheduler, per pass
LAYER_S = 70e-6  # kernel launches and ramps, per layer and pass; eager mode, as in the published rows
REQUEST_S = 20e-6  # sampling and bookkeeping, per request and pass
# Energy beyond static and active power. Together they match the power of LLM-Inference-Bench's TensorRT-LLM rows (413 W
# at batch 1, about 450 W at 16 to 64) and bring a large GEMM to the power cap, as on real H100s.
J_PER_FLOP = 0.65e-12
J_PER_BYTE = 110e-12
EXCHANGE_S = 10e-6  # latency of adding up results over NVLink: assumed, as long as NCCL needs for a few kilobytes
CHUNK_TOKENS = PASS_TOKENS  # prefill tokens per pass, as for the real engines
SEGMENT_PASSES = 64  # decode passes that share one stretch of constant power
TIME_JITTER = 0.003
ENERGY_JITTER = 0.002


def version() -> str:
    """Version of the simulation."""
    return VERSION


def refusal(name: str, precision: str, weights: str, parallelism: Parallelism) -> str:
    """Never refuse: the simulation needs only a model's dimensions."""
    return ""


def build(spec: EngineSpec, directory: Path) -> dict[str, dict[str, int]]:
    """Return the memory plan in bytes. Raises SweetspotError if the weights do not fit."""
    board, arch = _gpu(spec), spec.architecture
    memory = spec.parallelism.memory(arch, board, spec.precision, spec.kv_cache_fraction)
    if memory.kv_cache_bytes <= 0:
        size = f"{memory.weights_bytes / 1e9:.1f} GB"
        raise SweetspotError(f"{arch.name}: {size} of weights exceed the memory of {spec.parallelism.on(board)}")
    return {"memory": memory.as_dict()}


def source(spec: EngineSpec) -> str:
    """What rows of this engine are called: it depends on whether the kernels of the board were measured."""
    return ON_MEASURED_KERNELS if _kernels(spec) else ON_ROOFLINE


def open_device(spec: EngineSpec, directory: Path) -> tuple["SimulatedEngine", Sequence[Sensor], Clock]:
    """Boards with the engine on them, their sensors and their virtual clock."""
    device = SimulatedGpu(_gpu(spec), spec.seed)
    return SimulatedEngine(spec, device), [SimulatedSensor(device, i) for i in range(spec.gpus)], device.clock


def expected(spec: EngineSpec, input_tokens: int, output_tokens: int) -> tuple[float, float, int]:
    """Energy in J, duration in s and waves of a run on warm boards, without jitter and sensor. Raises as `run`."""
    device = SimulatedGpu(_gpu(spec), spec.seed)
    engine = SimulatedEngine(spec, device)
    engine._jitter.gauss = lambda mean, _: mean  # type: ignore[assignment, misc]
    engine.run(input_tokens, output_tokens)
    start_s = device.clock.now()
    device.warm_up(device.true_energy_j(0.0, start_s) / start_s)
    ran = engine.run(input_tokens, output_tokens)
    end_s = device.clock.now()
    return spec.gpus * device.true_energy_j(start_s, end_s), end_s - start_s, ran.waves


class SimulatedEngine(Engine):
    """The engine interface over a simulated board."""

    version = VERSION

    def __init__(self, spec: EngineSpec, device: SimulatedGpu, segment_passes: int = SEGMENT_PASSES) -> None:
        """An engine for `spec` on `device`; longer segments are faster to compute but less accurate."""
        self._segment_passes = segment_passes
        self._spec, self._device = spec, device
        self._jitter = random.Random(f"{spec.seed}/{spec.architecture.name}/{spec.batch}")
        self._memory = spec.parallelism.memory(spec.architecture, device.gpu, spec.precision, spec.kv_cache_fraction)
        self._kernels = _kernels(spec)
        self._wave = lru_cache(maxsize=8)(self._work_of_wave)

    def begin(self, visit: str) -> None:
        """Noise and heat depend on the visit alone: a campaign that was killed and goes on has the same rows."""
        self._jitter.seed(f"{self._spec.seed}/{self._spec.architecture.name}/{self._spec.batch}: {visit}")
        self._device.begin(self._jitter.randrange(1 << 30))

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run one batch in virtual time. Raises SweetspotError if not even one request fits in the KV cache."""
        spec = self._spec
        fit = self._memory.requests(input_tokens, output_tokens)
        if fit < 1:
            raise SweetspotError(
                f"{spec.architecture.name}: one request of {input_tokens} + {output_tokens} tokens exceeds the KV cache"
            )
        waves = split_in_waves(spec.batch, fit)
        time = 1 + self._jitter.gauss(0, TIME_JITTER)
        energy = 1 + self._jitter.gauss(0, ENERGY_JITTER)
        times: list[RequestTimes] = []
        for requests in waves:
            wave = self._wave(requests, input_tokens, output_tokens)
            prefill, *decode = [Work(part.duration_s * time, part.dynamic_j * energy) for part in wave]
            at_s = [self._device.clock.now()]
            for work in ([prefill], decode):
                self._device.run(work)
                at_s.append(self._device.clock.now())
            times += _times(requests, input_tokens, *at_s)
        return BatchRun(waves[0], len(waves), tuple(times))

    def _work_of_wave(self, requests: int, n: int, m: int) -> list[Work]:
        arch, sizes = self._spec.architecture, element_bytes(self._spec.precision)
        measured = self._kernels
        chunks = -(-requests * n // CHUNK_TOKENS)
        weights_bytes = arch.pass_bytes(requests * n / chunks, sizes)
        flops, moved = arch.prefill_flops(n), weights_bytes + requests * arch.kv_bytes(n, sizes.cached) / chunks
        attention_s = measured.prefill_attention_s(arch, requests / chunks, n) if measured else 0.0
        a_pass = requests * n / chunks, requests / chunks
        work = [self._passes(chunks, *a_pass, requests * flops / chunks, moved, attention_s)]
        for first in range(1, m, self._segment_passes):
            count = min(self._segment_passes, m - first)
            context = n + first + count // 2
            flops, moved = requests * arch.decode_flops(context), arch.decode_bytes(context, requests, sizes)
            attention_s = measured.decode_attention_s(arch, requests, context) if measured else 0.0
            work.append(self._passes(count, requests, requests, flops, moved, attention_s))
        return work

    def _passes(
        self, count: int, tokens: float, requests: float, flops: float, moved: float, attention_s: float
    ) -> Work:
        """Equal passes of `tokens` tokens, `flops` FLOPs and `moved` bytes each; only kernels need `attention_s`."""
        if self._kernels:
            sampled = kernels.LOGIT_BYTES * requests * self._spec.architecture.vocabulary
            pass_s = self._kernels.dense_s(self._spec.architecture, tokens, requests) + attention_s
            pass_s += self._memory_s(sampled) + kernels.HOST_S
            return Work(count * pass_s, count * (kernels.J_PER_FLOP * flops + kernels.J_PER_BYTE * (moved + sampled)))
        boards, layers = self._spec.gpus, self._spec.architecture.layers / self._spec.pipeline_parallel
        flops, moved = flops / boards, moved / boards
        sent, exchanges = self._spec.parallelism.exchanged(self._spec.architecture, tokens)
        reached = COMPUTE_EFFICIENCY * tokens / (tokens + HALF_TOKENS)
        compute_s = flops / (self._device.gpu.peak_flops[Precision.of(self._spec.precision).activations] * reached)
        overhead_s = LAUNCH_S + LAYER_S * layers + REQUEST_S * requests
        overhead_s += exchanges * EXCHANGE_S + sent / self._device.gpu.link_bytes_per_s
        pass_s = max(compute_s, self._memory_s(moved)) + overhead_s
        return Work(count * pass_s, count * (J_PER_FLOP * flops + J_PER_BYTE * (moved + sent)))

    def _memory_s(self, moved: float) -> float:
        return moved / (self._device.gpu.bandwidth_bytes_per_s * MEMORY_EFFICIENCY)


def _kernels(spec: EngineSpec) -> kernels.Kernels | None:
    whole = spec.gpus == 1 and not spec.board  # kernels were measured for whole layers
    found = kernels.load(spec.gpu, spec.precision) if whole else None
    return found if found and found.covers(spec.architecture) else None


def _times(requests: int, input_tokens: int, start_s: float, filled_s: float, end_s: float) -> list[RequestTimes]:
    """A request's first token is there when the pass with the end of its prompt is; prompts run one after another."""
    passes = -(-requests * input_tokens // CHUNK_TOKENS)
    done = [-(-(index + 1) * input_tokens // CHUNK_TOKENS) / passes for index in range(requests)]
    return [RequestTimes(start_s, start_s + share * (filled_s - start_s), end_s) for share in done]


def _gpu(spec: EngineSpec) -> gpus.Gpu:
    gpu, computed = spec.known_board, Precision.of(spec.precision).activations
    if gpu is None or computed not in gpu.peak_flops:
        raise SweetspotError(
            f"no {computed} FLOP rate is known for {spec.gpu!r}; known GPUs: {', '.join(gpus.names())}; a campaign can "
            "describe another under `board`"
        )
    return gpu
