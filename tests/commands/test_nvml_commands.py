"""`sweetspot meter` and `sweetspot probe` as a user types them, in real time on a library of known power."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nvml_stub
from nvml_stub import H100, OTHER, START_S, Stub, Trace

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: nothing of NVML was tested")

CONSTANT = Trace(((1.0, 400.0, 400.0),))
UUID = H100.split()[0]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))


def sweetspot(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweetspot", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture
def there(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return {**os.environ, **stub.environment}


def test_any_command_is_measured(stub: Stub, there: dict[str, str]) -> None:
    stub.set(trace=CONSTANT, real=True)
    done = sweetspot(there, "meter", "--json", "--", "sh", "-c", "echo said; sleep 2; exit 7")
    assert done.returncode == 7, done.stderr
    assert done.stderr == "said\n"
    result = json.loads(done.stdout)
    assert (result["valid"], result["reasons"], result["exit_status"]) == (True, [], 7)
    assert result["duration_s"] == pytest.approx(2.0, abs=0.3)
    for source in ("energy_j", "energy_instant_j", "energy_average_j"):
        assert result[source] == pytest.approx(400 * result["duration_s"], rel=0.03)
    assert set(result["uncertainty"]) == {"gain", "counter_step", "tail", "total"}
    assert result["uncertainty"]["gain"] == 0.05
    assert result["gpu_uuid"] == UUID


def test_the_command_sees_the_board_that_is_measured_and_no_other(stub: Stub, there: dict[str, str]) -> None:
    stub.set(boards=(H100, OTHER), trace=CONSTANT, real=True)
    other = OTHER.split()[0]
    done = sweetspot(there, "meter", "--gpu", other, "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; sleep 1.2")
    assert done.stdout == f"{other}\n", done.stderr


def test_the_result_for_people_leaves_standard_output_to_the_command(stub: Stub, there: dict[str, str]) -> None:
    stub.set("factor 0.5", trace=CONSTANT, real=True)
    done = sweetspot(there, "meter", "--", "sh", "-c", "echo said; sleep 1.2; kill -9 $$")
    assert done.returncode == 128 + 9
    assert done.stdout == "said\n"
    assert "NOT VALID" in done.stderr
    assert "counter_vs_integral" in done.stderr


def test_a_gpu_lost_under_a_command(stub: Stub, there: dict[str, str]) -> None:
    stub.set(f"@{START_S + 2} lost", trace=CONSTANT, real=True)
    done = sweetspot(there, "meter", "--json", "--", "sleep", "2.5")
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert (result["energy_j"], result["valid"], result["reasons"]) == (None, False, ["gpu_lost"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["meter", "--", "no-such-command"], "no-such-command"),
        (["meter", "--gpu", "GPU-9", "--", "true"], "GPU-9"),
        (["probe", "--seconds", "0"], "--seconds 0"),
        (["probe", "--seconds", "4", "--out", "/dev/null/machine.json"], "--out"),
    ],
)
def test_a_mistake_is_one_message(stub: Stub, there: dict[str, str], arguments: list[str], part: str) -> None:
    stub.set(trace=CONSTANT, real=True)
    done = sweetspot(there, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("sweetspot: error: ")
    assert part in done.stderr


def test_the_probe_writes_a_machine_record(stub: Stub, there: dict[str, str], tmp_path: Path) -> None:
    stub.set(trace=Trace(((31.0, 200.0, 600.0),)), real=True)
    start_s = time.monotonic()
    done = sweetspot(there, "probe", "--seconds", "6", "--out", tmp_path / "a/machine.json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start_s < 12
    record = json.loads((tmp_path / "a/machine.json").read_text())
    assert record["machine"]["gpu_uuid"] == UUID
    assert record["sensors"]["counter"]["period_s"] == pytest.approx(0.1, abs=0.02)
    assert "counter_step_s" in done.stdout
    judged = sweetspot(there, "meter", "--machine", tmp_path / "a/machine.json", "--json", "--", "sleep", "1.5")
    assert judged.returncode == 0, judged.stderr
    assert json.loads(judged.stdout)["valid"]
    record["protocol"]["sensor_s"] = 3.0
    (tmp_path / "slow.json").write_text(json.dumps(record))
    judged = sweetspot(there, "meter", "--machine", tmp_path / "slow.json", "--json", "--", "sleep", "1.5")
    assert json.loads(judged.stdout)["reasons"] == ["window_too_short"]


def test_no_library_is_one_message(stub: Stub) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": ""}
    code = "import pynvml, sys; sys.exit(bool(pynvml.nvmlInit()))"
    if subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0:
        pytest.skip("this machine has NVIDIA's library")
    done = sweetspot(environment, "meter", "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith("sweetspot: error: ")
    assert "libnvidia-ml.so.1" in done.stderr


def test_no_bindings_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError")
    done = sweetspot({**os.environ, "PYTHONPATH": str(tmp_path)}, "meter", "--", "true")
    assert done.returncode == 1
    assert "pip install nvidia-ml-py" in done.stderr
