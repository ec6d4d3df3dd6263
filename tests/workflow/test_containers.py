"""Containers, conda environment, CI and issue forms: what can be checked where no image can be built."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from checkouts import ROOT
from sweetspot.commands.main import COMMANDS

IMAGES = ("analysis", "vllm", "tensorrt-llm")


def instructions(name: str, word: str) -> list[str]:
    text = (ROOT / f"containers/{name}.Dockerfile").read_text()
    return re.findall(rf"^{word} (.*)$", text, flags=re.MULTILINE)


def copied(name: str) -> list[str]:
    return [word for line in instructions(name, "COPY") for word in line.split()[:-1]]


@pytest.mark.parametrize("name", IMAGES)
def test_the_package_builds_from_what_an_image_copies(name: str, tmp_path: Path) -> None:
    allowed = (ROOT / ".dockerignore").read_text().split()
    for source in copied(name):
        assert f"!{source.split('/')[0]}" in allowed, f"{source} does not reach the build"
        target = tmp_path / source
        target.parent.mkdir(exist_ok=True)
        if (ROOT / source).is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / source, target, dirs_exist_ok=True, ignore=skip)
        else:
            shutil.copy(ROOT / source, target)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sweetspot/measure/session.py" in names
    assert ("sweetspot/shipped/config/config.yaml" in names) == (name == "analysis")


@pytest.mark.parametrize("name", IMAGES)
def test_dockerfile_and_apptainer_definition_say_the_same(name: str) -> None:
    definition = (ROOT / f"containers/{name}.def").read_text()
    (image,) = instructions(name, "FROM")
    assert re.search(r":v?\d+\.\d+\.\d+", image), "pinned by version"
    assert f"From: {image}\n" in definition
    files = definition.split("%files\n")[1].split("\n\n")[0].split("\n")
    assert {line.split()[0] for line in files} == {source.split("/")[0] for source in copied(name)}
    for command in instructions(name, "RUN"):
        assert f"    {command}\n" in definition
    page = (ROOT / "docs/engines.md").read_text()
    assert image in page
    lock = (ROOT / "envs/requirements.txt").read_text()
    for pin in re.findall(r"nvidia-ml-py==\S+", " ".join(instructions(name, "RUN"))):
        assert f"{pin} \\" in lock


def test_every_rule_names_an_environment_that_is_there() -> None:
    for rules in (ROOT / "workflow/rules").glob("*.smk"):
        for place in re.findall(r'conda:\s+"(.*)"', rules.read_text()):
            packages = yaml.safe_load((rules.parent / place).read_text())["dependencies"][-1]["pip"]
            assert any(package.startswith("polars==") for package in packages)


def test_ci_runs_what_a_change_must_pass() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    assert "bash .ci/run" in steps
    for file in re.findall(r"-f (\S+)", " ".join(steps)):
        assert (ROOT / file).exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.name
)
def test_an_issue_form_asks_for_the_doctor(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    required = [part["id"] for part in form["body"] if part.get("validations", {}).get("required")]
    assert "doctor" in required
    (label,) = [part["attributes"]["label"] for part in form["body"] if part["id"] == "doctor"]
    assert re.search(r"sweetspot (\w+)", label)[1] in COMMANDS
