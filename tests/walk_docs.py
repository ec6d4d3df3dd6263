"""Walk the documentation: run every command that a reader can run without a GPU, in the environment that README makes.

`python tests/walk_docs.py` copies the working tree to a fresh directory and types what the code blocks of README.md,
config/README.md and docs/how-to.md say, in their order, into one shell per page. README's shell starts bare; the other
shells start with README's environment activated. `make demo` makes that environment, and README's commands for doing so
by hand then find it complete. A line of a code block without a language, or in the shell's, is a command, and so is
inline code with options; each is run, or is listed in EXCEPTIONS with the reason. Needs the standard library only,
because nothing else is installed yet.
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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "config/README.md", "docs/how-to.md")
PROGRAMS = ("make", "python3", "pip", "snakemake", "sweetspot")
LANGUAGES = ("", "sh", "bash", "shell", "console")
ACTIVATE = ". .venv/bin/activate"
DEMO = "snakemake --profile local"
EXPECTED_RESULTS = {  # what a command must leave behind
    "make demo": ("results/demo/report.html", "results/demo/predictor.json"),
    "sweetspot fit rows.csv --out fitted": ("fitted/predictor.json", "fitted/validation.csv"),
    "snakemake --report report.zip": ("report.zip",),
}


class Instead(NamedTuple):
    """What runs in place of a command ("": nothing), and why."""

    command: str
    reason: str


EXCEPTIONS = {  # by what the command starts with
    "make test": Instead("", "the tests run after this walk"),
    "snakemake --profile slurm": Instead("", "needs a cluster; tests/workflow/test_slurm.py has one"),
    "snakemake --profile local --configfile config/study.yaml": Instead(
        "snakemake --profile local --configfile config/study.yaml --dry-run", "the whole study takes too long"
    ),
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
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        walk = Walk(_copy(Path(directory) / "sweetspot"))
        for page in PAGES:
            walk.page(page)
        walk.check("README.md: add a model to the demo's table", walk.add_a_model)
        for start in EXCEPTIONS.keys() - walk.excepted:
            walk.check(f"EXCEPTIONS: no page has `{start}` any more", lambda: "remove it")
    print(f"{time.monotonic() - start_s:.0f} s in total")
    print(f"{walk.passed} passed, {walk.failed} failed")
    return 1 if walk.failed else 0


class Walk:
    """A walk through one copy of the repository, and its score."""

    def __init__(self, place: Path) -> None:
        self.place, self.passed, self.failed = place, 0, 0
        self.seen: set[str] = set()
        self.excepted: set[str] = set()

    def page(self, page: str) -> None:
        """Type every command of a page into one shell; a command that an earlier page had is not repeated."""
        shell = Shell(self.place)
        if page != PAGES[0]:
            shell.run(ACTIVATE)
        if page == "docs/how-to.md":  # its table has no column `batch`, and a header of its own for the prompt
            _write_table(self.place / "rows.csv", prompt="prompt", batches=(1,))
        for command in commands((self.place / page).read_text()):
            if command in self.seen:
                continue
            self.seen.add(command)
            start = max((s for s in EXCEPTIONS if command == s or command.startswith(f"{s} ")), key=len, default=None)
            instead = EXCEPTIONS[start] if start else Instead(command, "")
            if start:
                self.excepted.add(start)
            if instead.command:
                note = f" (as `{instead.command}`: {instead.reason})" if instead.reason else ""
                self.check(f"{page}: {command}{note}", partial(self.problem, shell, instead.command))
            else:
                print(f"not run        {page}: {command} ({instead.reason})", flush=True)
            if command == "make demo":
                self.prepare()

    def check(self, what: str, problem_of: Callable[[], str]) -> None:
        """Score one step and print its line; a step that fails returns what went wrong."""
        start_s = time.monotonic()
        problem = problem_of()
        self.passed, self.failed = self.passed + (not problem), self.failed + bool(problem)
        print(f"{'FAILED' if problem else 'ok':6} {time.monotonic() - start_s:5.1f} s {what}", flush=True)
        if problem:
            print(problem[-3000:], flush=True)

    def problem(self, shell: "Shell", command: str) -> str:
        """What is wrong with a command: its output if it fails, or the files that it did not write; else ""."""
        if command.split(" ")[0] not in PROGRAMS:
            return f"neither a program of the pages ({', '.join(PROGRAMS)}) nor listed in EXCEPTIONS"
        status, output = shell.run(command)
        missing = [name for name in EXPECTED_RESULTS.get(command, ()) if not (self.place / name).exists()]
        return output or f"exit status {status}" if status else f"did not write {missing}" if missing else ""

    def prepare(self) -> None:
        """The files that the pages take for granted: tables measured elsewhere, other campaigns, a configuration."""
        (self.place / "config/my-campaign.yaml").write_text(CAMPAIGN)
        _write_table(self.place / "rows.csv")
        usage = [{"usage": {"prompt_tokens": 300 + n, "completion_tokens": 100 + 3 * n}} for n in range(20)]
        (self.place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in usage))
        _write_table(self.place / "rows-vllm.csv")
        _write_table(self.place / "rows-trt.csv", scale=0.9)
        predictor = self.demo_predictor()
        for campaign in ("a100", "h100", "study"):
            groups = predictor["groups"]
            if campaign == "study":  # the same models in another precision
                groups = groups + [{**group, "precision": "fp8"} for group in groups]
            (self.place / "results" / campaign).mkdir(parents=True, exist_ok=True)
            copy = json.dumps({**predictor, "groups": groups})
            (self.place / "results" / campaign / "predictor.json").write_text(copy)

    def demo_predictor(self) -> dict[str, list[dict[str, object]]]:
        """The demo's predictor.json; without groups if the demo failed."""
        path = self.place / "results/demo/predictor.json"
        content: dict[str, list[dict[str, object]]] = json.loads(path.read_text()) if path.exists() else {"groups": []}
        return content

    def add_a_model(self) -> str:
        """Add a line to the table that README names: the same command measures only that model, and fits it too."""
        name, before = "llama-3.2-1b", self.blocks()
        named = re.search(r"the demo's is `([\w/.]+)`", (self.place / PAGES[0]).read_text())
        if not named:
            return "README does not name the demo's table of models"
        with (self.place / named[1]).open("a") as table:
            table.write(f"{name}\t../resources/architectures/{name}.json\tbfloat16\n")
        shell = Shell(self.place)
        shell.run(ACTIVATE)
        status, output = shell.run(DEMO)
        after = self.blocks()
        measured = [path.parts[-3] for path, content in after.items() if before.get(path) != content]
        jobs = re.findall(r"^To measure: \d+ cells in (\d+) jobs", output, flags=re.MULTILINE)
        if status or not before.keys() <= after.keys() or measured != [name] * 3 or set(jobs) != {"3"}:
            return f"{output}\nmeasured: {sorted(measured)}, jobs: {jobs}"
        fitted = {group["model"] for group in self.demo_predictor()["groups"]}
        return "" if name in fitted else f"predictor.json has {fitted}"

    def blocks(self) -> dict[Path, bytes]:
        """The measured rows of the demo, by file."""
        return {path: path.read_bytes() for path in (self.place / "results/demo/measurements").glob("*/*/*.jsonl")}


