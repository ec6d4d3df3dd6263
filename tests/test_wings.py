"""Rules of the library: imports point one way, wings that run beside an engine need no packages, files stay short."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweetspot import __doc__ as written

PACKAGE = Path(__file__).resolve().parents[1] / "workflow/sweetspot"
BASE = ("errors", "files", "gpus", "precision", "architecture", "memory", "parallelism", "vocabulary")
MAY_IMPORT = {  # the wings that each may import, besides the base and itself
    "base": (),
    "sensors": (),
    "models": (),
    "engines": ("sensors", "models"),
    "measure": ("engines", "sensors", "models"),
    "predict": (),
    "table": ("sensors",),
    "fit": ("predict", "table", "models"),
    "report": ("fit", "predict", "table", "measure", "sensors"),
    "campaign": ("fit", "predict", "table", "measure", "engines", "sensors", "models"),
    "commands": ("campaign", "report", "fit", "predict", "table", "measure", "engines", "sensors", "models"),
}
BESIDE_AN_ENGINE = ("base", "sensors", "engines", "measure", "predict")
NEEDS_TRANSFORMERS = ("models/outline.py", "models/reader.py", "models/stand_ins.py")  # imported inside functions
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def wing(module: list[str]) -> str:
    """The wing of a module, given by its path in the package; the package itself belongs to the base."""
    return module[0] if module and module[0] in MAY_IMPORT else "base"


def imports(node: ast.AST, functions: bool = True) -> Iterator[str]:
    """Every imported module, or name that may be a module, below a node; inside functions only if `functions`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif functions or not isinstance(child, ast.FunctionDef):
            yield from imports(child, functions)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    tree, own = ast.parse(path.read_text()), wing(list(path.relative_to(PACKAGE).parts))
    for name in imports(tree):
        package, *module = name.split(".")
        if package == "sweetspot":
            target = wing(module)
            assert target in ("base", own, *MAY_IMPORT[own]), f"{own} may not import {target} ({name})"
    if own in BESIDE_AN_ENGINE or (own == "models" and path.relative_to(PACKAGE).as_posix() not in NEEDS_TRANSFORMERS):
        for name in imports(tree, functions=False):
            assert name.split(".")[0] in {"sweetspot", *sys.stdlib_module_names}, f"{name} outside functions"


def test_every_wing_says_what_it_is() -> None:
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == MAY_IMPORT.keys() - {"base"}
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", *BASE}
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text()))
    assert all(name in str(written) for name in MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_too_long_to_hold_in_mind(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_one_place_chooses_the_vendor_of_a_board() -> None:
    named = [path for path in FILES if {"sweetspot.sensors.nvml", "pynvml"} & set(strings_and_imports(path))]
    assert {path.relative_to(PACKAGE).as_posix() for path in named} == {"sensors/__init__.py", "sensors/nvml.py"}


def strings_and_imports(path: Path) -> Iterator[str]:
    """What a file imports, also by a name in a string."""
    tree = ast.parse(path.read_text())
    yield from imports(tree)
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
