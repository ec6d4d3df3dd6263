"""A campaign on one machine with a GPU and nothing else: what it does first, when it stops, how it goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import simulation
from checkouts import Checkout
from sweetspot import models
from sweetspot.campaign import offline
from sweetspot.campaign.campaign import Campaign
from sweetspot.commands.main import main
from sweetspot.engines import BatchRun
from sweetspot.engines.simulated import SimulatedEngine
from sweetspot.measure import journal, unattended
from sweetspot.measure.journal import Place
from sweetspot.measure.pace import Stopwatch
from sweetspot.measure.session import Block

CONFIG = {
    "campaign": "offline",
    "models": "models.tsv",
    "input_tokens": [64, 128, 256, 512],
    "output_tokens": [64, 128],
    "batches": [8, 1],
    "engine": {"name": "simulated"},
}
MODELS = ("opt-1.3b", "qwen2-1.5b")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a plan in it, and nothing in the environment that the offline machine would not have."""
    monkeypatch.chdir(tmp_path)
    write_plan(tmp_path)
    return tmp_path


def write_plan(place: Path, **changes: Any) -> dict[str, Any]:
    lines = [f"{name}\t{simulation.ARCHITECTURES / name}.json\tfloat16" for name in MODELS]
    (place / "models.tsv").write_text("\n".join(["model\tarchitecture\tprecision", *lines]) + "\n")
    campaign = Campaign({**CONFIG, **changes})
    resolved = {name: models.resolved(model.path) for name, model in campaign.models.items()}
    content = offline.plan(campaign, resolved)
    (place / "plan.json").write_text(json.dumps(content))
    return json.loads((place / "plan.json").read_text())


def run(place: Path, seconds: float, directory: str = "out") -> int:
    options = {"plan": place / "plan.json", "directory": place / directory, "seconds": seconds}
    return main(["unattended", *(part for name, value in options.items() for part in (f"--{name}", str(value)))])


def visits(place: Path, directory: str = "out") -> list[tuple[Any, ...]]:
    """Model, batch, cell and number of every visit, but those as the anchor."""
    records = journal.records((place / directory).glob("journal/*/*/*.jsonl"))
    return [
        (r["rows"][0]["model"], r["rows"][0]["batch"], r["input_tokens"], r["output_tokens"], r["visit"])
        for r in records
        if r.get("visit") is not None
    ]


