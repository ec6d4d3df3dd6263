"""The package as people install it: built as sdist and wheel, in an environment that has never seen a clone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
import yaml

from checkouts import ROOT, Checkout

BUILD = "from setuptools import build_meta; build_meta.build_{kind}({to!r})"
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "Snakefile",
)
FOLDERS = ("workflow", "config", "profiles", "resources", "envs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist, so that the sdist has all that it needs."""
    place = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        shutil.copy(ROOT / name, place / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))

    def built(kind: str, where: Path) -> Path:
        code = BUILD.format(kind=kind, to=str(place / "dist"))
        subprocess.run([sys.executable, "-c", code], cwd=where, check=True, capture_output=True)
        (found,) = (place / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
        return found

    with tarfile.open(built("sdist", place)) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return built("wheel", unpacked)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel; its dependencies are those of this one, but not sweetspot."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    install = ["-m", "pip", "--python", place / "bin/python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *install], check=True, env=without_clone())
    return place / "bin"


def without_clone() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_wheel_holds_the_whole_workflow(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("workflow/rules", "workflow/scripts", "workflow/schemas", "workflow/report", "config", "profiles"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and "config/mine" not in str(path):
                assert f"sweetspot/shipped/{path.relative_to(ROOT)}" in names, path
    assert wheel.name.startswith("sweetspot_llm-"), "`sweetspot` on PyPI is another project"


def test_a_study_begun_with_the_wheel_runs_to_its_report(installed: Path, tmp_path: Path) -> None:
    command = [installed / "sweetspot", "init", "my-study"]
    said = subprocess.run(command, cwd=tmp_path, env=without_clone(), capture_output=True, text=True, check=True).stdout
    assert "cd my-study && snakemake --profile local" in said
    study = Checkout(tmp_path / "my-study", "my-study")
    file = study.path / "config/config.yaml"
    config = yaml.safe_load(file.read_text())
    assert (config["campaign"], config["engine"]) == ("my-study", {"name": "simulated"})
    table = (study.path / "config/models.tsv").read_text()
    models = [line.split("\t")[0] for line in table.splitlines()[1:]]
    small = {"select": models[:2], "input_tokens": [64, 512], "output_tokens": [64, 512], "batches": [1, 8]}
    file.write_text(yaml.safe_dump({**config, **small}))

    def snakemake(*arguments: str) -> str:
        ran = [installed / "python", "-m", "snakemake", *arguments]
        done = subprocess.run(ran, cwd=study.path, env=without_clone(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "measure" in snakemake("--profile", "slurm", "--dry-run")
    said = snakemake("--profile", "local")
    assert "my-study: finished" in said
    assert "16 of 16 cells" in said
    assert models[0] in (study.out / "report.html").read_text()
    assert "Nothing to be done" in snakemake("--profile", "local")
    assert str(ROOT) not in (study.path / "Snakefile").read_text(), "another environment may run it"


def test_a_table_is_fitted_without_clone(installed: Path, tmp_path: Path) -> None:
    lines = ["model,batch,input_tokens,output_tokens,energy_j"]
    for n in (64, 256, 1024):
        lines += [f"mine,{batch},{n},{m},{batch * (0.02 * n + 2.5 * m)}" for m in (64, 128, 512) for batch in (1, 8)]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    command = [installed / "sweetspot-llm", "fit", "rows.csv", "--out", "fitted"]
    done = subprocess.run(command, cwd=tmp_path, env=without_clone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fitted/predictor.json").exists()
    doctor = subprocess.run([installed / "sweetspot", "doctor"], cwd=tmp_path, env=without_clone(), capture_output=True)
    assert doctor.returncode == 0, doctor.stdout


@pytest.mark.parametrize(("name", "part"), [("there", "is there already"), ("{x}", "cannot name a campaign")])
def test_a_directory_that_cannot_be_a_study_is_refused(tmp_path: Path, name: str, part: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    command = [sys.executable, "-m", "sweetspot", "init", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert part in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "file"]
