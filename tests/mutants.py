"""Changes one thing in the code and runs the tests of it, again and again; prints the changes that no test notices.

`python tests/mutants.py [--of PART_OF_A_PATH] [--count N]` works on a copy of the tree. Each survivor is a line of code
that could be wrong without a test saying so, or a change that changes nothing.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = "workflow/sweetspot"
# Modules, each with the tests that must notice a change in it; those that fail soonest come first.
TARGETS = {
    "sensors/meter.py": ["sensors/test_meter.py", "sensors/test_nvml.py", "sensors/test_nvml_several.py"],
    "sensors/window.py": ["sensors/test_meter.py", "sensors/test_nvml.py", "sensors/test_nvml_several.py"],
    "measure/journal.py": ["measure/test_journal.py", "measure/test_resume.py", "measure/test_session.py"],
    "campaign/digest.py": ["campaign/test_digest.py"],
    "campaign/configfile.py": ["campaign/test_configfile.py"],
    "campaign/collect.py": ["campaign/test_collect.py"],
    "predict/laws.py": ["predict/test_laws.py", "predict/test_predictor.py"],
    "predict/predictor.py": ["predict/test_predictor.py", "predict/test_predictor_file.py", "predict/test_laws.py"],
    "fit/solve.py": ["fit/test_fit.py", "predict/test_laws.py", "fit/test_validation.py"],
    "fit/heldout.py": ["fit/test_validation.py", "fit/test_fit.py"],
    **{
        f"table/{path.name}": ["table"]
        for path in sorted((ROOT / LIBRARY / "table").glob("*.py"))
        if path.name != "__init__.py"
    },
}
SECONDS = 300  # a mutant that takes longer is noticed: it hangs
OTHER = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
}


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """Every mutant of a module, and what was changed where."""
    for number, node in enumerate(ast.walk(tree)):
        for change in _changes(node):
            mutant = copy.deepcopy(tree)
            place = next(found for index, found in enumerate(ast.walk(mutant)) if index == number)
            before = ast.unparse(node).splitlines()[0]
            changed = _apply(place, change)
            yield f"{getattr(node, 'lineno', 0)}: {before[:70]} -> {changed[:70]}", ast.fix_missing_locations(mutant)


def _changes(node: ast.AST) -> Iterator[object]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
        yield "ops"
    elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in OTHER:
        yield "op"
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield from (True, False)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield not node.value if isinstance(node.value, bool) else node.value + 1
    if isinstance(getattr(node, "body", None), list):
        for index, statement in enumerate(node.body):
            documents = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if isinstance(statement, ast.Expr | ast.AugAssign | ast.Raise) and not documents:
                yield (index,)


def _apply(node: ast.AST, change: object) -> str:
    """Change a node; returns its new first line."""
    if change == "ops" and isinstance(node, ast.Compare):
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif change == "op" and isinstance(node, ast.BoolOp | ast.BinOp):
        node.op = OTHER[type(node.op)]()
    elif isinstance(change, tuple):
        gone = node.body[change[0]]  # type: ignore[attr-defined]
        node.body[change[0]] = ast.Pass()  # type: ignore[attr-defined]
        return f"without line {gone.lineno}: {ast.unparse(gone).splitlines()[0]}"
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        node.test = ast.Constant(change)
    elif isinstance(node, ast.Constant):
        node.value = change
    return ast.unparse(node).splitlines()[0]


def survives(place: Path, module: str, tests: list[str], source: str) -> bool:
    """Whether all tests of a module pass in the copy at `place` with this source."""
    path = place / LIBRARY / module
    kept = path.read_text()
    path.write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = {**os.environ, "PYTHONPATH": str(place / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        tested = [f"tests/{test}" for test in tests]
        done = subprocess.run([*command, *tested], cwd=place, env=environment, capture_output=True, timeout=SECONDS)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(kept)


def main() -> int:
    """Try them; prints survivors and counts. The exit status is 1 if a module's tests fail without any change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", default="", help="only modules whose path contains this")
    parser.add_argument("--count", type=int, default=400, help="mutants, drawn at random but always the same")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = [module for module in TARGETS if options.of in module]
    found = [
        (module, what, ast.unparse(mutant))
        for module in chosen
        for what, mutant in mutants(ast.parse((ROOT / LIBRARY / module).read_text()))
    ]
    total, found = len(found), random.Random(1).sample(found, min(options.count, len(found)))
    counts: Counter[bool] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.workers):
            place = Path(directory) / str(number)
            ignored = shutil.ignore_patterns(".git", ".venv*", "results", "__pycache__", ".hypothesis", ".snakemake")
            shutil.copytree(ROOT, place, symlinks=True, ignore=ignored)
            free.put(place)

        def judged(mutant: tuple[str, str, str]) -> tuple[str, str, bool]:
            place = free.get()
            try:
                return *mutant[:2], survives(place, mutant[0], TARGETS[mutant[0]], mutant[2])
            finally:
                free.put(place)

        with ThreadPoolExecutor(options.workers) as pool:
            whole = [(module, "nothing changed", (ROOT / LIBRARY / module).read_text()) for module in chosen]
            if broken := [module for module, _, passes in pool.map(judged, whole) if not passes]:
                print(f"tests of {', '.join(broken)} fail without any change")
                return 1
            for module, what, survived in pool.map(judged, found):
                counts[survived] += 1
                if survived:
                    print(f"SURVIVED {module}:{what}", flush=True)
    print(f"{counts.total()} of {total} mutants: {counts[False]} noticed, {counts[True]} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
