"""A simulated GPU board on virtual time: power, heat, clocks, and NVML-like sensors that see them imperfectly.

Several boards that share a model work alike, so one board stands for all; each has sensors of its own.
It knows nothing about language models: work is a list of time spans, each with a dynamic energy. The true joules
(`true_energy_j`) never enter a measured row; the sensors report what NVML would.
"""

import math
import random
from bisect import bisect_right
from dataclasses import dataclass

from sweetspot.gpus import Gpu
from sweetspot.sensors.clock import VirtualClock
from sweetspot.sensors.meter import Sensor

# An H100 SXM draws 110-130 W with a CUDA context and no work (60-75 W without): the context's share is static power.
CONTEXT_W = 120.0
# Power of running kernels, whatever they compute: raised clocks, schedulers, L2. With it the model matches the 413 W
# that LLM-Inference-Bench (SC24 workshops) reports for TensorRT-LLM at batch 1, where 2 TB/s of weights are read.
ACTIVE_W = 80.0
FULL_LIMIT_W = 400.0  # a board with a lower power limit draws these powers in proportion to it
LEAKAGE_PER_K = 0.004  # static power grows with temperature; 0.3-0.5 % per kelvin is usual for FinFET processes
REFERENCE_C = 35.0
AMBIENT_C = 28.0
KELVIN_PER_W = 0.06  # 700 W settle at 70 degrees Celsius, as air-cooled boards do under a sustained GEMM
HEATING_S = 20.0
BUSY_SHARE = 0.4  # of the power limit: what a board draws on average in a campaign
MAX_CLOCK_MHZ = 1980
IDLE_CLOCK_MHZ = 345
GPU_IDLE, SW_POWER_CAP = 0x1, 0x4  # nvmlClocksEventReasonGpuIdle, nvmlClocksEventReasonSwPowerCap

# The sensors of an H100 as Yang, Adamek and Armour found them (SC24, arXiv 2312.02741).
STEP_S = 0.1
INSTANT_S = 0.025
AVERAGE_S = 1.0
GAIN_LIMIT = 0.05  # a board's systematic error, the same for all its sensors
READING_NOISE = 0.005


@dataclass(frozen=True)
class Work:
    """A span of work: `duration_s` at full clocks, and `dynamic_j` spent beyond static and active power."""

    duration_s: float
    dynamic_j: float


class SimulatedGpu:
    """Power over time, from work and heat. Deterministic for a seed."""

    def __init__(self, gpu: Gpu, seed: int) -> None:
        """An idle board with a CUDA context, at its settled temperature, at virtual time 0."""
        self.gpu, self.clock, self.seed = gpu, VirtualClock(), seed
        share = min(1.0, gpu.tdp_w / FULL_LIMIT_W)
        self._context_w, self._active_w = share * CONTEXT_W, share * ACTIVE_W
        self.temperature_c = AMBIENT_C + KELVIN_PER_W * self._context_w
        self._ends = [0.0]  # end of each stretch of constant power, s
        self._busy_until = 0.0
        self.noise = 0  # where in their noise the sensors are at time 0
        self.begun_j = 0.0  # drawn before what began last
        self._energies = [0.0]  # energy from time 0 to that end, J
        self._limits: list[tuple[float, float, float]] = [(0.0, 0.0, 1.0)]  # (start, end, clock) of capped stretches

    def run(self, work: list[Work]) -> None:
        """Run `work` from now on; returns when it is done, in virtual time."""
        self._settle()
        for stretch in work:
            static_w = self._static_w()
            clock, duration_s = 1.0, stretch.duration_s
            power_w = static_w + self._active_w + stretch.dynamic_j / duration_s
            if power_w > self.gpu.tdp_w:
                # Lower clocks also lower the voltage, so dynamic power falls with the square of the clock c: solve
                # static + active c + dynamic c^2 = cap. The same work takes 1/c times as long.
                dynamic_w = stretch.dynamic_j / duration_s
                room_w = self.gpu.tdp_w - static_w
                clock = (math.sqrt(self._active_w**2 + 4 * dynamic_w * room_w) - self._active_w) / (2 * dynamic_w)
                duration_s /= clock
                power_w = self.gpu.tdp_w
            self._spend(duration_s, power_w, clock)
            self._busy_until = self._ends[-1]
            self.clock.sleep(duration_s)

    def warm_up(self, power_w: float) -> None:
        """Make the board as warm as a long time at `power_w` makes it, at once."""
        self.temperature_c = AMBIENT_C + KELVIN_PER_W * power_w

    def begin(self, noise: int) -> None:
        """From the next tenth of a second on, be as warm as after other work, with this noise, whatever came before."""
        steps = math.ceil(self.clock.now() / STEP_S)
        self.clock.sleep(steps * STEP_S - self.clock.now())
        self._settle()
        self.warm_up(BUSY_SHARE * self.gpu.tdp_w)
        self.noise = noise - 31 * steps
        self.begun_j = self._energies[-1]

    def true_energy_j(self, start_s: float, end_s: float) -> float:
        """The energy that the board really drew between two past moments."""
        return self._energy_at(end_s) - self._energy_at(start_s)

    def clock_share(self, at_s: float) -> float:
        """The SM clock at a moment, as a share of the full clock; 0 when idle."""
        start, end, share = self._limits[-1]
        if at_s > self._busy_until:
            return 0.0
        return share if start <= at_s <= end else 1.0

    def _settle(self) -> None:
        """Account for the idle time since the last work, in steps short enough to follow the cooling."""
        while (gap_s := self.clock.now() - self._ends[-1]) > 0:
            self._spend(min(gap_s, 1.0), self._static_w(), 1.0)

    def _spend(self, duration_s: float, power_w: float, clock: float) -> None:
        start = self._ends[-1]
        self._ends.append(start + duration_s)
        self._energies.append(self._energies[-1] + power_w * duration_s)
        if clock < 1:
            self._limits.append((start, start + duration_s, clock))
        settled_c = AMBIENT_C + KELVIN_PER_W * power_w
        self.temperature_c = settled_c + (self.temperature_c - settled_c) * math.exp(-duration_s / HEATING_S)

    def _static_w(self) -> float:
        return self._context_w * (1 + LEAKAGE_PER_K * (self.temperature_c - REFERENCE_C))

    def _energy_at(self, at_s: float) -> float:
        self._settle()
        if at_s <= 0:
            return self._static_w() * at_s  # the board idled before the simulation began
        index = bisect_right(self._ends, at_s)
        if index == len(self._ends):
            return self._energies[-1] + self._static_w() * (at_s - self._ends[-1])
        start, end = self._ends[index - 1], self._ends[index]
        before, after = self._energies[index - 1], self._energies[index]
        return before + (after - before) * (at_s - start) / (end - start)


