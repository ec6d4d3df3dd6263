"""Walk the documentation: run every command that a reader can run without a GPU, in the environment that README makes.

`python tests/walk_docs.py` copies the working tree to a fresh directory, follows README from its first command on, and
runs what the code blocks of README.md, config/README.md and docs/how-to.md say, in their order. Each command is run or
is listed below with the reason why not. Needs the standard library only, because nothing else is installed yet.
"""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "config/README.md", "docs/how-to.md")
PROGRAMS = ("make", "python3", "pip", "snakemake", "sweetspot")

# Commands that are not run, or not as they stand: what they begin with, what runs instead ("": nothing), and why.
EXCEPTIONS = {
    "make test": ("", "the tests run after this walk"),
    "snakemake --profile slurm": ("", "needs a cluster; tests/workflow/test_slurm.py has one"),
    "snakemake --profile local --configfile config/study.yaml": (
        "snakemake --profile local --configfile config/study.yaml --dry-run",
        "the whole study takes too long",
    ),
    "sweetspot probe": ("sweetspot probe --help", "needs a GPU"),
    "sweetspot meter": ("sweetspot meter --help", "needs a GPU"),
    "sweetspot unattended": ("sweetspot unattended --help", "measures on a machine with a GPU"),
    "make test-vllm": ("", "installs 5 GB"),
}
CAMPAIGN = """campaign: my-campaign
models: config/demo.tsv
select: [llama-3.1-8b]
input_tokens: [64, 512]
output_tokens: [64, 256, 1024]
batches: [8]
engine:
  name: simulated
"""


def main() -> int:
    """Walk; the exit status is 0 if every command did what the pages say."""
    done: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = _copy(Path(directory) / "sweetspot")
        for page in PAGES:
            if page == "docs/how-to.md":
                _write_table(place / "rows.csv", prompt="prompt", batches=(1,))
            for command in _commands((place / page).read_text()):
                if command not in done and (ran := _step(page, command, place)) is not None:
                    done[command] = ran
                if command == "make demo":  # what later commands find on a reader's disk
                    _prepare(place)
        done["add a model as README says"] = _add_a_model(place)
    failed = [command for command, fine in done.items() if not fine]
    print(f"{len(done) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _copy(place: Path) -> Path:
    """The files of the working tree, as a clone would have them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    return place


def _commands(text: str) -> list[str]:
    """The commands of a page in their order: lines of code blocks without a language, and inline code with options."""
    found = []
    for block, inline in re.findall(r"^```\n(.*?)^```|`([^`\n]+)`", text, flags=re.DOTALL | re.MULTILINE):
        lines = re.sub(r"\\\n *", "", block).splitlines() if block else [inline] if " --" in inline else []
        found += [line.partition(" # ")[0].strip() for line in lines if line.split(" ")[0] in PROGRAMS]
    return [command for command in found if "..." not in command and "…" not in command]


def _step(page: str, command: str, place: Path) -> bool | None:
    """Run a command of a page, or what stands for it; None if nothing does."""
    named = [start for start in EXCEPTIONS if command == start or command.startswith(f"{start} ")]
    instead, why = EXCEPTIONS[max(named, key=len)] if named else (command, "")
    if not instead:
        print(f"not run        {page}: {command} ({why})", flush=True)
        return None
    start_s = time.monotonic()
    ran = _run(instead, place)
    note = f" (as `{instead}`: {why})" if why else ""
    word = "FAILED" if ran.returncode else "ok"
    print(f"{word:6} {time.monotonic() - start_s:5.1f} s {page}: {command}{note}", flush=True)
    if ran.returncode:
        print(ran.stdout[-3000:], flush=True)
    return ran.returncode == 0


def _run(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    """In the shell of a reader who has activated the environment, once it is there."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["PATH"] = f"{place / '.venv/bin'}{os.pathsep}{clean['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env=clean,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _prepare(place: Path) -> None:
    """The files that the pages take for granted: tables measured elsewhere, other campaigns, a configuration."""
    (place / "config/my-campaign.yaml").write_text(CAMPAIGN)
    _write_table(place / "rows.csv")
    _write_table(place / "rows-vllm.csv")
    _write_table(place / "rows-trt.csv", scale=0.9)
    predictor = json.loads((place / "results/demo/predictor.json").read_text())
    for campaign in ("a100", "h100", "study"):
        content = json.loads(json.dumps(predictor))
        if campaign == "study":  # the same models in another precision
            content["groups"] += [{**group, "precision": "fp8"} for group in predictor["groups"]]
        (place / "results" / campaign).mkdir(exist_ok=True)
        (place / "results" / campaign / "predictor.json").write_text(json.dumps(content))


def _write_table(path: Path, prompt: str = "input_tokens", batches: Sequence[int] = (1, 8), scale: float = 1.0) -> None:
    """A table of measurements; one batch needs no column."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        named = len(batches) > 1
        table.writerow(["model", *["batch"] * named, prompt, "output_tokens", "energy_j"])
        for batch, n, m in itertools.product(batches, (64, 256, 1024, 4096), (64, 256, 1024)):
            joules = scale * batch * (2.0 * m + 0.03 * n + 1e-4 * n * m)
            table.writerow(["my-model", *[batch] * named, n, m, round(joules, 3)])


def _add_a_model(place: Path) -> bool:
    """A line in the demo's table of models and the same command: only that model is measured, and the fit has it."""
    name, start_s = "llama-3.2-1b", time.monotonic()
    before = {path: path.read_bytes() for path in (place / "results/demo/measurements").glob("*/*/*.jsonl")}
    with (place / "config/demo.tsv").open("a") as table:
        table.write(f"{name}\t../resources/architectures/{name}.json\tbfloat16\n")
    ran = _run("snakemake --profile local", place)
    after = {path: path.read_bytes() for path in (place / "results/demo/measurements").glob("*/*/*.jsonl")}
    new = {path.parts[-3] for path in after.keys() - before.keys()}
    groups = json.loads((place / "results/demo/predictor.json").read_text())["groups"]
    unchanged = all(after.get(path) == content for path, content in before.items())
    fine = ran.returncode == 0 and new == {name} and unchanged and name in {group["model"] for group in groups}
    word = "ok" if fine else "FAILED"
    print(f"{word:6} {time.monotonic() - start_s:5.1f} s README.md: add a model to config/demo.tsv", flush=True)
    if not fine:
        print(ran.stdout[-3000:], flush=True)
    return fine


if __name__ == "__main__":
    sys.exit(main())
