"""Boards without a data sheet: described in the configuration, or left to speak for themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_campaign import campaign

from standins import BOARD_BYTES, spec
from sweetspot.campaign import survey
from sweetspot.campaign.campaign import Campaign
from sweetspot.engines import EngineSpec, adapter
from sweetspot.errors import OutOfMemory, SweetspotError
from sweetspot.measure import session

NAME = "NVIDIA H999"
BOARD = {"memory_gb": 8, "power_limit_w": 150, "bandwidth_gb_per_s": 500, "tflops": {"bfloat16": 50, "float32": 25}}
SIMULATED = {"name": "simulated"}


def measured(plan: Campaign) -> list[dict[str, Any]]:
    """The rows of the campaign's first job, as the workflow measures it."""
    job = next(iter(plan.jobs))
    where = plan.places[job]
    where.architecture.parent.mkdir(parents=True, exist_ok=True)
    where.architecture.write_text(json.dumps(plan.models[job[0]].resolved))
    resolved = plan.models[job[0]].resolved
    session.build(json.loads(plan.engine_job(*job[:2])), resolved, where)
    session.measure(json.loads(plan.measure_job(*job)), resolved, where)
    return [json.loads(line) for line in where.rows.read_text().splitlines()]


def test_a_described_board_is_planned_and_simulated_as_described(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"engine": SIMULATED, "gpu": NAME, "input_tokens": [64, 64000], "output_tokens": [64]}
    plan = campaign(tmp_path, ["llama-3.2-1b bfloat16", "llama-3.1-8b bfloat16"], board=BOARD, **settings)
    judged = {(cell.model, cell.input_tokens): (cell.status, cell.reason, cell.flags) for cell in plan.cells}
    assert judged["llama-3.2-1b", 64] == ("run", "", "")
    assert judged["llama-3.2-1b", 64000] == ("run", "", "kv_limited")
    assert judged["llama-3.1-8b", 64][1].startswith(
        f"memory: weights and the KV cache of one request exceed the memory of {NAME}; tensor_parallel"
    )
    text = survey.as_text(survey.survey(plan))
    assert f"on {NAME}, engine simulated" in text
    assert "GPU h" in text
    rows = [row for row in measured(plan) if row["input_tokens"] == 64]
    assert {row["gpu"] for row in rows} == {f"{NAME} (SIMULATED)"}
    assert all(row["valid"] for row in rows)
    assert all(row["power_w"] < 1.06 * BOARD["power_limit_w"] for row in rows)
    faster = campaign(tmp_path, ["llama-3.2-1b bfloat16"], board={**BOARD, "tflops": {"bfloat16": 500}}, **settings)
    assert not set(plan.jobs) & set(faster.jobs), "another description is another board"
    quick = [row for row in measured(faster) if row["input_tokens"] == 64]
    assert quick[0]["duration_s"] < rows[0]["duration_s"]


def test_a_description_changes_no_job_of_a_real_engine(tmp_path: Path) -> None:
    """The board tells its memory itself, so rows do not depend on what a plan believed."""
    described = campaign(tmp_path, ["llama-3.2-1b bfloat16"], gpu=NAME, board=BOARD)
    assert described.jobs.keys() == campaign(tmp_path, ["llama-3.2-1b bfloat16"], gpu=NAME).jobs.keys()


