"""A libnvidia-ml.so.1 of known power, built with gcc, for the real bindings to load in processes of their own."""

import mmap
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweetspot.sensors.clock import VirtualClock

H100 = "GPU-11111111-aaaa-bbbb-cccc-000000000001 NVIDIA H100 80GB HBM3"
OTHER = "GPU-22222222-aaaa-bbbb-cccc-000000000002 NVIDIA H100 80GB HBM3"
A100 = "GPU-33333333-aaaa-bbbb-cccc-000000000003 NVIDIA A100-SXM4-80GB"
START_S = 1000.0  # the stub's clock never begins at 0: some power went before


@dataclass(frozen=True)
class Trace:
    """Power that repeats: stretches of (s, W at the start, W at the end)."""

    stretches: tuple[tuple[float, float, float], ...]

    def energy_j(self, start_s: float, end_s: float) -> float:
        """True joules between two moments, summed in steps of 0.1 ms: another way than the library's."""
        period_s = sum(length for length, _, _ in self.stretches)
        step_s = 1e-4
        count = round((end_s - start_s) / step_s)
        total = 0.0
        for number in range(count):
            rest = (start_s + (number + 0.5) * (end_s - start_s) / count) % period_s
            for length, first, last in self.stretches:
                if rest < length:
                    total += first + (last - first) * rest / length
                    break
                rest -= length
        return total * (end_s - start_s) / count

    def __str__(self) -> str:
        return " ".join(f"{length}:{first}:{last}" for length, first, last in self.stretches)


class StubClock(VirtualClock):
    """Virtual time that the library reads from a file mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._shared = mmap.mmap(os.open(path, os.O_RDWR), 8)
        super().__init__()
        self._now = START_S

    @property
    def _now(self) -> float:
        return struct.unpack("d", self._shared[:8])[0]

    @_now.setter
    def _now(self, value: float) -> None:
        self._shared[:8] = struct.pack("d", value)


class Stub:
    """The library, and the file that tells it what to be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file, self.time = directory / "state", directory / "time"
        self.time.write_bytes(struct.pack("d", START_S))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "LD_LIBRARY_PATH": str(self.directory),
            "NVML_STUB": str(self.file),
            "TMPDIR": str(self.directory),  # leases of its boards
        }

    def clock(self) -> StubClock:
        return StubClock(self.time)

    def set(self, *lines: str, trace: Trace | None = None, boards: Sequence[str] = (H100,), real: bool = False) -> None:
        """Be this from now on.

        Lines are "key value": gain, factor (of the counter), step, instant, average (s), stuck and reset (s), lost,
        process (id; and the number of a board, from 1), reasons (bits), limit_mw, driver, vbios, ecc, mig, trace, phase
        (s, of the counter's steps), fail:FUNCTION or fail:FIELD (NVML's code). "2/key value" is about the second board,
        "@FROM-TO key value" holds between two moments. `real`: time is the machine's.
        """
        clock = f"epoch {time.monotonic() - START_S!r}" if real else f"time {self.time}"
        text = [clock, *(f"gpu {board}" for board in boards), *([f"trace {trace}"] if trace else []), *lines]
        temporary = self.file.with_suffix(".new")
        temporary.write_text("\n".join(text) + "\n")
        temporary.replace(self.file)


def build(directory: Path) -> Stub:
    """Compile the library into `directory`; skips the test, loudly, where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("NO C COMPILER: the real bindings were NOT tested against known joules")
    source = Path(__file__).with_name("nvml_stub.c")
    target = directory / "libnvidia-ml.so.1"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(target), str(source), "-lm"], check=True)
    return Stub(directory)
