"""Each mistake gives one clear message, no traceback, and a non-zero exit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from checkouts import CONFIG, ROOT, Checkout, copy_repository
from sweetspot.campaign.campaign import Campaign
from sweetspot.errors import SweetspotError

MISTAKES = {
    "misspelt model": ({"select": ["opt-1.3"]}, ["'opt-1.3'", "config/models.tsv", "did you mean 'opt-1.3b'"]),
    "length of zero": ({"input_tokens": [64, 0]}, ["input_tokens[1]", "0", "greater than 0"]),
    "half a token": ({"output_tokens": [4096.5]}, ["output_tokens[0]", "4096.5", "whole number"]),
    "a length as text": ({"output_tokens": ["64"]}, ["output_tokens[0]", "'64'", "whole number"]),
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
    "results that Snakemake takes for a wildcard": ({"results": "{x}"}, ["results", "'{x}'", "without braces"]),
    "a table of models that Snakemake takes for a wildcard": ({"models": "a{b}.tsv"}, ["models", "without braces"]),
    "polls further apart than they may be": (
        {"protocol": {"poll_s": 100}},
        ["config/config.yaml: protocol: poll_gap_s is 0.5, but must be at least twice poll_s (100); raise poll_gap_s"],
    ),
    "fewer repetitions than the fewest": (
        {"protocol": {"repetitions": 2}},
        ["repetitions is 2, but must be at least min_repetitions (3)"],
    ),
    "an endless window": ({"protocol": {"window_s": float("inf")}}, ["protocol.window_s is inf", "finite"]),
    "a number of 400 digits": ({"input_tokens": [10**400]}, ["401 characters", "less than 2147483648"]),
    "a name of 4000 letters": ({"campaign": "x" * 4000}, ["campaign", "4002 characters", "no more than 100"]),
    "yes as a number": ({"protocol": {"window_s": True}}, ["protocol.window_s is True: must be a number"]),
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
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


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


def test_snakemake_reads_a_configuration_as_people_mean_it(tmp_path: Path) -> None:
    checkout = Checkout(copy_repository(tmp_path / "sweetspot"))
    config = checkout.path / "config/config.yaml"
    usual = yaml.safe_dump({**CONFIG, "select": ["opt-1.3b"], "batches": [1]})
    config.write_text(usual.replace("- 512", "- 0100"))
    checkout.run("results/tiny/plan.csv", "--config", "seed=7")
    assert "opt-1.3b,1,100,128,run" in (checkout.out / "plan.csv").read_text(), "not octal"
    assert json.loads((checkout.out / "campaign.json").read_text())["config"]["seed"] == 7
    config.write_text(usual + "batches: [8]\n")
    for arguments in ([], ["--configfile", "config/config.yaml"]):
        done = checkout.snakemake("--dry-run", *arguments)
        assert done.returncode != 0
        assert re.search(r"error: \S*config.yaml, line \d+: 'batches' is set twice; remove one", done.stderr)
        assert "Traceback" not in done.stderr


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
