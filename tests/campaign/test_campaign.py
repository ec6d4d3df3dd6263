"""What the plan makes of a real engine, its weights and its limits, before any GPU is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulation import ARCHITECTURES
from sweetspot.campaign.campaign import Campaign
from sweetspot.errors import SweetspotError
from sweetspot.measure import session


def campaign(place: Path, lines: list[str], **changes: Any) -> Campaign:
    """A campaign of these lines of the table (model, precision, weights, checkpoint)."""
    header = "model\tarchitecture\tprecision\tweights\tcheckpoint\n"
    rows = []
    for line in lines:
        name, *rest = line.split()
        rows.append("\t".join([name, str(ARCHITECTURES / f"{name}.json"), *rest, *[""] * (3 - len(rest))]))
    (place / "models.tsv").write_text(header + "\n".join(rows) + "\n")
    config = {
        "campaign": "test",
        "models": str(place / "models.tsv"),
        "results": str(place / "results"),
        "input_tokens": [64, 1024],
        "output_tokens": [64, 1536],
        "batches": [8],
        "engine": {"name": "vllm"},
    }
    return Campaign({**config, **changes})


def engine(plan: Campaign, model: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(plan.engine_job(model, 8))
    assert (
        job["engine"]
        == json.loads(plan.measure_job(*next(block for block in plan.jobs if block[0] == model)))["engine"]
    )
    return job["engine"]


def test_weights_are_those_of_the_table_and_the_simulation_has_none(tmp_path: Path) -> None:
    lines = ["llama-3.2-1b bfloat16", "llama-3.2-3b bfloat16 gaussian", "qwen2-1.5b bfloat16 checkpoint weights/qwen2"]
    plan = campaign(tmp_path, lines)
    assert engine(plan, "llama-3.2-1b")["weights"] == "dummy"
    assert engine(plan, "llama-3.2-3b")["weights"] == "gaussian"
    assert "checkpoint" not in engine(plan, "llama-3.2-3b")
    assert engine(plan, "qwen2-1.5b")["checkpoint"] == str(tmp_path / "weights/qwen2"), "relative to the table"
    simulated = campaign(tmp_path, lines, engine={"name": "simulated"})
    assert engine(simulated, "qwen2-1.5b")["weights"] == "none"
    assert "checkpoint" not in engine(simulated, "qwen2-1.5b")


@pytest.mark.parametrize(
    "line", ["llama-3.2-1b bfloat16 checkpoint", "llama-3.2-1b bfloat16 dummy weights", "llama-3.2-1b bfloat16 zeros"]
)
def test_weights_without_sense_are_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(SweetspotError, match=r"row 1.*weights"):
        campaign(tmp_path, [line])


def test_an_engine_allows_no_more_than_its_longest_cell(tmp_path: Path) -> None:
    """1024 + 1536 exceed OPT's positions: what is left must not be given an engine that does."""
    plan = campaign(tmp_path, ["opt-1.3b float16"])
    limits = {"max_input_tokens": 1024, "max_output_tokens": 1536, "max_total_tokens": 64 + 1536}
    assert json.loads(plan.engine_job("opt-1.3b", 8))["limits"] == limits
    longer = campaign(tmp_path, ["opt-1.3b float16"], positions="extend")
    assert json.loads(longer.engine_job("opt-1.3b", 8))["limits"]["max_total_tokens"] == 1024 + 1536


def test_positions_of_a_checkpoint_are_never_extended(tmp_path: Path) -> None:
    plan = campaign(tmp_path, ["opt-1.3b float16 checkpoint weights"], positions="extend")
    assert [cell.status for cell in plan.cells] == ["run", "run", "run", "skipped"]
    assert plan.cells[-1].reason == "positions: input + output tokens exceed the model's 2048 positions"


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("trt-engine", "llama-3.2-1b bfloat16 gaussian", "no access to its weights"),
        ("vllm", "llama-3.2-1b float32", "engine vllm does not run in float32, but in bfloat16, float16, fp8, "),
        ("vllm", "llama-3.2-1b fp8 gaussian", "weights in fp8 cannot be gaussian; set weights to dummy"),
        ("trt-engine", "llama-3.2-1b float32", "does not run in float32"),
    ],
)
def test_what_an_engine_cannot_run_is_skipped_with_its_reason(
    name: str, line: str, reason: str, tmp_path: Path
) -> None:
    plan = campaign(tmp_path, [line, "qwen2-1.5b bfloat16"], engine={"name": name})
    skipped = [cell for cell in plan.cells if cell.status == "skipped"]
    assert {cell.model for cell in skipped} == {line.split()[0]}
    assert all(reason in cell.reason for cell in skipped)
    assert {model for model, *_ in plan.jobs} == {"qwen2-1.5b"}
    with pytest.raises(SweetspotError, match="no cell can run"):
        campaign(tmp_path, [line], engine={"name": name})


