"""Which published board the name of a GPU means."""

import pytest

from sweetspot import gpus


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
        ("NVIDIA L40", None),
        ("my GPU", None),
    ],
)
def test_other_names_mean_one_board_or_none(name: str, board: str | None) -> None:
    found = gpus.find(name)
    assert (found and found.name) == board
