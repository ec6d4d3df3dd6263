"""The rules of the house: imports point one way, what runs beside an engine needs no packages, files stay small."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweetspot import __doc__ as written

PACKAGE = Path(__file__).resolve().parents[1] / "workflow/sweetspot"
BASE = ("errors", "files", "gpus", "architecture", "memory")
MAY_IMPORT = {  # each wing, and those beneath it; every wing may import the base and itself
    "base": (),
    "sensors": (),
    "engines": ("sensors",),
    "measure": ("engines", "sensors"),
    "predict": (),
    "table": ("sensors",),
    "fit": ("predict", "table"),
    "report": ("fit", "predict", "table", "measure", "sensors"),
    "campaign": ("fit", "predict", "table", "measure", "engines", "sensors"),
    "commands": ("campaign", "report", "fit", "predict", "table", "measure", "engines", "sensors"),
}
BESIDE_AN_ENGINE = ("base", "sensors", "engines", "measure", "predict")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


def wing(module: list[str]) -> str:
    """The wing of a module of the package, given by its path below it; the package itself is of the base."""
    return module[0] if module and module[0] in MAY_IMPORT else "base"


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, and every name that may be one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    tree, own = ast.parse(path.read_text()), wing(list(path.relative_to(PACKAGE).parts))
    for name in imports(tree, path):
        package, *module = name.split(".")
        if package == "sweetspot":
            target = wing(module)
            assert target in ("base", own, *MAY_IMPORT[own]), f"{own} may not import {target} ({name})"
    if own in BESIDE_AN_ENGINE:
        for statement in (node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)):
            for name in imports(ast.Module([statement], []), path):
                assert name.split(".")[0] in {"sweetspot", *sys.stdlib_module_names}, f"{name} at the top of the file"


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