class Shell:
    """A shell in which a reader types one command after another."""

    _END = "end-of-command"

    def __init__(self, place: Path) -> None:
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=place,
            env=_plain_environment(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, command: str) -> tuple[int, str]:
        """The exit status and the output of a command."""
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\n{self._END} %d\\n' $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(self._END):
                return int(line.split()[1]), "".join(lines)
            lines.append(line)
        return self._bash.wait() or 1, "".join(lines)


def _plain_environment() -> dict[str, str]:
    """The environment of a reader who has activated nothing."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    found = {name: value for name, value in os.environ.items() if name not in left_out}
    places = [place for place in found["PATH"].split(os.pathsep) if not (Path(place).parent / "pyvenv.cfg").exists()]
    return {**found, "PATH": os.pathsep.join(places)}


def _copy(place: Path) -> Path:
    """Copy the files of the working tree, as a clone would have them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    return place


def commands(text: str) -> list[str]:
    """The commands of a page in their order: lines of code blocks without a language, and inline code with options."""
    found = []
    pattern = re.compile(r"^```(\w*)\n(.*?)^```|`([^`\n]+)`", flags=re.DOTALL | re.MULTILINE)
    for language, block, inline in pattern.findall(text):
        if inline:
            found += [inline] * (inline.split(" ")[0] in PROGRAMS and " --" in inline and "..." not in inline)
        elif language in LANGUAGES:
            lines = re.sub(r"\\\n *", "", block).splitlines()
            found += [command for line in lines if (command := line.partition("# ")[0].strip())]
    return found


def _write_table(path: Path, prompt: str = "input_tokens", batches: Sequence[int] = (1, 8), scale: float = 1.0) -> None:
    """A table of measurements; one batch needs no column."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        named = len(batches) > 1
        table.writerow(["model", *["batch"] * named, prompt, "output_tokens", "energy_j"])
        for batch, n, m in itertools.product(batches, (64, 256, 1024, 4096), (64, 256, 1024)):
            joules = scale * batch * (2.0 * m + 0.03 * n + 1e-4 * n * m)
            table.writerow(["my-model", *[batch] * named, n, m, round(joules, 3)])


if __name__ == "__main__":
    sys.exit(main())
