"""Builds a wheel that has the workflow inside: what a clone keeps beside the library lies in sweetspot/shipped.

Everything else stands in pyproject.toml. An editable installation uses the clone itself.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PARTS = ("rules/*", "scripts/*.py", "schemas/*", "report/*")
SHIPPED = (*(f"workflow/{part}" for part in ("Snakefile", *PARTS)), "config/*", "profiles/*/*", "envs/*.yaml")
SHIPPED += ("resources/architectures/*",)


class Build(build_py):
    """Copies the workflow beside the modules."""

    def run(self) -> None:
        """Build."""
        super().run()
        for source in [] if self.editable_mode else [path for part in SHIPPED for path in sorted(Path().glob(part))]:
            target = Path(self.build_lib, "sweetspot/shipped", source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


setup(cmdclass={"build_py": Build})
