"""What is generated from the code is up to date, and links inside the documentation lead somewhere."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweetspot.campaign.config import Config, ModelRow
from sweetspot.commands.main import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "config/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_generated_files_are_up_to_date() -> None:
    code = "import generate\nfor path, text in generate.pages().items():\n    assert path.read_text() == text, path"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + "run: python docs/generate.py"


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", _without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", _without_code(page.read_text()))
    for target in links:
        assert not target.startswith("http://"), target
        if "://" not in target:
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            assert place.exists(), target
            if anchor:
                assert anchor in _anchors(place), target


def test_every_page_is_reached_from_the_readme() -> None:
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            links = re.findall(r"\]\(\s*([^)#\s]+)", page.read_text())
            queue += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert set(PAGES) - seen == set()


BLOCKS = [
    (page, kind, block)
    for page in PAGES
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, id=f"{page.stem}-{line[:50]}")
        for page, kind, block in BLOCKS
        if page.name != "command-line.md" and not kind
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("sweetspot ")
    ],
)
def test_every_command_of_the_pages_is_one(command: str) -> None:
    """The command line takes it: names of commands and options, and what they need."""
    assert callable(parser().parse_args(shlex.split(command, comments=True)[1:]).run)


@pytest.mark.parametrize("text", [block for _, kind, block in BLOCKS if kind == "yaml" and "campaign:" in block])
def test_every_campaign_of_the_pages_is_one(text: str) -> None:
    assert Config.model_validate(yaml.safe_load(text))


@pytest.mark.parametrize("text", [block for _, kind, block in BLOCKS if kind == "tsv"])
def test_every_table_of_models_of_the_pages_is_one(text: str) -> None:
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert rows
    for row in rows:
        assert ModelRow.model_validate({name: value for name, value in row.items() if value})


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    goals = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert goals
    for goal in goals:
        assert re.search(rf"^{goal}:", makefile, flags=re.MULTILINE)
    for profile in re.findall(r"--profile (\w+)", readme):
        assert (ROOT / profile / "config.yaml").exists()
