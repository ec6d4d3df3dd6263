"""Published facts of the GPUs that this project has a use for."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A board: name as NVML reports it, memory in bytes, power limit in W, bandwidth in B/s, dense FLOP/s."""

    name: str
    memory_bytes: int
    tdp_w: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]


# NVIDIA's data sheets: H100 (SXM5 and PCIe, 2023), H200 (2024), A100 (SXM4, 2021), GH200 (2023). Dense rates; those
# of float32 are the tensor cores' TF32.
_H100 = {"float32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12, "fp8": 1978.9e12}
_A100 = {"float32": 156e12, "bfloat16": 312e12, "float16": 312e12}
_H100_PCIE = {"float32": 378e12, "bfloat16": 756e12, "float16": 756e12, "fp8": 1513e12}

_GPUS = (
    Gpu("NVIDIA H100 80GB HBM3", 80 * 1024**3, 700.0, 3.35e12, _H100),
    Gpu("NVIDIA H100 PCIe", 80 * 1024**3, 350.0, 2.0e12, _H100_PCIE),
    Gpu("NVIDIA H200", 141 * 10**9, 700.0, 4.8e12, _H100),
    Gpu("NVIDIA GH200 480GB", 96 * 10**9, 900.0, 4.0e12, _H100),  # the module: CPU and GPU share the 900 W
    Gpu("NVIDIA A100-SXM4-80GB", 80 * 1024**3, 400.0, 2.039e12, _A100),
    Gpu("NVIDIA A100-SXM4-40GB", 40 * 1024**3, 400.0, 1.555e12, _A100),
)


def names() -> list[str]:
    """The names of all known boards."""
    return [gpu.name for gpu in _GPUS]


def find(name: str) -> Gpu | None:
    """The board that a name means, or None. "H100" and "Nvidia H100 GPU" mean the SXM board, "A100" that with 80 GB."""
    words = set(re.findall(r"[a-z]+\d+|pcie|\d+gb", name.lower()))
    chip = next((chip for chip in ("gh200", "h200", "h100", "a100") if chip in words), None)
    of_chip = [gpu for gpu in _GPUS if chip and chip in re.findall(r"[a-z]+\d+", gpu.name.lower())]
    for gpu in of_chip:
        if name == gpu.name or (words - {chip}) & set(re.findall(r"pcie|\d+gb", gpu.name.lower())):
            return gpu
    return of_chip[0] if of_chip else None