@pytest.mark.parametrize(("name", "real"), [("simulated", False), ("vllm", True), ("trt-engine", True)])
def test_only_real_engines_need_a_gpu(name: str, real: bool, tmp_path: Path) -> None:
    assert campaign(tmp_path, ["llama-3.2-1b bfloat16"], engine={"name": name}).needs_gpus == real


def test_a_checkpoint_that_moved_is_the_same_and_one_of_another_name_is_not(tmp_path: Path) -> None:
    """By its name, not its content: who analyses rows elsewhere does not have the weights."""
    here, moved, other = (
        campaign(tmp_path, [f"qwen2-1.5b bfloat16 checkpoint {place}"])
        for place in ("weights/qwen2", "/elsewhere/qwen2/", "weights/qwen2-tuned")
    )

    def keys(plan: Campaign) -> tuple[list[Any], str]:
        (job,) = plan.jobs
        return [job], session.key(json.loads(plan.measure_job(*job)), plan.models["qwen2-1.5b"].resolved)

    assert keys(here) == keys(moved)
    assert engine(here, "qwen2-1.5b")["checkpoint"] != engine(moved, "qwen2-1.5b")["checkpoint"], "where it is read"
    assert keys(here)[0] != keys(other)[0]
    assert keys(here)[1] != keys(other)[1]


def record(place: Path, gpu: str, **numbers: float) -> str:
    """The machine record of a board."""
    (place / "machine.json").write_text(json.dumps({"machine": {"gpu": gpu}, "protocol": numbers}))
    return str(place / "machine.json")


def test_the_machine_record_sets_the_numbers_that_the_configuration_leaves_open(tmp_path: Path) -> None:
    machine = record(tmp_path, "NVIDIA H100 80GB HBM3", counter_step_s=0.2, window_s=20.0)
    plan = campaign(tmp_path, ["opt-1.3b bfloat16"], machine=machine, protocol={"window_s": 12, "visits": 1})
    protocol = json.loads(plan.measure_job(*next(iter(plan.jobs))))["protocol"]
    assert (protocol["counter_step_s"], protocol["window_s"], protocol["visits"]) == (0.2, 12, 1)


