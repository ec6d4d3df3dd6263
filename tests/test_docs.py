"""What is generated from the code is up to date, and links inside the documentation lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_files_are_up_to_date() -> None:
    code = "import generate\nfor path, text in generate.pages().items():\n    assert path.read_text() == text, path"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)  # code is not prose
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_command_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    goals = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert goals
    for goal in goals:
        assert re.search(rf"^{goal}:", makefile, flags=re.MULTILINE)
    for profile in re.findall(r"--profile (\w+)", readme):
        assert (ROOT / profile / "config.yaml").exists()
