"""The real Snakemake on a machine with two GPUs and no scheduler; driver and engine are stand-ins."""

import json
import sys
from pathlib import Path

import pytest

import nvml_stub
from checkouts import Checkout
from nvml_stub import H100, OTHER, Trace

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: NVML was not tested")

# Runs a job with an engine that waits, with its GPUs taken, until another job has taken others.
ENGINE = """
import os, sys, time
from pathlib import Path
from sweetspot.engines import BatchRun, vllm
from sweetspot.measure import session
from sweetspot.sensors import open_sensors
from sweetspot.sensors.clock import Clock

class Engine:
    version = "1"
    def run(self, n, m):
        time.sleep(0.1)
        return BatchRun(8, 1)
    def reasons(self):
        return ()
    def close(self):
        pass

def open_device(spec, directory):
    sensors = open_sensors(spec.gpu, spec.gpus)
    here = Path(os.environ["TMPDIR"], "together")
    here.mkdir(exist_ok=True)
    (here / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while spec.gpus == 1 and len(list(here.iterdir())) < 2:
        assert time.monotonic() < deadline, "no other job runs at the same time"
        time.sleep(0.05)
    return Engine(), sensors, Clock()

vllm.version, vllm.build, vllm.open_device = lambda: "1", lambda spec, place: {}, open_device
sys.exit(session.main(sys.argv[3:]))  # after -m sweetspot.measure.session
"""
PROTOCOL = {"window_s": 1.0, "window_runs": 1, "window_max_s": 1.0, "warmup_s": 0.1, "warmup_runs": 1, "visits": 1}
PROTOCOL |= {"warmup_max_s": 0.2, "repetitions": 1, "min_repetitions": 1, "idle_s": 1.0, "energy_tolerance": 0.9}
PROTOCOL |= {"poll_gap_s": 60.0, "counter_timeout_s": 60.0}  # the host may be busy


def test_as_many_jobs_run_as_there_are_gpus(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs of one GPU each run at once, on different ones; one needs both; one needs more than there are."""
    stub = nvml_stub.build(tmp_path)
    stub.set(boards=(H100, OTHER), trace=Trace(((1.0, 400.0, 400.0),)), real=True)
    for name, value in stub.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    engine = tmp_path / "engine.py"
    engine.write_text(ENGINE)
    architecture = "../resources/architectures/llama-3.2-1b.json\tbfloat16"
    lines = ["model\tarchitecture\tprecision\ttensor_parallel", f"one\t{architecture}\t1"]
    lines += [f"another\t{architecture}\t1", f"both\t{architecture}\t2", f"four\t{architecture}\t4"]
    (checkout.path / "config/several.tsv").write_text("\n".join([*lines, ""]))
    checkout.configure(
        models="config/several.tsv",
        select=None,
        input_tokens=[64],
        output_tokens=[64],
        batches=[8],
        engine={"name": "vllm", "python": f"{sys.executable} {engine}"},
        protocol=PROTOCOL,
    )
    done = checkout.snakemake("--until", "measure", "--cores", "4")
    said = done.stdout + done.stderr
    assert "GPUs of this machine for jobs: 2" in said, "Snakemake counts the GPUs of this machine"
    assert "needs 4 GPUs of one node, but this process sees 2" in said
    rows = {
        model: next(row for row in map(json.loads, file.read_text().splitlines()) if row["valid"])
        for model in ("one", "another", "both")
        for file in checkout.out.glob(f"measurements/{model}/bs8/*.jsonl")
    }
    assert len(rows) == 3, said
    uuids = [board.split()[0] for board in (H100, OTHER)]
    assert sorted(rows[model]["gpu_uuid"] for model in ("one", "another")) == uuids
    assert rows["both"]["gpu_uuid"] == ";".join(uuids)
    assert rows["both"]["power_w"] == pytest.approx(800, rel=0.1)
