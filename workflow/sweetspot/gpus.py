"""Data-sheet figures of the known GPUs."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A board: NVML's name, memory in bytes, power limit in W, bandwidth in B/s, dense FLOP/s by precision.

    `link_bytes_per_s` is what it can send to other boards of a node: NVLink's rate for boards that have it all to all,
    otherwise that of PCIe 4.0 x16.
    """

    name: str
    memory_bytes: int
    tdp_w: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]
    link_bytes_per_s: float = 32e9


# NVIDIA's data sheets. Rates are dense (half of the figures with sparsity); float32 means TF32 on the tensor cores, on
# V100 and T4 the ordinary cores. The power limit is the largest that a board of that name ships with.
_H100 = {"float32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12, "fp8": 1978.9e12}
_A100 = {"float32": 156e12, "bfloat16": 312e12, "float16": 312e12}
_H100_PCIE = {"float32": 378e12, "bfloat16": 756e12, "float16": 756e12, "fp8": 1513e12}
_NVL = {"float32": 417.5e12, "bfloat16": 835.5e12, "float16": 835.5e12, "fp8": 1670.5e12}
_L40S = {"float32": 183e12, "bfloat16": 362e12, "float16": 362e12, "fp8": 733e12}
_L4 = {"float32": 60e12, "bfloat16": 121e12, "float16": 121e12, "fp8": 242.5e12}
_A10 = {"float32": 62.5e12, "bfloat16": 125e12, "float16": 125e12}
_A30 = {"float32": 82e12, "bfloat16": 165e12, "float16": 165e12}
_A6000 = {"float32": 77.4e12, "bfloat16": 154.8e12, "float16": 154.8e12}

_NVLINK_4, _NVLINK_3, _NVLINK_2 = 450e9, 300e9, 150e9  # one direction: half of the data sheet's figure

# Names are those that NVML reports. A chip's name alone means the first of its boards.
_GPUS = (
    Gpu("NVIDIA H100 80GB HBM3", 80 * 1024**3, 700.0, 3.35e12, _H100, _NVLINK_4),
    Gpu("NVIDIA H100 PCIe", 80 * 1024**3, 350.0, 2.0e12, _H100_PCIE),
    Gpu("NVIDIA H100 NVL", 94 * 10**9, 400.0, 3.9e12, _NVL),
    Gpu("NVIDIA H200", 141 * 10**9, 700.0, 4.8e12, _H100, _NVLINK_4),
    Gpu("NVIDIA H200 NVL", 141 * 10**9, 600.0, 4.8e12, _NVL),
    Gpu("NVIDIA GH200 480GB", 96 * 10**9, 900.0, 4.0e12, _H100, _NVLINK_4),  # the module: CPU and GPU share the 900 W
    Gpu("NVIDIA A100-SXM4-80GB", 80 * 1024**3, 400.0, 2.039e12, _A100, _NVLINK_3),
    Gpu("NVIDIA A100-SXM4-40GB", 40 * 1024**3, 400.0, 1.555e12, _A100, _NVLINK_3),
    Gpu("NVIDIA A100 80GB PCIe", 80 * 1024**3, 300.0, 1.935e12, _A100),
    Gpu("NVIDIA A100-PCIE-40GB", 40 * 1024**3, 250.0, 1.555e12, _A100),
    Gpu("NVIDIA L40S", 48 * 10**9, 350.0, 0.864e12, _L40S),
    Gpu("NVIDIA L4", 24 * 10**9, 72.0, 0.3e12, _L4),
    Gpu("NVIDIA A30", 24 * 10**9, 165.0, 0.933e12, _A30),
    Gpu("NVIDIA A10", 24 * 10**9, 150.0, 0.6e12, _A10),
    Gpu("NVIDIA RTX A6000", 48 * 10**9, 300.0, 0.768e12, _A6000),
    Gpu("Tesla V100-SXM2-32GB", 32 * 1024**3, 300.0, 0.9e12, {"float32": 15.7e12, "float16": 125e12}, _NVLINK_2),
    Gpu("Tesla V100-SXM2-16GB", 16 * 1024**3, 300.0, 0.9e12, {"float32": 15.7e12, "float16": 125e12}, _NVLINK_2),
    Gpu("Tesla T4", 16 * 10**9, 70.0, 0.32e12, {"float32": 8.1e12, "float16": 65e12}),
)
_FORMS = ("pcie", "nvl")  # a name with neither means the SXM module, or the only board


def names() -> list[str]:
    """The names of all known boards."""
    return [gpu.name for gpu in _GPUS]


def find(name: str) -> Gpu | None:
    """The board that a name means, or None. "H100" and "Nvidia H100 GPU" mean the SXM board, "A100" the 80 GB one.

    A form factor or memory size that no known board of the chip has is an unknown board: None.
    """
    exact = [gpu for gpu in _GPUS if gpu.name == name]
    words = _words(name)
    alike = [gpu for gpu in _GPUS if _chip(_words(gpu.name)) & words and _form(_words(gpu.name)) == _form(words)]
    sizes = _sizes(words)
    fitting = exact or [
        gpu for gpu in alike if not sizes or not _sizes(_words(gpu.name)) or sizes & _sizes(_words(gpu.name))
    ]
    return fitting[0] if fitting else None


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


def _chip(words: set[str]) -> set[str]:
    return {word for word in words if re.fullmatch(r"(h|gh|a|l|v|t)\d+s?", word)}


def _form(words: set[str]) -> set[str]:
    return words.intersection(_FORMS)


def _sizes(words: set[str]) -> set[str]:
    return {word for word in words if re.fullmatch(r"\d+gb", word)}
