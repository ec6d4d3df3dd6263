"""What the plan makes of models on several GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulation import ARCHITECTURES, H100
from sweetspot import models
from sweetspot.campaign.campaign import Campaign
from sweetspot.campaign.survey import as_text, survey
from sweetspot.errors import SweetspotError
from sweetspot.measure.session import key
from sweetspot.parallelism import Parallelism

COLUMNS = "model\tarchitecture\tprecision\ttensor_parallel\tpipeline_parallel\texpert_parallel\n"


def campaign(place: Path, lines: list[str], engine: str = "vllm", **changes: Any) -> Campaign:
    """A campaign of lines "name model tensor pipeline experts"; a dot leaves a column empty."""
    rows = []
    for name, model, *numbers in map(str.split, lines):
        cells = [name, str(ARCHITECTURES / f"{model}.json"), "bfloat16", *("" if n == "." else n for n in numbers)]
        rows.append("\t".join(cells))
    (place / "models.tsv").write_text(COLUMNS + "\n".join(rows) + "\n")
    config = {
        "campaign": "test",
        "models": str(place / "models.tsv"),
        "results": str(place / "results"),
        "input_tokens": [64],
        "output_tokens": [64],
        "batches": [8],
        "engine": {"name": engine},
    }
    return Campaign({**config, **changes})


def job(plan: Campaign, model: str) -> dict[str, Any]:
    measure: dict[str, Any] = json.loads(plan.measure_job(*next(block for block in plan.jobs if block[0] == model)))
    assert measure["engine"] == json.loads(plan.engine_job(model, 8))["engine"]
    return measure


def test_a_job_asks_for_the_gpus_of_its_model(tmp_path: Path) -> None:
    plan = campaign(tmp_path, ["one llama-3.1-8b . . .", "four llama-3.1-8b 4 1 .", "eight llama-3.1-8b 4 2 false"])
    assert [plan.gpus_of_job(model) for model in ("one", "four", "eight")] == [1, 4, 8]
    assert job(plan, "four")["engine"]["tensor_parallel"] == 4
    assert job(plan, "eight")["engine"]["pipeline_parallel"] == 2


def test_the_plan_says_what_each_model_takes(tmp_path: Path) -> None:
    text = as_text(survey(campaign(tmp_path, ["small opt-1.3b . . .", "large llama-3.1-8b 4 . ."])))
    small, large = (next(line for line in text.splitlines() if f" {name}: " in line) for name in ("small", "large"))
    assert "1 cell in 1 job, about" in small
    assert "GPUs each" not in small
    assert "1 cell in 1 job, 4 GPUs each, about" in large


def test_on_one_gpu_a_job_is_what_it_was_before_there_were_several(tmp_path: Path) -> None:
    """Journals and rows of earlier versions stay known: their keys do not change."""
    plan = campaign(tmp_path, ["one llama-3.1-8b . . .", "same llama-3.1-8b 1 1 false", "two llama-3.1-8b 2 . ."])
    jobs = {model: job(plan, model) for model in plan.models}
    named = {"tensor_parallel", "pipeline_parallel", "expert_parallel"}
    assert not named & jobs["one"]["engine"].keys()
    assert jobs["one"]["engine"] == jobs["same"]["engine"]
    keys = {model: key({**jobs[model], "model": "m"}, plan.models[model].resolved) for model in jobs}
    assert keys["two"] != keys["one"]


@pytest.mark.parametrize(
    ("line", "engine", "reason"),
    [
        ("m llama-3.1-8b 3 . .", "vllm", "tensor_parallel 3 does not divide the 32 attention heads"),
        ("m falcon-7b 2 . .", "vllm", "tensor_parallel 2 does not divide the 71 attention heads"),
        ("m qwen2-7b 7 . .", "vllm", "tensor_parallel 7 neither divides nor is a multiple of the 4 key/value heads"),
        ("m llama-3.1-8b 1 64 .", "simulated", "pipeline_parallel 64 exceeds the 32 layers"),
        ("m llama-3.1-8b 2 . true", "vllm", "expert_parallel needs a mixture of experts"),
        ("m llama-3.1-8b 2 . true", "trt-engine", "engine trt-engine is not known to spread experts"),
    ],
)
def test_a_model_that_cannot_be_spread_is_skipped_with_a_reason(
    tmp_path: Path, line: str, engine: str, reason: str
) -> None:
    with pytest.raises(SweetspotError) as raised:
        campaign(tmp_path, [line], engine)
    assert reason in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["0", "-2", "1.5", "two"])
def test_numbers_of_gpus_are_whole(tmp_path: Path, value: str) -> None:
    with pytest.raises(SweetspotError, match=r"models.tsv, row 1: tensor_parallel is"):
        campaign(tmp_path, [f"m llama-3.1-8b {value} . ."])


def test_more_gpus_hold_more(tmp_path: Path) -> None:
    """Weights and KV cache share the memory of all boards; a head is whole on a board."""
    arch = models.load(ARCHITECTURES / "llama-3.1-8b.json")
    one, eight, sixteen = (Parallelism(tensor).memory(arch, H100, "bfloat16") for tensor in (1, 8, 16))
    assert eight.board_bytes == 8 * H100.memory_bytes
    assert eight.kv_cache_bytes == pytest.approx(0.9 * (8 * H100.memory_bytes - one.weights_bytes), rel=1e-9)
    assert sixteen.kv_cache_bytes == pytest.approx(0.45 * (16 * H100.memory_bytes - one.weights_bytes), rel=1e-9)
    assert arch.kv_heads == 8
    lengths = {"input_tokens": [4096], "output_tokens": [4096], "batches": [256]}
    plan = campaign(tmp_path, ["one llama-3.1-8b . . .", "eight llama-3.1-8b 8 . ."], "simulated", **lengths)
    assert [cell.flags for cell in plan.cells] == ["kv_limited", ""]


@pytest.mark.parametrize("label", ["tp1", "tp4", "tp2-pp2", "tp8-ep", "tp4-pp2-ep"])
def test_labels_say_all_there_is(label: str) -> None:
    assert Parallelism.parse(label).label == label


@pytest.mark.parametrize("label", ["", "tp0", "4", "tp", "tp4-dp2", "tp2-ep2", "tpx"])
def test_other_labels_are_refused(label: str) -> None:
    with pytest.raises(SweetspotError, match="write it like tp1"):
        Parallelism.parse(label)
