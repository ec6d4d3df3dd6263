"""Which published board the name of a GPU means."""

import pytest

from sweetspot import gpus
from sweetspot.precision import ACTIVATIONS


@pytest.mark.parametrize("name", gpus.names())
def test_a_name_that_nvml_reports_is_that_board(name: str) -> None:
    found = [gpus.find(name), gpus.find(f"{name} (SIMULATED)")]
    assert [gpu and gpu.name for gpu in found] == [name, name]


@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("H100", "NVIDIA H100 80GB HBM3"),
        ("Nvidia H100 GPU", "NVIDIA H100 80GB HBM3"),
        ("H100-SXM5-80GB", "NVIDIA H100 80GB HBM3"),
        ("H100 pcie", "NVIDIA H100 PCIe"),
        ("h100-nvl", "NVIDIA H100 NVL"),
        ("A100", "NVIDIA A100-SXM4-80GB"),
        ("A100 40GB", "NVIDIA A100-SXM4-40GB"),
        ("A100 PCIe", "NVIDIA A100 80GB PCIe"),
        ("A6000", "NVIDIA RTX A6000"),
        ("A100-SXM-64GB", None),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A4000", None),
        ("H100 96GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("V100", "Tesla V100-SXM2-32GB"),
        ("L40", "NVIDIA L40"),
        ("L40S", "NVIDIA L40S"),
        ("A10", "NVIDIA A10"),
        ("A40", "NVIDIA A40"),
        ("A800", "NVIDIA A800-SXM4-80GB"),
        ("H800 PCIe", "NVIDIA H800 PCIe"),
        ("H20", "NVIDIA H20"),
        ("H20 141GB", None),
        ("H20-3e", "NVIDIA H20-3e"),
        ("H200 141GB", "NVIDIA H200"),
        ("GH200", "NVIDIA GH200 480GB"),
        ("GH200 144GB", "NVIDIA GH200 144G HBM3e"),
        ("B200", "NVIDIA B200"),
        ("B200 192GB", "NVIDIA B200"),
        ("GB200 NVL72", "NVIDIA GB200"),
        ("B300", "NVIDIA B300 SXM6 AC"),
        ("GB300", None),
        ("RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("RTX 5090", "NVIDIA GeForce RTX 5090"),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        ("RTX Pro 6000 Workstation", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
        ("RTX PRO 6000 Max-Q", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition"),
        ("RTX PRO 5000", None),
        ("Quadro RTX 6000", None),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("my GPU", None),
    ],
)
def test_other_names_mean_one_board_or_none(name: str, board: str | None) -> None:
    found = gpus.find(name)
    assert (found and found.name) == board


@pytest.mark.parametrize("name", gpus.names())
def test_a_data_sheet_gives_dense_rates_of_its_tensor_cores(name: str) -> None:
    """Halving the width doubles the rate at least; B300's FP4 and V100's float16 were made faster than that."""
    gpu = gpus.find(name)
    assert gpu is not None
    assert set(gpu.peak_flops) <= set(ACTIVATIONS)
    rate = gpu.peak_flops
    assert rate["float16"] / rate["float32"] == pytest.approx(2, rel=0.03) or name.startswith("Tesla")
    assert rate["float16"] == rate.get("bfloat16", rate["float16"])
    for half, whole in (("fp8", "float16"), ("int8", "float16"), ("nvfp4", "fp8")):
        if half in rate:
            assert 1.99 < rate[half] / rate[whole] < 4.1
    assert 0.2e12 < gpu.bandwidth_bytes_per_s < 8.1e12
    assert 50 < gpu.tdp_w <= 1200
    assert 15e9 < gpu.memory_bytes < 290e9


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("V100", set()),
        ("T4", {"int8"}),
        ("A100", {"bfloat16", "int8"}),
        ("L40S", {"bfloat16", "int8", "fp8"}),
        ("H100", {"bfloat16", "int8", "fp8"}),
        ("B200", {"bfloat16", "int8", "fp8", "nvfp4", "mxfp4"}),
        ("RTX 5090", {"bfloat16", "int8", "fp8", "nvfp4", "mxfp4"}),
    ],
)
def test_a_generation_has_the_formats_of_its_tensor_cores(name: str, formats: set[str]) -> None:
    gpu = gpus.find(name)
    assert gpu is not None
    assert gpu.peak_flops.keys() == {"float32", "float16", *formats}