class SimulatedSensor(Sensor):
    """What NVML would report: stepped, sampled, averaged, with a gain and noise. In mJ and W."""

    def __init__(self, device: SimulatedGpu, index: int = 0) -> None:
        """Sensors of board `index` of those that `device` stands for; gain and noise follow from its seed."""
        of_board = f"/{index}" if index else ""
        draw = random.Random(f"sensor/{device.seed}{of_board}")
        self.name = f"{index}:GPU-SIMULATED-{device.seed}{of_board.replace('/', '-')}"
        self._device = device
        self._gain = 1 + draw.uniform(-GAIN_LIMIT, GAIN_LIMIT)
        self._phase = draw.uniform(0, STEP_S)
        self._offset_mj = draw.randrange(10**9, 10**12)  # since the driver was loaded
        self._noise = [draw.gauss(0, READING_NOISE) for _ in range(1009)]

    def energy_mj(self) -> int:
        """The energy counter: the joules up to its last step."""
        begun_j, scale = self._device.begun_j, 1000 * self._gain
        since_j = self._device._energy_at(self._step()[1]) - begun_j
        return self._offset_mj + round(scale * begun_j) + round(scale * since_j)  # rounded alike in every session

    def power_instant_w(self) -> float:
        """The mean of the last 25 ms before the last step; the other 75 ms are missed."""
        return self._mean_w(INSTANT_S, 1)

    def power_average_w(self) -> float:
        """The mean of the second before the last step."""
        return self._mean_w(AVERAGE_S, 2)

    def temperature_c(self) -> float:
        """Temperature in whole degrees Celsius."""
        self._device._settle()
        return float(round(self._device.temperature_c))

    def sm_clock_mhz(self) -> int:
        """SM clock."""
        share = self._device.clock_share(self._device.clock.now())
        return round(MAX_CLOCK_MHZ * share) if share else IDLE_CLOCK_MHZ

    def event_reasons(self) -> int:
        """Bits of nvmlDeviceGetCurrentClocksEventReasons."""
        share = self._device.clock_share(self._device.clock.now())
        if not share:
            return GPU_IDLE
        return SW_POWER_CAP if share < 1 else 0

    def power_limit_w(self) -> float:
        """The limit never changes."""
        return self._device.gpu.tdp_w

    def memory_bytes(self) -> int:
        """That of the data sheet."""
        return self._device.gpu.memory_bytes

    def identity(self) -> dict[str, str | float]:
        """Board and driver, labelled as simulated."""
        return {
            "gpu": f"{self._device.gpu.name} (SIMULATED)",
            "gpu_uuid": self.name.partition(":")[2],
            "driver_version": "simulated",
            "power_limit_w": self._device.gpu.tdp_w,
        }

    def _step(self) -> tuple[int, float]:
        number = math.floor((self._device.clock.now() - self._phase) / STEP_S)
        return number, number * STEP_S + self._phase

    def _mean_w(self, span_s: float, salt: int) -> float:
        number, at_s = self._step()
        mean_w = self._device.true_energy_j(at_s - span_s, at_s) / span_s
        return (
            self._gain * mean_w * (1 + self._noise[(number * 31 + salt * 499 + self._device.noise) % len(self._noise)])
        )
