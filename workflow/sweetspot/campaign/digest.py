"""A digest of the code that computes a result."""

import ast
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def source_hash(script: Path) -> str:
    """Digest, in twelve hex digits, of a script and every module of this package that it imports, even indirectly.

    Comments and docstrings do not count, so only changes that can change a result change the digest. A template or
    style sheet beside a module (same stem) is part of it.
    """
    digest = sha256()
    for path in sorted(_closure(script), key=lambda path: path.parts[-2:]):
        for part in sorted(path.parent.glob(f"{path.stem}.*")) if PACKAGE in path.parents else [path]:
            digest.update(_read(part)[0] if part.suffix == ".py" else part.read_bytes())
    return digest.hexdigest()[:12]


def _closure(start: Path) -> set[Path]:
    found: set[Path] = set()
    queue = [start]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue += _read(path)[1]
    return found


@cache
def _read(path: Path) -> tuple[bytes, list[Path]]:
    """The code of a file without comments and docstrings, and the modules of this package that it imports."""
    tree = ast.parse(path.read_text())
    modules: list[str] = []
    for node in [tree, *_statements(tree)]:
        body = getattr(node, "body", None)
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value = ast.Constant(None)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
    files = []
    for module in modules:
        package, *parts = module.split(".")
        if package == PACKAGE.name and parts:
            place = PACKAGE.joinpath(*parts)
            files += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()]
    return ast.dump(tree).encode(), files


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node; expressions, most of a tree, contain neither docstrings nor imports."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            yield child
            yield from _statements(child)
