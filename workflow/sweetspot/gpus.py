"""Data-sheet figures of the known GPUs."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    """A board: NVML's name, memory in bytes, power limit in W, bandwidth in B/s, dense FLOP/s by precision.

    `link_bytes_per_s` is what it can send to other boards of a node: NVLink's rate for boards that have it all to all,
    otherwise that of PCIe 4.0 x16.
    """

    name: str
    memory_bytes: int
    tdp_w: float
    bandwidth_bytes_per_s: float = math.nan
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    link_bytes_per_s: float = 32e9


# NVIDIA's data sheets. Rates are dense (half of the figures with sparsity) and accumulate in float32, at half rate on
# GeForce; float32 means TF32 on the tensor cores, on V100 and T4 the ordinary cores. A format without a rate has no
# tensor cores there. The power limit is the largest that a board of that name ships with.
_FP4 = ("nvfp4", "mxfp4")


def _rates(bfloat16: float, tf32: float, *, int8: float = 0, fp8: float = 0, fp4: float = 0) -> dict[str, float]:
    """Rates in FLOP/s by format, from those in TFLOP/s."""
    rates = {"float32": tf32, "bfloat16": bfloat16, "float16": bfloat16, "fp8": fp8, "int8": int8}
    return {name: rate * 1e12 for name, rate in {**rates, **dict.fromkeys(_FP4, fp4)}.items() if rate}


_H100 = _rates(989.4, 494.7, fp8=1978.9, int8=1978.9)
_H100_PCIE = _rates(756, 378, fp8=1513, int8=1513)
_NVL = _rates(835.5, 417.5, fp8=1670.5, int8=1670.5)
_H20 = _rates(148, 74, fp8=296, int8=296)
_A100 = _rates(312, 156, int8=624)
_B200 = _rates(2250, 1125, fp8=4500, int8=4500, fp4=9000)
_GB200 = _rates(2500, 1250, fp8=5000, int8=5000, fp4=10000)
_B300 = _rates(2250, 1125, fp8=4500, fp4=13500)  # its int8, a small part of B200's, is not published consistently
_PRO_6000 = _rates(503.8, 251.9, fp8=1007.6, int8=1007.6, fp4=2015.2)
_PRO_6000_MAX_Q = _rates(438.9, 219.5, fp8=877.8, int8=877.8, fp4=1755.7)
_V100 = {"float32": 15.7e12, "float16": 125e12}
_T4 = {"float32": 8.1e12, "float16": 65e12, "int8": 130e12}

# One direction: half of the data sheet's figure. Export versions of the A100 and H100 have less.
_NVLINK_5, _NVLINK_4, _NVLINK_3, _NVLINK_2, _EXPORT = 900e9, 450e9, 300e9, 150e9, 200e9

# Names are those that NVML reports. A chip's name alone means the first of its boards.
_GPUS = (
    Gpu("NVIDIA H100 80GB HBM3", 80 * 1024**3, 700.0, 3.35e12, _H100, _NVLINK_4),
    Gpu("NVIDIA H100 PCIe", 80 * 1024**3, 350.0, 2.0e12, _H100_PCIE),
    Gpu("NVIDIA H100 NVL", 94 * 10**9, 400.0, 3.9e12, _NVL),
    Gpu("NVIDIA H200", 141 * 10**9, 700.0, 4.8e12, _H100, _NVLINK_4),
    Gpu("NVIDIA H200 NVL", 141 * 10**9, 600.0, 4.8e12, _NVL),
    # The module: CPU and GPU share the 900 W. The first two are named by the CPU's memory.
    Gpu("NVIDIA GH200 480GB", 96 * 10**9, 900.0, 4.0e12, _H100, _NVLINK_4),
    Gpu("NVIDIA GH200 120GB", 96 * 10**9, 900.0, 4.0e12, _H100, _NVLINK_4),
    Gpu("NVIDIA GH200 144G HBM3e", 144 * 10**9, 900.0, 4.9e12, _H100, _NVLINK_4),
    Gpu("NVIDIA H20", 96 * 10**9, 400.0, 4.0e12, _H20, _NVLINK_4),
    Gpu("NVIDIA H20-3e", 141 * 10**9, 400.0, 4.8e12, _H20, _NVLINK_4),
    Gpu("NVIDIA H800", 80 * 1024**3, 700.0, 3.35e12, _H100, _EXPORT),
    Gpu("NVIDIA H800 PCIe", 80 * 1024**3, 350.0, 2.0e12, _H100_PCIE),
    Gpu("NVIDIA B200", 180 * 10**9, 1000.0, 7.7e12, _B200, _NVLINK_5),
    Gpu("NVIDIA GB200", 186 * 10**9, 1200.0, 8.0e12, _GB200, _NVLINK_5),
    Gpu("NVIDIA B300 SXM6 AC", 270 * 10**9, 1100.0, 7.7e12, _B300, _NVLINK_5),
    Gpu("NVIDIA A100-SXM4-80GB", 80 * 1024**3, 400.0, 2.039e12, _A100, _NVLINK_3),
    Gpu("NVIDIA A100-SXM4-40GB", 40 * 1024**3, 400.0, 1.555e12, _A100, _NVLINK_3),
    Gpu("NVIDIA A100 80GB PCIe", 80 * 1024**3, 300.0, 1.935e12, _A100),
    Gpu("NVIDIA A100-PCIE-40GB", 40 * 1024**3, 250.0, 1.555e12, _A100),
    Gpu("NVIDIA A800-SXM4-80GB", 80 * 1024**3, 400.0, 2.039e12, _A100, _EXPORT),
    Gpu("NVIDIA A800 80GB PCIe", 80 * 1024**3, 300.0, 1.935e12, _A100),
    Gpu("NVIDIA L40S", 48 * 10**9, 350.0, 0.864e12, _rates(362, 183, fp8=733, int8=733)),
    Gpu("NVIDIA L40", 48 * 10**9, 300.0, 0.864e12, _rates(181, 90.5, fp8=362, int8=362)),
    Gpu("NVIDIA L4", 24 * 10**9, 72.0, 0.3e12, _rates(121, 60, fp8=242.5, int8=242.5)),
    Gpu("NVIDIA A30", 24 * 10**9, 165.0, 0.933e12, _rates(165, 82, int8=330)),
    Gpu("NVIDIA A40", 48 * 10**9, 300.0, 0.696e12, _rates(149.7, 74.8, int8=299.3)),
    Gpu("NVIDIA A10", 24 * 10**9, 150.0, 0.6e12, _rates(125, 62.5, int8=250)),
    Gpu("NVIDIA RTX PRO 6000 Blackwell Server Edition", 96 * 10**9, 600.0, 1.597e12, _PRO_6000),
    Gpu("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96 * 10**9, 600.0, 1.792e12, _PRO_6000),
    Gpu("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 96 * 10**9, 300.0, 1.792e12, _PRO_6000_MAX_Q),
    Gpu("NVIDIA RTX A6000", 48 * 10**9, 300.0, 0.768e12, _rates(154.8, 77.4, int8=309.7)),
    Gpu("NVIDIA GeForce RTX 5090", 32 * 10**9, 575.0, 1.792e12, _rates(209.5, 104.8, fp8=419, int8=838, fp4=1676)),
    Gpu("NVIDIA GeForce RTX 4090", 24 * 10**9, 450.0, 1.008e12, _rates(165.2, 82.6, fp8=330.3, int8=660.6)),
    Gpu("Tesla V100-SXM2-32GB", 32 * 1024**3, 300.0, 0.9e12, _V100, _NVLINK_2),
    Gpu("Tesla V100-SXM2-16GB", 16 * 1024**3, 300.0, 0.9e12, _V100, _NVLINK_2),
    Gpu("Tesla T4", 16 * 10**9, 70.0, 0.32e12, _T4),
)
# What tells boards of a chip apart. A name without any of these means the SXM module, or the only board; a name without
# an edition means the first.
_SIZE_TOLERANCE = 0.1  # a B200 of 192 GB offers 180
_EDITIONS = {"server", "workstation"}
_FORMS = {"pcie", "nvl", "3e", "max", "ada", "ti", "super", "d", "laptop", "mobile", "mig", *_EDITIONS}


def names() -> list[str]:
    """The names of all known boards."""
    return [gpu.name for gpu in _GPUS]


def find(name: str) -> Gpu | None:
    """The board that a name means, "H100" the SXM one, "A100" the one of 80 GB; None for unknown forms and sizes."""
    if exact := [gpu for gpu in _GPUS if gpu.name == name]:
        return exact[0]
    words = _words(name)
    return next((gpu for gpu in _GPUS if _fits(gpu, words)), None)


def _fits(gpu: Gpu, words: set[str]) -> bool:
    own, form, sizes = _words(gpu.name), words & _FORMS, _sizes(words)
    if not _chip(own) & _chip(words) or not (own & _FORMS) - _EDITIONS <= form <= own:
        return False
    alike = any(abs(size * 1e9 / gpu.memory_bytes - 1) < _SIZE_TOLERANCE for size in sizes)
    return not sizes or alike or bool(sizes & _sizes(own))


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", re.sub(r"\bpro (?=\d)", "pro", name.lower())))


def _chip(words: set[str]) -> set[str]:
    return {word for word in words if re.fullmatch(r"(h|gh|b|gb|a|l|v|t|pro)\d+s?|\d{4}", word)}


def _sizes(words: set[str]) -> set[int]:
    return {int(found[1]) for word in words if (found := re.fullmatch(r"(\d+)gb?", word))}
