"""Build the documentation as a site: `python docs/site.py [--demo results/demo/report.html]`, made by `make docs`.

The pages of this repository link to each other as files, so they are staged under build/docs as they lie here. Links
that lead nowhere fail the build.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGE, SITE = ROOT / "build/docs", ROOT / "build/site"
PLACES = ("*.md", "CITATION.cff", "docs/*.md", "docs/*.png", "docs/*.ipynb", "config/*.md", "envs/*.md")
DEEPER = ("resources/**/*.md", "workflow/sweetspot/**/*.md", "workflow/sweetspot/**/*.schema.json")
NO_DEMO = "Run `make demo`, then `make docs`: the report of the demo will stand here."


def notebook(path: Path) -> str:
    """A notebook as a page: its text, and its code as blocks."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    blocks = [part if kind == "markdown" else f"```python\n{part}\n```" for part, kind in parts]
    return "\n\n".join([*blocks, f"[The notebook itself]({path.name})"]) + "\n"


def main() -> int:
    """Stage and build; returns the exit status of mkdocs."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--demo", type=Path, default=ROOT / "results/demo/report.html", help="a report to show live")
    demo = arguments.parse_args().demo
    shutil.rmtree(STAGE, ignore_errors=True)
    for pattern in (*PLACES, *DEEPER):
        for file in ROOT.glob(pattern):
            target = STAGE / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (STAGE / "docs/notebook.md").write_text(notebook(ROOT / "docs/notebook.ipynb"), encoding="utf-8")
    live = f"# The report of the demo\n\n{NO_DEMO}\n"
    if demo.exists():
        shutil.copyfile(demo, STAGE / "docs/report.html")
        live = "# The report of the demo\n\n[Open it alone](report.html). Its numbers are simulated.\n\n"
        live += '<iframe src="report.html" title="Report of the demo" style="width: 100%; height: 80vh; border: 0">'
        live += "</iframe>\n"
    (STAGE / "docs/demo.md").write_text(live, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", "docs/mkdocs.yml"]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode
    if not status:
        print(f"open {SITE.relative_to(ROOT)}/index.html")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
