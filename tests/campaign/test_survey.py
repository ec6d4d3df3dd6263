"""What `sweetspot plan` and a dry run say of cost and progress."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_campaign import campaign

from checkouts import Checkout
from sweetspot.campaign.survey import Cost, Survey, as_text, survey


def shown(checkout: Checkout, *arguments: str) -> str:
    command = [sys.executable, "-m", "sweetspot", "plan", *arguments]
    done = subprocess.run(command, cwd=checkout.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def costs(line: str) -> tuple[float, float]:
    """GPU hours and joules of a line."""
    found = re.search(r"([\d.,]+) GPU h, ([\d.,]+) (G|M|k|)J", line)
    assert found, line
    return float(found[1]), float(found[2]) * {"G": 1e9, "M": 1e6, "k": 1e3, "": 1}[found[3]]


def test_done_and_left_add_up_and_the_estimate_holds(checkout: Checkout) -> None:
    text = shown(checkout)
    assert "engine simulated (SIMULATED" in text
    assert "cells: 36 of 2 models in 3 batches; 36 to run in 6 jobs, 0 skipped" in text
    assert "left:  nothing" in text
    hours, joules = costs(text.split("done:  36 cells, ")[1])
    for directory in ("journal", "measurements"):
        (checkout.out / directory).rename(checkout.out / f"{directory}.away")
    text = shown(checkout)
    assert "done:  0 cells, 0 GPU h, 0 J" in text
    left = text.split("left:  36 cells in 6 jobs, about ")[1].splitlines()[0]
    assert left.endswith("(by the simulator)")
    assert costs(left) == pytest.approx((hours, joules), rel=0.25), "before anything is measured"


def test_what_cells_took_corrects_the_estimate(checkout: Checkout) -> None:
    checkout.configure(batches=[1, 8, 32, 64])
    text = shown(checkout)
    assert "done:  36 cells, " in text
    assert "left:  12 cells in 2 jobs, about " in text
    assert re.search(r"times \d\.\d\d, as for the measured cells\)", text)
    assert re.search(r"longest job: \S+ batch 64 grid-\w{8}, about [\d.]+ h", text)
    headline = next(line for line in checkout.run("--dry-run").splitlines() if line.startswith("To measure: "))
    assert headline.startswith("To measure: 12 cells in 2 jobs, about ")
    assert "SIMULATED" in headline
    assert costs(headline)


def test_builds_and_loads_are_counted(checkout: Checkout) -> None:
    checkout.configure(batches=[1, 8, 32, 64])

    def hours() -> tuple[float, float]:
        text = shown(checkout)
        return costs(text.split("done:")[1])[0], costs(text.split("left:")[1])[0]

    done, left = hours()
    for engine in checkout.out.glob("engines/*/*/engine.json"):
        engine.write_text(json.dumps({**json.loads(engine.read_text()), "build_s": 3600 * 10}))
    assert hours() == pytest.approx((done + 6 * 10, left + 2 * 10), abs=0.5)
    for journal in checkout.out.glob("journal/*/*/*.jsonl"):
        journal.write_text(re.sub(r'"load_s": [\d.]+', '"load_s": 36000', journal.read_text()))
    assert hours() == pytest.approx((done + 6 * 10 + 6 * 10, left + 2 * 10 + 2 * 10), abs=0.5)


def test_failures_have_their_reasons(checkout: Checkout) -> None:
    """A cell without a valid row, a job that ended with an error, a cell that cannot run: each with its why."""
    block = next(checkout.out.glob("journal/opt-1.3b/bs8/*.jsonl"))
    block.write_text(block.read_text().replace('"valid": true, "reasons": ""', '"valid": false, "reasons": "gpu_lost"'))
    next(checkout.out.glob("measurements/llama-3.2-1b/bs8/*.jsonl")).unlink()
    journal = next(checkout.out.glob("journal/llama-3.2-1b/bs8/*.jsonl"))
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    log = next(checkout.out.glob("logs/measure/llama-3.2-1b/bs8/*.log"))
    log.write_text("[1/6] llama\nerror: GPU-1 is in use by process 7\n")
    text = shown(checkout)
    assert "6 cells of opt-1.3b batch 8: gpu_lost" in text
    assert f"llama-3.2-1b batch 8 {log.stem}: error: GPU-1 is in use by process 7" in text


def test_skipped_cells_have_their_reasons(tmp_path: Path) -> None:
    text = as_text(survey(campaign(tmp_path, ["opt-1.3b float16"])))
    assert "4 of 1 model in 1 batch; 3 to run in 1 job, 1 skipped" in text
    assert "1 cell of opt-1.3b: positions: input + output tokens exceed the model's 2048 positions" in text
    assert "SIMULATED" not in text.splitlines()[0]


def test_given_rows_leave_nothing_to_measure(checkout: Checkout) -> None:
    rows = checkout.path / "rows.parquet"
    rows.write_bytes((checkout.out / "measurements.parquet").read_bytes())
    checkout.configure(campaign="given", rows="rows.parquet")
    assert shown(checkout) == "campaign given: rows come from rows.parquet; nothing is measured\n"
    assert "To measure" not in checkout.run("--dry-run")


def test_costs_scale_with_what_was_measured(tmp_path: Path) -> None:
    assert str(Cost(7200, 5e6)) == "2 GPU h, 5 MJ"
    job = ("opt-1.3b", 1, "grid")
    found = Survey(campaign(tmp_path, ["opt-1.3b float16"]), visited=Cost(3, 8), simulated=Cost(2, 2), loads_s=[7.0])
    found.left_cost[job] = Cost(100, 100)
    assert found.estimate([job]) == Cost(157, 400)


def test_a_configuration_that_cannot_be_read_is_one_message(checkout: Checkout) -> None:
    command = [sys.executable, "-m", "sweetspot", "plan", "--configfile", "nowhere.yaml"]
    done = subprocess.run(command, cwd=checkout.path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("sweetspot: error: nowhere.yaml")
