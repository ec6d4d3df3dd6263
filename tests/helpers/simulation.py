"""A simulated device at hand for tests."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweetspot import engines, gpus, models
from sweetspot.engines.simulated import SimulatedEngine
from sweetspot.measure.protocol import Protocol, measure_idle, open_meter
from sweetspot.measure.visit import Repetition, visit_cell
from sweetspot.sensors.meter import Meter
from sweetspot.sensors.simulated import SimulatedGpu, SimulatedSensor, Work

ARCHITECTURES = Path(__file__).resolve().parents[2] / "resources/architectures"
H100 = gpus.find("H100")
assert H100 is not None


@dataclass
class Bench:
    """A board with an engine on it, and a meter that sees the board only through its sensor."""

    model: str = "llama-3.1-8b"
    batch: int = 8
    seed: int = 1
    protocol: Protocol = field(default_factory=Protocol)
    weights: str = "none"
    precision: str = "bfloat16"
    started_s: float = 0.0

    def __post_init__(self) -> None:
        arch = models.load(ARCHITECTURES / f"{self.model}.json")
        self.spec = engines.EngineSpec(
            "simulated", arch, self.precision, self.weights, H100.name, self.batch, 4096, 4096, 0.9, self.seed
        )
        self.device = SimulatedGpu(H100, self.seed)
        self.engine = SimulatedEngine(self.spec, self.device)
        self.sensor: Any = SimulatedSensor(self.device)
        self.gain = SimulatedSensor(self.device)._gain
        self.idle_w, _ = measure_idle(self.meter(), self.protocol)

    def meter(self) -> Meter:
        return open_meter([self.sensor], self.device.clock, self.protocol)

    def cell(self, n: int, m: int, flags: str = "") -> list[dict[str, Any]]:
        """All visits of a cell, one after the other."""
        return [repetition.row for repetition in self.repetitions(n, m, flags)]

    def repetitions(self, n: int, m: int, flags: str = "") -> list[Repetition]:
        cell = {"input_tokens": n, "output_tokens": m, "flags": flags}
        meter, done = self.meter(), []
        self.started_s = meter.started_s
        for visit in range(self.protocol.visits):
            rows = [repetition.row for repetition in done]
            done += visit_cell(self.engine, meter, self.spec, cell, self.protocol, self.idle_w, visit, rows)
        return done

    def watts(self, *levels: tuple[float, float]) -> None:
        """Run stretches of (duration in s, dynamic power in W)."""
        self.device.run([Work(duration_s, duration_s * power_w) for duration_s, power_w in levels])

    def true_j(self, row: dict[str, Any]) -> float:
        """True joules of a row's window."""
        start_s = self.started_s + row["time_s"]
        return self.device.true_energy_j(start_s, start_s + row["window_s"])
