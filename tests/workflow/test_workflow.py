"""What Snakemake would do, asked of the real Snakemake: nothing twice, nothing too much, nothing too little."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from checkouts import PARTS, Checkout

ANALYSIS = {"fit": 1, "validate": 1, "figures": 1, "report": 1}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} no longer has {old!r}"
    path.write_text(text.replace(old, new, 1))


def jobs(said: str) -> dict[str, int]:
    """How many jobs of each rule a dry run lists."""
    table = re.findall(r"^(\w+) +(\d+)$", said.split("Job stats:")[-1], flags=re.MULTILINE)
    return {rule: int(count) for rule, count in table}


def expensive(checkout: Checkout) -> dict[str, int]:
    """Planned jobs that need a GPU."""
    return {rule: count for rule, count in checkout.planned().items() if rule in ("build_engine", "measure")}


def visits(checkout: Checkout) -> list[str]:
    """Lines of the journals that hold a visit of a cell, without those as the anchor."""
    lines = [line for path in checkout.out.glob("journal/**/*.jsonl") for line in path.read_text().splitlines()]
    return sorted(line for line in lines if json.loads(line).get("visit") is not None)


def test_a_run_leaves_every_result_and_nothing_to_do(checkout: Checkout) -> None:
    rows = pl.read_parquet(checkout.out / "measurements.parquet")
    assert rows.select("model", "batch", "input_tokens", "output_tokens").unique().height == 2 * 3 * 2 * 3
    assert set(rows["source"]) == {"simulated-kernels"}
    assert set(rows["schema_version"]) == {2}
    assert not any("true" in column for column in rows.columns), "the simulator's true joules are not a measurement"
    predictor = json.loads((checkout.out / "predictor.json").read_text())
    assert {group["model"] for group in predictor["groups"]} == {"opt-1.3b", "llama-3.2-1b"}
    assert "SIMULATED (kernel times measured by NVIDIA, power modelled)" in (checkout.out / "report.html").read_text()
    assert checkout.planned() == {}


def test_a_new_model_runs_its_own_jobs_and_the_aggregation(checkout: Checkout) -> None:
    checkout.configure(select=["opt-1.3b", "llama-3.2-1b", "qwen2-1.5b"])
    assert checkout.planned() == {
        "resolve_architecture": 1,
        "build_engine": 3,
        "measure": 3,
        "plan": 1,
        "collect": 1,
        **ANALYSIS,
    }


def test_a_new_batch_measures_that_batch(checkout: Checkout) -> None:
    checkout.configure(batches=[1, 8, 32, 64])
    assert checkout.planned() == {"build_engine": 2, "measure": 2, "plan": 1, "collect": 1, **ANALYSIS}


def test_a_new_length_keeps_every_finished_cell(checkout: Checkout) -> None:
    before = visits(checkout)
    old = pl.read_parquet(checkout.out / "measurements.parquet")
    checkout.configure(output_tokens=[64, 128, 256, 512])
    assert checkout.planned()["measure"] == 6
    checkout.run("--until", "collect")
    after = visits(checkout)
    assert set(before) < set(after)
    assert len(after) - len(before) == 2 * 3 * 2 * 2, "models, batches, new cells, visits"
    new = pl.read_parquet(checkout.out / "measurements.parquet")
    key = ["model", "batch", "input_tokens", "output_tokens", "repetition"]
    kept = new.filter(pl.col("output_tokens") != 256).select(old.columns)
    assert kept.sort(key).equals(old.sort(key))


def test_another_partition_into_jobs_measures_nothing(checkout: Checkout) -> None:
    before = visits(checkout)
    checkout.configure(cells_per_job=2)
    assert checkout.planned()["measure"] == 2 * 3 * 3
    checkout.run("--until", "measure")
    assert visits(checkout) == before


def test_a_new_protocol_measures_again_and_says_so_before(checkout: Checkout) -> None:
    checkout.configure(protocol={"repetitions": 3, "window_s": 12.0})
    said = checkout.run("--dry-run")
    warning = next(line for line in said.splitlines() if "MEASURED AGAIN" in line)
    assert warning.startswith("36 cells that are measured already will be")
    assert "protocol.window_s 10.0 -> 12.0" in warning
    assert "GPU h" in warning
    assert "J" in warning
    assert said.index("MEASURED AGAIN") < said.index("Job stats:")
    assert jobs(said)["measure"] == 6
    checkout.configure()
    said = checkout.run("--dry-run")
    assert "Nothing to be done" in said
    assert "MEASURED" not in said


def test_a_longer_grid_is_no_new_protocol(checkout: Checkout) -> None:
    checkout.configure(output_tokens=[64, 128, 256, 512])
    said = checkout.run("--dry-run")
    assert "To measure: 12 cells in 6 jobs, about " in said
    assert "MEASURED AGAIN" not in said


def test_another_precision_measures_that_model_again(checkout: Checkout) -> None:
    before = len(visits(checkout))
    edit(checkout.path / "config/models.tsv", "llama-3.2-1b.json\tbfloat16", "llama-3.2-1b.json\tfp8")
    said = checkout.run("--dry-run")
    assert "18 cells that are measured already will be MEASURED AGAIN" in said
    assert "because settings changed: precision of llama-3.2-1b bfloat16 -> fp8. They took" in said
    assert jobs(said)["measure"] == 3
    checkout.run("--until", "measure")
    assert len(visits(checkout)) == before + 3 * 6 * 2


@pytest.mark.parametrize(
    ("file", "addition", "jobs"),
    [
        ("measure/protocol.py", "# a comment", {}),
        ("measure/protocol.py", "DEAD = 1", {"report": 1}),  # the report explains the protocol
        ("sensors/meter.py", "DEAD = 1", {"report": 1}),
        ("fit/fit.py", "DEAD = 1", {"fit": 1, "figures": 1, "report": 1}),  # validation fits folds, not tables
        ("fit/choice.py", "DEAD = 1", ANALYSIS),
        ("fit/fit.py", "# a comment", {}),
        ("report/figures.py", "DEAD = 1", {"figures": 1}),
        ("report/page.html", "<!-- edited -->", {"report": 1}),
    ],
)
def test_an_edit_runs_what_it_can_change_and_no_more(
    checkout: Checkout, file: str, addition: str, jobs: dict[str, int]
) -> None:
    with (checkout.path / "workflow/sweetspot" / file).open("a") as source:
        source.write(f"\n{addition}\n")
    assert checkout.planned() == jobs


@pytest.mark.parametrize("name", ["snakemake.html", "snakemake.zip"])
def test_the_report_of_snakemake_holds_the_page(checkout: Checkout, name: str) -> None:
    checkout.run("--report", name)
    assert (checkout.path / name).stat().st_size > 500_000


def test_deleting_the_report_rebuilds_the_report_only(checkout: Checkout) -> None:
    (checkout.out / "report.html").unlink()
    assert checkout.planned() == {"report": 1}


def test_deleting_engines_measures_nothing(checkout: Checkout) -> None:
    shutil.rmtree(checkout.out / "engines")
    shutil.rmtree(checkout.out / "architectures")
    assert checkout.planned() == {}
    checkout.configure(batches=[1, 8, 32, 64])
    jobs = checkout.planned()
    assert (jobs["build_engine"], jobs["measure"]) == (2, 2)


def test_a_rebuilt_engine_measures_nothing(checkout: Checkout) -> None:
    for engine in checkout.out.glob("engines/*/*/engine.json"):
        engine.write_text(engine.read_text() + " ")
    for stamp in checkout.out.glob("engines/*/*/.snakemake_timestamp"):
        stamp.touch()
    assert checkout.planned() == {}


@pytest.mark.parametrize("records", [True, False], ids=["with Snakemake's records", "without"])
def test_what_a_changed_grid_needs_is_seen(checkout: Checkout, records: bool) -> None:
    if not records:
        shutil.rmtree(checkout.path / ".snakemake")
    checkout.configure(output_tokens=[64, 512])
    assert checkout.planned() == {"measure": 6, "plan": 1, "collect": 1, **ANALYSIS}


def test_a_model_that_goes_and_comes_back_is_not_measured_again(checkout: Checkout) -> None:
    checkout.configure(select=["opt-1.3b"])
    assert checkout.planned() == {"plan": 1, "collect": 1, **ANALYSIS}
    checkout.run("--until", "collect")
    assert set(pl.read_parquet(checkout.out / "measurements.parquet")["model"]) == {"opt-1.3b"}
    checkout.configure()
    assert checkout.planned() == {"plan": 1, "collect": 1, **ANALYSIS}


def test_moved_results_are_results(checkout: Checkout) -> None:
    (checkout.path / "results").rename(checkout.path / "elsewhere")
    checkout.configure(results="elsewhere")
    assert expensive(checkout) == {}
    checkout.configure(results="elsewhere", batches=[1, 8, 32, 64])
    assert expensive(checkout) == {"build_engine": 2, "measure": 2}
    checkout.configure(results="elsewhere", protocol={"repetitions": 3, "window_s": 12.0})
    assert expensive(checkout)["measure"] == 6, "a changed job is seen without Snakemake's records"


@pytest.mark.parametrize("order", [sorted, reversed], ids=["copied in order", "in reverse"])
def test_a_clone_with_the_results_copied_in_measures_nothing(checkout: Checkout, tmp_path: Path, order: object) -> None:
    """Without Snakemake's records, and every file as old as its copy: no time says anything."""
    clone = Checkout(tmp_path / "clone")
    (clone.path / "results").mkdir(parents=True)
    for part in PARTS:
        if (checkout.path / part).is_dir() and not (checkout.path / part).is_symlink():
            shutil.copytree(checkout.path / part, clone.path / part, copy_function=shutil.copy)
        else:
            shutil.copy(checkout.path / part, clone.path / part, follow_symlinks=False)
    files = sorted(path.relative_to(checkout.path) for path in checkout.path.glob("results/**/*") if path.is_file())
    for file in order(files):
        (clone.path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout.path / file, clone.path / file)
    assert expensive(clone) == {}
    clone.configure(batches=[1, 8, 32, 64])
    assert expensive(clone) == {"build_engine": 2, "measure": 2}


