"""Each mistake gives one clear message, no traceback, and a non-zero exit."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from checkouts import ROOT, Checkout
from sweetspot.campaign.campaign import Campaign
from sweetspot.errors import SweetspotError

MISTAKES = {
    "misspelt model": ({"select": ["opt-1.3"]}, ["'opt-1.3'", "config/models.tsv", "did you mean 'opt-1.3b'"]),
    "length of zero": ({"input_tokens": [64, 0]}, ["input_tokens[1]", "0", "greater than 0"]),
    "half a token": ({"output_tokens": [4096.5]}, ["output_tokens[0]", "4096.5", "integer"]),
    "a length as text": ({"output_tokens": ["64"]}, ["output_tokens[0]", "'64'", "integer"]),
    "no lengths": ({"input_tokens": []}, ["input_tokens", "at least 1"]),
    "a length twice": ({"input_tokens": [64, 64]}, ["input_tokens", "64", "more than once"]),
    "misspelt key": ({"batchs": [1]}, ["batchs", "did you mean 'batches'"]),
    "misspelt protocol key": ({"protocol": {"repetition": 3}}, ["protocol.repetition", "did you mean 'repetitions'"]),
    "a window of minus one": ({"protocol": {"window_s": -1}}, ["protocol.window_s", "-1"]),
    "unknown engine": ({"engine": {"name": "tensorrt"}}, ["engine.name", "'tensorrt'", "simulated"]),
    "static batches of vLLM": (
        {"engine": {"name": "vllm", "in_flight_batching": False}},
        ["vllm", "no static batches", "in_flight_batching"],
    ),
    "no machine record": ({"machine": "config/models.tsv"}, ["config/models.tsv", "sweetspot probe"]),
    "unknown gpu": ({"gpu": "NVIDIA H1000"}, ["NVIDIA H1000", "H100"]),
    "no table of models": ({"models": "nowhere.tsv"}, ["nowhere.tsv", "models"]),
    "no cells per job": ({"cells_per_job": 0}, ["cells_per_job"]),
    "results in a file": ({"results": "workflow/Snakefile"}, ["Snakefile", "results"]),
}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """What a configuration names, without results."""
    for part in ("config", "resources"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow/Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    checkout = Checkout(tmp_path)
    checkout.configure()
    return checkout


def refused(checkout: Checkout, *parts: str) -> None:
    """Refused as the Snakefile does it, by one error."""
    config = yaml.safe_load((checkout.path / "config/config.yaml").read_text())
    with pytest.raises(SweetspotError) as error:
        Campaign(config, "config/config.yaml").check_writable()
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("mistake", ["misspelt model", "misspelt key", "results in a file"])
def test_a_mistake_is_one_clear_message_on_the_screen(checkout: Checkout, mistake: str) -> None:
    changes, parts = MISTAKES[mistake]
    checkout.configure(**changes)
    done = checkout.snakemake("--dry-run")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output, output
    assert "File " not in output, output
    assert "error: " in output
    for part in parts:
        assert part in output, output


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_configuration_is_refused(bare: Checkout, mistake: str) -> None:
    changes, parts = MISTAKES[mistake]
    bare.configure(**changes)
    refused(bare, *parts)


def test_heads_that_do_not_divide_are_refused(bare: Checkout) -> None:
    path = bare.path / "resources/architectures/llama-3.2-1b.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_key_value_heads": 5}))
    refused(bare, "llama-3.2-1b.json", "num_key_value_heads", "5")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("opt-1.3b\tnowhere.json\tfloat16", ["nowhere.json"]),
        ("opt-1.3b\t../resources/architectures/opt-1.3b.json\tint3", ["row 1", "precision", "'int3'"]),
        ("opt/1.3b\t../resources/architectures/opt-1.3b.json\tfloat16", ["row 1", "model", "opt/1.3b"]),
        ("opt-1.3b\t../resources/architectures/opt-1.3b.json", ["line 2", "2 fields", "single tabs"]),
    ],
)
def test_a_wrong_line_of_the_table_of_models_is_refused(bare: Checkout, line: str, parts: list[str]) -> None:
    (bare.path / "config/models.tsv").write_text(f"model\tarchitecture\tprecision\n{line}\n")
    bare.configure(select=None)
    refused(bare, *parts)


def test_a_campaign_without_a_cell_that_can_run_is_refused(bare: Checkout) -> None:
    bare.configure(select=["opt-1.3b"], input_tokens=[4096], output_tokens=[64])
    refused(bare, "no cell", "positions")


def test_skipped_cells_are_listed_with_their_reason(checkout: Checkout) -> None:
    checkout.configure(select=["opt-1.3b"], output_tokens=[64, 2048])
    shutil.rmtree(checkout.out)
    checkout.run()
    plan = (checkout.out / "plan.csv").read_text()
    assert "opt-1.3b,8,512,2048,skipped,positions: input + output tokens exceed the model's 2048 positions," in plan
    assert "positions" in (checkout.out / "report.html").read_text()