def rows(place: Path, directory: str = "out") -> list[dict[str, Any]]:
    files = sorted((place / directory).glob("measurements/*/*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_chosen_cells_come_first_whatever_their_lengths(place: Path) -> None:
    """Of a list of cells, those between the shortest and the longest length wait for no later step."""
    chosen = [(model, batch, n, 64) for model in MODELS for batch in (8, 1) for n in (64, 128, 512)]
    lines = [",".join(map(str, cell)) for cell in chosen]
    (place / "cells.csv").write_text("\n".join(["model,batch,input_tokens,output_tokens", *lines]) + "\n")
    plan = write_plan(place, cells="cells.csv")
    first = [
        (plan["blocks"][step["block"]]["model"], plan["blocks"][step["block"]]["batch"], n, m)
        for step in plan["steps"][:4]
        for n, m in step["cells"]
    ]
    assert sorted(first) == sorted(chosen), "four blocks, each loaded once"
    assert [model for model, *_ in first] == sorted((model for model, *_ in chosen), key=MODELS.index)


def test_the_progress_of_a_simulated_run_says_so(place: Path) -> None:
    command = [sys.executable, "-m", "sweetspot", "unattended", "--plan", "plan.json", "--directory", "out"]
    done = subprocess.run([*command, "--seconds", "1e6"], cwd=place, capture_output=True, text=True, check=True)
    shown = [line for line in done.stderr.splitlines() if "J/output token" in line]
    assert shown
    assert all("SIMULATED" in line for line in shown)


def test_what_tells_most_comes_first(place: Path) -> None:
    plan = write_plan(place, input_tokens=[64, 96, 128, 256, 512])
    blocks = [(block["model"], block["batch"]) for block in plan["blocks"]]
    steps = [(*blocks[step["block"]], len(step["cells"]), step["visits"]) for step in plan["steps"]]
    coarse = 3 * 2
    chosen = write_plan(place, select=["qwen2-1.5b", "opt-1.3b"])
    assert chosen["blocks"][chosen["steps"][0]["block"]]["model"] == "qwen2-1.5b", "the first that was selected"
    assert steps[:4] == [
        ("opt-1.3b", 8, 10, 1),
        ("opt-1.3b", 1, coarse, 1),
        ("qwen2-1.5b", 8, coarse, 1),
        ("qwen2-1.5b", 1, coarse, 1),
    ]
    assert {(step[2], step[3]) for step in steps[4:8]} == {(10, 1)}
    assert {(step[2], step[3]) for step in steps[8:]} == {(10, 2)}
    assert len(steps) == 12


def test_it_stops_in_time_and_goes_on_where_it_was(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(place, 620.0) == unattended.INCOMPLETE
    said = capfd.readouterr().err
    first = visits(place)
    passed_s = float(said.rpartition("visits made in ")[2].split()[0])
    assert 400 < passed_s <= 620, "no visit that would end too late was begun, and hardly one too few"
    assert {visit[:2] for visit in first} == {("opt-1.3b", 8), ("opt-1.3b", 1)}
    written = rows(place)
    missing = [row for row in written if not row["valid"]]
    assert {row["reasons"] for row in missing} == {"not_measured_yet"}
    cells = {(row["model"], row["batch"], row["input_tokens"], row["output_tokens"]) for row in written}
    assert len(cells) == 2 * 2 * 8, "every cell has a row"

    # The next machine has what was packed, and neither the engines nor anything else.
    packed = place / "next"
    packed.mkdir()
    for part in ("journal", "raw", "measurements"):
        shutil.copytree(place / "out" / part, packed / part)
    assert run(place, 1e5, "next") == 0
    after = visits(place, "next")
    assert set(first) < set(after)
    assert len(after) == len(set(after)) == 2 * 2 * 8 * 2, "nothing twice"
    assert all(row["valid"] for row in rows(place, "next"))
    assert run(place, 1e5, "next") == 0
    assert visits(place, "next") == after
    sessions = {row["session"] for row in rows(place, "next")}
    assert len(sessions) > 2 * 2, "second visits are in sessions of their own"
    runs = [json.loads(line) for line in (packed / "runs.jsonl").read_text().splitlines()]
    assert [(entry["left"], entry["exit_status"]) for entry in runs] == [(0, 0), (0, 0)]
    assert runs[0]["command"] == sys.orig_argv


def test_an_engine_for_shorter_requests_is_built_again(place: Path) -> None:
    write_plan(place, input_tokens=[64])
    assert run(place, 1e6) == 0
    write_plan(place, input_tokens=[64, 512])
    assert run(place, 1e6) == 0
    assert {row["input_tokens"] for row in rows(place) if row["valid"]} == {64, 512}


def test_no_time_at_all_measures_nothing_and_says_so(place: Path) -> None:
    assert run(place, 0.0) == unattended.INCOMPLETE
    assert visits(place) == []
    assert {row["reasons"] for row in rows(place)} == {"not_measured_yet"}


def test_an_engine_that_fails_is_left_for_its_reason(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(place)
    for block in plan["blocks"]:
        if block["model"] == "opt-1.3b":
            block["measure"]["engine"]["precision"] = block["build"]["engine"]["precision"] = "int3"
    (place / "plan.json").write_text(json.dumps(plan))
    assert run(place, 1e5) == 0
    assert "opt-1.3b batch 8" in capfd.readouterr().err
    reasons = {(row["model"], row["reasons"]) for row in rows(place)}
    assert reasons == {("opt-1.3b", "engine_failed"), ("qwen2-1.5b", "")}


def test_a_cell_that_takes_too_long_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((place / "plan.json").read_text())
    entry, watch = plan["blocks"][0], Stopwatch(300.0)
    run_batch = SimulatedEngine.run

    def slow(engine: SimulatedEngine, n: int, m: int) -> BatchRun:
        engine._device.clock.sleep(2.0 if engine._device.clock.now() > 150 else 0.0)
        return run_batch(engine, n, m)

    monkeypatch.setattr(SimulatedEngine, "run", slow)
    where = Place(place / "out", entry["model"], entry["batch"], entry["block"])
    block = Block(entry["measure"], plan["architectures"][entry["model"]], where, watch, entry["build"])
    block.run(block.pending())
    assert 300 <= watch.passed_s() < 310, "it went on until the time was over"
    made = [record for record in block.records if "rows" in record]
    assert sum(record["took_s"] for record in made) < 280, "the last visit was given up and left nothing"
    assert block.unmeasured == {}
    assert block.visiting is None
    assert json.loads(where.journal.read_text().splitlines()[-1]) == made[-1]


BREAKS = """
import sys
from sweetspot.engines.simulated import SimulatedEngine
run = SimulatedEngine.run
def breaking(engine, n, m):
    if engine._spec.batch == 8 and {condition}:
        {act}
    return run(engine, n, m)
SimulatedEngine.run = breaking
"""


@pytest.mark.parametrize(
    ("condition", "act", "failed"),
    [
        ("n == 128 and m == 64", "print('{'); raise RuntimeError('device-side assert')", 1),
        ("n == 256 and m == 64", "raise RuntimeError('the anchor')", 1),
        ("n == 128 and m == 64", "import os; os._exit(7)", 8),
        ("m == 64", "raise RuntimeError('device-side assert')", 7),  # all but one with m = 128: the order is random
    ],
)
def test_what_breaks_the_engine_costs_no_more_than_it_must(
    place: Path, monkeypatch: pytest.MonkeyPatch, condition: str, act: str, failed: int
) -> None:
    """A failing cell is left out; a process that dies, or keeps failing, ends its block and no other."""
    (place / "sitecustomize.py").write_text(BREAKS.format(condition=condition, act=act))
    monkeypatch.setenv("PYTHONPATH", f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert run(place, 1e5) == 0
    bad = [row for row in rows(place) if not row["valid"]]
    assert {(row["reasons"], row["batch"]) for row in bad} == {("engine_failed", 8)}
    assert len([row for row in bad if row["model"] == "opt-1.3b"]) == failed
    assert len([row for row in rows(place) if row["batch"] == 1 and row["valid"]]) >= 2 * 8 * 3


UNFIT = """
import sys
from sweetspot.engines import simulated
from sweetspot.errors import UnfitMachine
def broken(spec, directory):
    print("TRIED", file=sys.stderr, flush=True)
    {act}
simulated.open_device = broken
"""


@pytest.mark.parametrize(
    ("act", "tried"),
    [
        ("raise UnfitMachine('the package vllm cannot be imported')", 1),
        ("raise RuntimeError('no explanation')", 2),
        ("import os; os._exit(139)", 2),
    ],
    ids=["unfit", "raises", "dies"],
)
def test_a_machine_that_can_measure_nothing_ends_the_run_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], act: str, tried: int
) -> None:
    """And the next run, on a machine that was mended, measures everything."""
    (place / "sitecustomize.py").write_text(UNFIT.format(act=act))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        assert run(place, 1e5) == 1
    said = capfd.readouterr().err
    assert said.count("TRIED") == tried
    assert "error: stopped: " in said
    assert run(place, 1e5) == 0
    assert all(row["valid"] for row in rows(place))


def test_a_lost_gpu_ends_it_with_its_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act = "from sweetspot.sensors.meter import GpuLostError; raise GpuLostError('GPU-1 is lost')"
    (place / "sitecustomize.py").write_text(BREAKS.format(condition="n == 128 and m == 64", act=act))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{place}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        assert run(place, 1e5) == 1
    bad = [row for row in rows(place) if not row["valid"]]
    assert [row["input_tokens"] for row in bad if row["reasons"] == "gpu_lost"] == [128]
    assert {row["reasons"] for row in bad} == {"gpu_lost", "not_measured_yet"}
    assert run(place, 1e5) == 0
    assert all(row["valid"] for row in rows(place))


@pytest.mark.parametrize(("step_s", "warned"), [(0.1, False), (0.101, False), (0.02, True)])
def test_a_board_that_asks_for_other_numbers_is_a_warning(
    place: Path, step_s: float, warned: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "out").mkdir()
    record = {"machine": {"gpu": "any"}, "protocol": {"counter_step_s": step_s}}
    (place / "out/machine.json").write_text(json.dumps(record))
    run(place, 1.0)
    assert ("counter_step_s 0.1, probed 0.02: plan again with `machine: " in capfd.readouterr().err) is warned


def test_a_damaged_machine_record_costs_no_campaign(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "out").mkdir()
    (place / "out/machine.json").write_text('{"machine": ')
    assert run(place, 620.0) == unattended.INCOMPLETE
    assert "warning: " in capfd.readouterr().err
    assert visits(place)


def test_a_plan_that_is_none_is_one_clear_message(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", "[]", '{"steps": []}', '{"schema_version": 0, "architectures": {}, "blocks": [], "steps": []}'):
        (place / "plan.json").write_text(content)
        assert run(place, 10.0) == 1
        assert "plan.json: " in capsys.readouterr().err


def test_it_needs_the_standard_library_only(place: Path) -> None:
    """-S leaves the installed packages out; what an offline machine lacks is not missed."""
    library = Path(unattended.__file__).parents[2]
    command = [sys.executable, "-S", "-m", "sweetspot", "unattended", "--plan", "plan.json", "--directory", "bare"]
    done = subprocess.run(
        [*command, "--seconds", "0"], cwd=place, capture_output=True, text=True, env={"PYTHONPATH": str(library)}
    )
    assert done.returncode == unattended.INCOMPLETE, done.stderr


def test_snakemake_goes_on_from_what_was_measured_offline(checkout: Checkout, tmp_path: Path) -> None:
    """On a machine that has never seen the engines: nothing is measured again, and the report is made."""
    checkout.run("offline_plan")
    plan = checkout.out / "offline.json"
    assert unattended.run(plan, checkout.out, 1e6) == 0, "what Snakemake measured is not measured again"
    assert len(visits(checkout.out.parent, checkout.out.name)) == 2 * 3 * 6 * 2
    offline = tmp_path / "offline"
    assert unattended.run(plan, offline, 1e6) == 0
    keys = {record["key"] for record in journal.records(offline.glob("journal/*/*/*.jsonl"))}
    assert keys == {record["key"] for record in journal.records(checkout.out.glob("journal/*/*/*.jsonl"))}

    shutil.rmtree(checkout.path / ".snakemake")
    for part in checkout.out.iterdir():
        if part.name not in ("architectures", "offline.json"):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    for part in ("journal", "raw", "measurements"):
        shutil.copytree(offline / part, checkout.out / part)
    assert checkout.planned() == {"plan": 1, "collect": 1, "fit": 1, "validate": 1, "figures": 1, "report": 1}


def test_a_list_of_cells_may_have_other_batches_than_the_configuration(place: Path) -> None:
    lines = [f"{model},{batch},64,64" for model in MODELS for batch in (64, 8)]
    (place / "cells.csv").write_text("\n".join(["model,batch,input_tokens,output_tokens", *lines]) + "\n")
    plan = write_plan(place, cells="cells.csv")
    assert [block["batch"] for block in plan["blocks"]].count(64) == len(MODELS)
