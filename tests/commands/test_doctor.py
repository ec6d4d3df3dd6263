"""`sweetspot doctor` as a user types it: with and without a GPU, Slurm and the packages of the analysis."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nvml_stub
from checkouts import ROOT
from nvml_stub import H100, OTHER, Trace

SLURM = {
    "sbatch": "",
    "sinfo": 'echo "cpu|12|(null)|7-00:00:00"; echo "gpu|3|gpu:h100:4|12:00:00"',
    "scontrol": 'echo "AccountingStorageType = accounting_storage/none"; echo "MinJobAge = {age} sec"',
    "sacct": "exit 1",
}


def doctor(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweetspot", "doctor", *arguments]
    known = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(command, capture_output=True, text=True, env={**known, **(environment or {})}, timeout=60)


def test_without_a_gpu_the_demo_runs_and_the_rest_is_explained() -> None:
    done = doctor("--json", environment={"PATH": str(Path(sys.executable).parent)})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["snakemake"].startswith("9.")
    assert found["boards"] == []
    assert found["problems"]["demo"] == []
    assert "libnvidia-ml.so.1 was not found" in found["problems"]["measuring"][0]
    assert "no Slurm here" in found["problems"]["slurm"][0]
    assert found["disk"]["free_gb"] > 0
    said = doctor().stdout
    assert "the demo: nothing stands in the way" in said
    assert "no GPU that can be measured here" in said


def test_boards_are_shown_with_their_sensors_and_what_is_wrong_with_others(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: nothing of NVML was tested")
    stub = nvml_stub.build(tmp_path)
    stub.set("2/mig 1", "driver 580.1", trace=Trace(((1.0, 400.0, 400.0),)), boards=(H100, OTHER), real=True)
    done = doctor("--json", environment=stub.environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (board,) = found["boards"]
    assert (board["gpu_uuid"], board["driver_version"]) == (H100.split()[0], "580.1")
    assert board["sensors"] == {"energy counter": True, "power over 25 ms": True, "power over 1 s": True}
    (problem,) = found["problems"]["measuring"]
    assert OTHER.split()[0] in problem
    assert "MIG" in problem
    assert "energy counter yes" in doctor(environment=stub.environment).stdout


@pytest.mark.parametrize(("age", "word"), [(3600, "nothing stands in the way"), (60, "forgets jobs 60 s")])
def test_slurm_is_shown_with_its_partitions(tmp_path: Path, age: int, word: str) -> None:
    for name, script in SLURM.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + script.replace("{age}", str(age)) + "\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    partitions = json.loads(doctor("--json", environment=environment).stdout)["slurm"]["partitions"]
    assert [(one["name"], one["gpus"]) for one in partitions] == [("cpu", ""), ("gpu", "gpu:h100:4")]
    assert word in doctor(environment=environment).stdout.split("--profile slurm: ")[1]


def test_an_environment_without_the_packages_is_told_what_to_install() -> None:
    command = [sys.executable, "-S", "-m", "sweetspot", "doctor"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the demo: would fail" in done.stdout
    assert "the Python package polars is missing" in done.stdout
