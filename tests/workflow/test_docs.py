"""What is generated from the code is up to date, and links inside the documentation lead somewhere."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_wings import MAY_IMPORT

from pages import Made
from sweetspot.campaign.config import Config, ModelRow
from sweetspot.commands.main import parser
from sweetspot.predict import predictor

ROOT = Path(__file__).resolve().parents[2]
OTHERS = (
    "README.md",
    "CHANGELOG.md",
    "config/README.md",
    "resources/architectures/README.md",
    "workflow/sweetspot/engines/kernel_times/README.md",
)
PAGES = [*(ROOT / name for name in OTHERS), *sorted((ROOT / "docs").glob("*.md"))]


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


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@each_page
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


@each_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """Files of the repository; results and campaigns of the reader's own do not exist yet."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "results")
    named = re.findall(rf"(?:^|[\s`(])((?:{folders})/[\w./-]*[\w/])", page.read_text(), flags=re.MULTILINE)
    theirs = ("config/my-campaign.yaml", "config/few.yaml", "resources/measurements/")
    for name in named:
        assert name.startswith(theirs) or (ROOT / name).exists(), name


def test_every_module_that_the_page_on_architecture_names_exists() -> None:
    for name in re.findall(r"`(\w+(?:/\w+)*\.(?:py|js))`", (ROOT / "docs/architecture.md").read_text()):
        assert (ROOT / "workflow/sweetspot" / name).exists() or (ROOT / name).exists(), name


def test_the_page_on_architecture_has_the_import_rule() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, flags=re.MULTILINE))
    assert rows.keys() == MAY_IMPORT.keys() - {"base"}
    assert rows.pop("commands") == "every other wing"
    for wing, beneath in rows.items():
        assert set(re.findall(r"`(\w+)`", beneath)) == set(MAY_IMPORT[wing]), wing


@each_page
def test_every_section_of_the_report_that_a_page_names_is_one(page: Path) -> None:
    report = "".join(path.read_text() for path in (ROOT / "workflow/sweetspot/report").glob("*.*"))
    for title in re.findall(r"(?<![*\w])\*([A-Z][\w, ]+)\*(?![*\w])", _without_code(page.read_text())):
        assert title in report, title


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


@each_page
def test_every_command_that_a_page_mentions_exists(page: Path) -> None:
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    for goal in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{goal}:", makefile, flags=re.MULTILINE), goal
    for profile in re.findall(r"--profile (\w+)", text):
        assert (ROOT / profile / "config.yaml").exists(), profile
    for name in re.findall(r"`sweetspot ([a-z]+)", text):
        assert f"    {name}" in parser().format_help(), name


def test_make_does_what_the_readme_does_by_hand() -> None:
    """So the walk (tests/walk_docs.py) installs everything only once."""
    recipe = (
        (ROOT / "Makefile").read_text().replace("@$(INSTALL)", "pip install").replace("$<", "envs/requirements.txt")
    )
    by_hand = re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert re.findall(r"^\t(pip install .*)$", recipe.partition("$(DEV):")[0], flags=re.MULTILINE) == by_hand


@pytest.fixture
def demo(simulated: Made, tmp_path: Path) -> Path:
    """A directory with the results that examples read."""
    place = tmp_path / "results/demo"
    place.mkdir(parents=True)
    predictor.write(simulated.results.predictor, place / "predictor.json")
    simulated.results.measurements.write_parquet(place / "measurements.parquet")
    return tmp_path


def _runs(code: str, directory: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_in_python_run(demo: Path) -> None:
    code = "\n".join(block for page, kind, block in BLOCKS if page.name == "api.md" and kind == "python")
    said = _runs(code, demo)
    assert "SIMULATED" in said
    assert "mape_percent" in said


def test_the_notebook_draws_its_figure(demo: Path) -> None:
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    _runs("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), demo)
    assert (demo / "my-figure.png").stat().st_size > 10_000
