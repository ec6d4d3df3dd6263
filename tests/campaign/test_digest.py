"""Names of blocks change with what their rows depend on and with nothing else; so do digests of code."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkouts import CONFIG, ROOT
from sweetspot.campaign import digest
from sweetspot.campaign.campaign import Campaign
from sweetspot.campaign.digest import source_hash

BASE = {**CONFIG, "models": str(ROOT / "config/models.tsv")}


def blocks(**changes: Any) -> set[tuple[str, int, str]]:
    return set(Campaign({**BASE, **changes}).jobs)


USUAL = blocks()
SMALL = {"select": ["opt-1.3b"], "batches": [8]}


@pytest.mark.parametrize(
    "change",
    [
        {"results": "elsewhere"},
        {"input_tokens": [512, 64]},
        {"output_tokens": [512, 128, 64], "batches": [32, 8, 1]},
        {"select": ["llama-3.2-1b", "opt-1.3b"]},
        {"engine": {"name": "simulated", "python": "/usr/bin/python3"}},
        {"engine": {"name": "simulated", "cuda_graphs": True}},
        {"protocol": {"repetitions": 3, "window_s": 10}},
        {"cells_per_job": 6},
    ],
    ids=str,
)
def test_what_rows_do_not_depend_on_leaves_the_names(change: dict[str, Any]) -> None:
    assert blocks(**change) == USUAL


@pytest.mark.parametrize(
    "change",
    [
        {"campaign": "other"},
        {"input_tokens": [64, 511]},
        {"input_tokens": [64]},
        {"output_tokens": [64, 128, 512, 1024]},
        {"seed": 2},
        {"gpu": "NVIDIA H200"},
        {"engine": {"name": "simulated", "kv_cache_fraction": 0.8}},
        {"engine": {"name": "vllm"}},
        {"protocol": {"repetitions": 4}},
        {"protocol": {"repetitions": 3, "version": 2}},
    ],
    ids=str,
)
def test_what_rows_depend_on_changes_every_name(change: dict[str, Any]) -> None:
    assert blocks(**change).isdisjoint(USUAL)


LENGTHS = st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True)


@settings(max_examples=25, deadline=None)
@given(first=st.tuples(LENGTHS, LENGTHS), second=st.tuples(LENGTHS, LENGTHS), data=st.data())
def test_blocks_of_the_same_cells_have_the_same_names_and_no_others(
    first: tuple[list[int], list[int]], second: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    def named(n: list[int], m: list[int], size: int | str = "all") -> dict[str, list[tuple[int, int]]]:
        campaign = Campaign({**BASE, **SMALL, "input_tokens": n, "output_tokens": m, "cells_per_job": size})
        return {
            block: [(cell.input_tokens, cell.output_tokens) for cell in cells]
            for (_, _, block), cells in campaign.jobs.items()
        }

    mixed = [data.draw(st.permutations(lengths)) for lengths in first]
    size = data.draw(st.integers(1, 16))
    assert named(*first, size) == named(*mixed, size)
    one, other = named(*first), named(*second)
    assert (one.keys() == other.keys()) == (sorted(*one.values()) == sorted(*other.values()))
    digests = [block.rpartition("-")[2] for block in named(*first, size)]
    assert len(set(digests)) == len(digests), "parts of one grid are told apart by their cells, not only their numbers"


SCRIPT = '''"""A script."""
import json
from sweetspot.campaign.collect import collect

def work(x):
    """Work."""
    return collect(x) + 1  # one more
'''


def hash_of(text: str, package: dict[str, str] | None = None) -> str:
    """The digest of a script, beside a copy of a package in which some modules are different."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        place = Path(directory) / "sweetspot"
        shutil.copytree(digest.PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__"))
        for name, content in (package or {}).items():
            (place / name).write_text(content)
        patch.setattr(digest, "PACKAGE", place)
        digest._read.cache_clear()
        script = Path(directory) / "script.py"
        script.write_text(text)
        return source_hash(script)


def module(name: str) -> str:
    return (digest.PACKAGE / name).read_text()


def test_comments_and_docstrings_are_no_code() -> None:
    usual = hash_of(SCRIPT)
    assert len(usual) == 12
    assert usual == hash_of(SCRIPT)
    assert usual == hash_of(SCRIPT.replace("one more", "another").replace("Work.", "Works.").replace("A script", "One"))
    assert usual == hash_of(SCRIPT, {"campaign/collect.py": module("campaign/collect.py") + "\n# a comment\n"})


@pytest.mark.parametrize(
    "changed",
    [("+ 1", "+ 2"), ("import json", "import csv"), ("def work(x)", "def work(y)"), ('"""Work."""', "x = x")],
)
def test_code_is(changed: tuple[str, str]) -> None:
    assert hash_of(SCRIPT) != hash_of(SCRIPT.replace(*changed))


@pytest.mark.parametrize(
    "name", ["campaign/collect.py", "table/read.py", "errors.py", "sensors/board.py", "table/setups.py"]
)
def test_so_is_the_code_of_every_module_that_is_imported_even_indirectly(name: str) -> None:
    assert hash_of(SCRIPT) != hash_of(SCRIPT, {name: module(name) + "\nMORE = 1\n"})


def test_modules_that_are_not_imported_do_not_count() -> None:
    assert hash_of(SCRIPT) == hash_of(SCRIPT, {"report/page.py": module("report/page.py") + "\nMORE = 1\n"})


def test_imports_inside_functions_and_branches_and_of_packages_count() -> None:
    for line in ("from sweetspot import gpus", "import sweetspot.gpus", "from sweetspot.gpus import find"):
        for indented in (f"def f():\n    {line}\n", f"if 1:\n    pass\nelse:\n    {line}\n", f"{line}\n"):
            changed = {"gpus.py": module("gpus.py") + "\nMORE = 1\n"}
            assert hash_of(indented) != hash_of(indented, changed), indented
    page = {"report/page.css": module("report/page.css") + "\n/* more */"}
    assert hash_of("import sweetspot.report.page") != hash_of("import sweetspot.report.page", page)
    assert hash_of("import sweetspot.table") == hash_of("import sweetspot.table", page)