@pytest.mark.parametrize(
    ("gpu", "numbers", "part"),
    [
        ("NVIDIA A100-SXM4-80GB", {}, "record of a NVIDIA A100-SXM4-80GB"),
        ("NVIDIA H100 80GB HBM3", {"steps": 1.0}, "not a machine record"),
        ("NVIDIA H100 80GB HBM3", {"window_s": -1.0}, "protocol.window_s"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path: Path, gpu: str, numbers: dict[str, float], part: str) -> None:
    with pytest.raises(SweetspotError, match=part):
        campaign(tmp_path, ["opt-1.3b bfloat16"], machine=record(tmp_path, gpu, **numbers))


def test_settings_of_a_run_are_in_the_job_only_where_they_are_not_as_usual(tmp_path: Path) -> None:
    usual = campaign(tmp_path, ["opt-1.3b bfloat16"])
    assert "cuda_graphs" not in engine(usual, "opt-1.3b"), "rows measured before there was a choice stay known"
    other = campaign(tmp_path, ["opt-1.3b bfloat16"], engine={"name": "vllm", "cuda_graphs": False})
    assert engine(other, "opt-1.3b")["cuda_graphs"] is False
    assert set(usual.jobs).isdisjoint(other.jobs)


SERVER = {"name": "vllm-server"}
MISTAKES = [
    ({"name": "vllm", "url": "http://localhost:8000"}, "engine vllm is no server; leave engine.url out"),
    (SERVER, "needs engine.url"),
    (SERVER | {"url": ""}, "engine.url is ''"),
    (SERVER | {"command": ""}, "engine.command is empty"),
    (SERVER | {"command": "  "}, "engine.command is empty"),
    (SERVER | {"command": "vllm 'x {port}"}, "No closing quotation"),
    (SERVER | {"command": "vllm serve x"}, "must pass {port} on"),
    (SERVER | {"command": "vllm serve {modle} --port {port}"}, "{modle} is not known; known: model, name"),
    (SERVER | {"url": "http://localhost:8000", "pid": 1, "container": "c"}, "leave one out"),
    (SERVER | {"command": "vllm --port {port}", "pid": 1}, "whose process is known"),
    (SERVER | {"url": "http://localhost:8000", "cuda_graphs": False}, "set it where you start the server"),
    *(
        (SERVER | {"command": f"vllm serve x --port {{port}}{more}"}, f"engine.command: {said} means something to a")
        for more, said in ((" && ls", "&&"), ("|tee log", "|"), (" > log", ">"), (" 2>&1", ">&"), ("; ls", ";"))
    ),
    (SERVER | {"command": "CUDA_VISIBLE_DEVICES=1 vllm --port {port}"}, "write `env NAME=value program`"),
    (SERVER | {"command": "vllm serve $HOME/x --port {port}"}, "$HOME/x means something"),
    (SERVER | {"command": "~/bin/vllm serve x --port {port}"}, "~/bin/vllm means something"),
    (
        SERVER | {"command": "vllm serve x --port 8001", "url": "http://localhost:8000"},
        "has the server listen at port 8001, engine.url says 8000",
    ),
    *(
        (SERVER | {"url": url}, f"engine.url is {url!r}: give the server's address")
        for url in ("localhost:8000", "http://localhost:abc", "http://localhost:99999", "http://[::1", "http://a b:1")
    ),
    (SERVER | {"url": "http://a..b:8000"}, "engine.url is"),
    (SERVER | {"url": "http://localhost:8000 "}, "engine.url is"),
]


@pytest.mark.parametrize(("settings", "said"), MISTAKES)
def test_mistakes_in_the_settings_of_a_server(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SweetspotError) as error:
        campaign(tmp_path, ["llama-3.2-1b bfloat16"], engine=settings)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("env A=1 vllm serve x --port {port}", None),
        ("sh -c 'A=1 exec vllm serve x --port {port} > log 2>&1'", None),
        ("""vllm serve x --port {port} --speculative-config '{"a": "b|c;d"}'""", None),
        ("vllm serve x --port=8000", "http://localhost:8000"),
        ("serve-on-its-usual-port", "http://localhost:8000"),
    ],
)
def test_commands_that_need_no_shell(command: str, url: str | None, tmp_path: Path) -> None:
    assert campaign(tmp_path, ["llama-3.2-1b bfloat16"], engine=SERVER | {"command": command, "url": url}).jobs


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1/", "https://[::1]:8000", "http://user:key@gpu07", "http://grün:1"]
)
def test_addresses_of_servers(url: str, tmp_path: Path) -> None:
    assert campaign(tmp_path, ["llama-3.2-1b bfloat16"], engine=SERVER | {"url": url}).jobs


def test_where_a_server_runs_does_not_matter_and_how_it_is_started_does(tmp_path: Path) -> None:
    def blocks(**settings: Any) -> list[Any]:
        return list(campaign(tmp_path, ["llama-3.2-1b bfloat16"], engine=SERVER | settings).jobs)

    here = blocks(url="http://localhost:8000")
    assert here == blocks(url="http://localhost:9000", pid=7) == blocks(url="http://[::1]:1", container="nim")
    assert here != blocks(command="vllm serve x --port {port}")
    assert blocks(command="vllm serve x --port {port}") != blocks(command="vllm serve x --port {port} --enforce-eager")


def test_what_a_server_holds_is_for_the_server_to_know(tmp_path: Path) -> None:
    """8192 requests exceed the memory in bfloat16, but the server may have 4-bit weights or several boards."""
    lines = ["llama-3.1-8b bfloat16"]
    plan = campaign(tmp_path, lines, batches=[8192], engine=SERVER | {"url": "http://localhost:8000"})
    assert {cell.flags for cell in plan.cells} == {""}
    assert json.loads(plan.engine_job("llama-3.1-8b", 8192))["engine"]["weights"] == "served"
    own = campaign(tmp_path, lines, batches=[8192], engine=SERVER | {"command": "vllm serve {model} --port {port}"})
    assert "kv_limited" in {cell.flags for cell in own.cells}
    assert json.loads(own.engine_job("llama-3.1-8b", 8192))["engine"]["weights"] == "dummy"