@pytest.mark.parametrize(
    ("gpu", "board", "said"),
    [
        (NAME, {"memory_gb": -1}, "config: board.memory_gb is -1: must be greater than 0"),
        (
            NAME,
            {"bandwidth_gb_per_s": None},
            "board.bandwidth_gb_per_s is None: must be a number",
        ),
        (NAME, {"memory": 80}, "config: board.memory is not a setting; did you mean 'memory_gb'?"),
        (NAME, {"tflops": {}}, "config: board.tflops is {}: must be at least 1 value"),
        (NAME, {"tflops": {"bfloat16": 0}}, "config: board.tflops.bfloat16 is 0: must be greater than 0"),
        (NAME, {"tflops": {"fp7": 1}}, "config: board.tflops.fp7 is 'fp7': must be 'float32', 'bfloat16'"),
        ("NVIDIA H200", {}, "config: gpu 'NVIDIA H200' has a data sheet here; leave board out"),
    ],
)
def test_a_mistake_in_a_description_is_one_line(gpu: str, board: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SweetspotError) as error:
        campaign(tmp_path, ["llama-3.2-1b bfloat16"], gpu=gpu, board=BOARD | board)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_incomplete_description_names_every_missing_key(tmp_path: Path) -> None:
    with pytest.raises(SweetspotError) as error:
        campaign(tmp_path, ["llama-3.2-1b bfloat16"], gpu=NAME, board={"memory_gb": 8})
    missing = ("power_limit_w", "bandwidth_gb_per_s", "tflops")
    assert str(error.value).splitlines() == [f"config: board.{key} is missing; add it" for key in missing]


def test_an_unknown_board_can_be_measured_but_not_simulated(tmp_path: Path) -> None:
    plan = campaign(tmp_path, ["llama-3.1-8b bfloat16"], gpu=NAME)
    assert {(cell.status, cell.flags) for cell in plan.cells} == {("run", "")}
    assert {json.loads(plan.measure_job(*job))["engine"]["gpu"] for job in plan.jobs} == {NAME}
    found = survey.survey(plan)
    for text in (survey.as_text(found), survey.headline(found)):
        assert f"4 cells in 1 job; there is no data sheet of '{NAME}' here" in text
        assert "nan" not in text
        assert "describe the GPU under `board`" in text
    with pytest.raises(SweetspotError, match=f"gpu '{NAME}' is not known; known: .*; describe another under `board`"):
        campaign(tmp_path, ["llama-3.1-8b bfloat16"], gpu=NAME, engine=SIMULATED)


@pytest.mark.parametrize(
    ("gpu", "precision", "reason"),
    [
        ("A100", "fp8", "precision: NVIDIA A100-SXM4-80GB does not compute in fp8, but in float32, bfloat16, float16"),
        ("V100", "bfloat16", "precision: Tesla V100-SXM2-32GB does not compute in bfloat16, but in float32, float16"),
        ("H100", "fp8", ""),
    ],
)
def test_a_precision_that_a_board_does_not_have_is_refused_in_the_plan(
    gpu: str, precision: str, reason: str, tmp_path: Path
) -> None:
    plan = campaign(tmp_path, [f"opt-1.3b {precision}", "llama-3.2-1b float16"], gpu=gpu, engine=SIMULATED)
    assert plan.cells[0].model == "opt-1.3b"
    assert plan.cells[0].reason.removesuffix(", int8") == reason


def test_what_a_server_runs_is_its_own(tmp_path: Path) -> None:
    server = {"name": "vllm-server", "url": "http://localhost:8000"}
    plan = campaign(tmp_path, ["llama-3.2-1b fp8"], gpu="A100", engine=server)
    assert {cell.status for cell in plan.cells} == {"run"}


def on(spec: EngineSpec, memory_bytes: int) -> EngineSpec:
    return spec.on(type("Told", (), {"memory_bytes": lambda _: memory_bytes, "power_limit_w": lambda _: 300.0})())


def test_where_it_is_measured_the_board_tells_its_memory() -> None:
    wanted = spec("vllm", gpu=NAME)
    assert wanted.known_board is None
    assert adapter.memory_plan(wanted) is None
    plan = adapter.memory_plan(on(wanted, BOARD_BYTES))
    assert plan is not None
    assert plan.board_bytes == BOARD_BYTES
    with pytest.raises(OutOfMemory, match=f"one request of 768 tokens exceed the memory of {NAME}"):
        adapter.memory_plan(on(wanted, 2 * 10**9))
    listed = adapter.memory_plan(on(spec("vllm"), BOARD_BYTES))
    assert listed is not None
    assert listed.board_bytes == BOARD_BYTES, "not that of its data sheet"