def test_the_snakefile_at_the_top_plans_what_all_plans(checkout: Checkout) -> None:
    """A run without targets, a run of `all`, and the Snakefile that the catalog finds plan the same jobs."""
    (checkout.out / "report.html").unlink()
    checkout.configure(batches=[1, 8, 32, 64])
    wanted = checkout.planned()
    assert wanted["measure"] == 2
    assert jobs(checkout.run("--dry-run", "default")).items() >= wanted.items()
    assert jobs(checkout.run("--dry-run", "--snakefile", "workflow/Snakefile", "all")).items() >= wanted.items()


def test_a_run_that_does_not_say_where_says_what_to_type(checkout: Checkout) -> None:
    command = [sys.executable, "-m", "snakemake"]
    done = subprocess.run(command, cwd=checkout.path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "snakemake --profile local" in done.stderr
    assert "Traceback" not in done.stderr
    dry = subprocess.run([*command, "--dry-run"], cwd=checkout.path, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


def test_a_line_in_the_table_of_models_is_measured_or_said_to_be_left_out(checkout: Checkout) -> None:
    table = checkout.path / "config/mine.tsv"
    lines = (checkout.path / "config/models.tsv").read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line for line in lines if line.startswith(("opt-1.3b", "llama-3.2-1b")))]))
    checkout.configure(models="config/mine.tsv", select=None)
    assert "measure" not in checkout.planned()
    with table.open("a") as file:
        file.write("\nnew\t../resources/architectures/qwen2-1.5b.json\tbfloat16\n")
    assert checkout.planned()["measure"] == 3
    checkout.configure(models="config/mine.tsv")
    said = checkout.run("--dry-run")
    assert "Not measured, because `select` does not name them: new of config/mine.tsv" in said
