"""Start a study in a new directory: a campaign to change, its table of models with their architectures, profiles for
this machine and for Slurm, and a Snakefile that runs the installed workflow. It begins as the simulated demo.
"""

import argparse
import csv
import re
import shutil
from pathlib import Path

from sweetspot.errors import SweetspotError

HELP = "start a study in a new directory"
EPILOG = "Example: sweetspot init my-study && cd my-study && snakemake --profile local"

_CAMPAIGN, _TABLE = "config/config.yaml", "config/models.tsv"
_SNAKEFILE = """# The workflow of the installed package `sweetspot-llm`.
from sweetspot.files import shipped


include: str(shipped() / "workflow/Snakefile")


localrules:
    default,


rule default:
    default_target: True
    input:
        rules.all.input,
"""


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("directory", type=Path, metavar="DIRECTORY", help="to make; its name becomes the campaign's")


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.files import shipped, write_atomically

    place, name = options.directory, options.directory.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise SweetspotError(f"{name!r} cannot name a campaign: use letters, digits, dots, dashes and underscores")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise SweetspotError(f"{place}: is there already; name a new or an empty directory")
    source = shipped()
    table = (source / "config/demo.tsv").read_text()
    settings = (source / _CAMPAIGN).read_text()
    for old, new in (("campaign: demo", f"campaign: {name}"), ("models: config/demo.tsv", f"models: {_TABLE}")):
        settings = settings.replace(old, new)
    write_atomically(place / _CAMPAIGN, settings)
    write_atomically(place / _TABLE, table)
    write_atomically(place / "Snakefile", _SNAKEFILE)
    write_atomically(place / ".gitignore", ".snakemake/\nresults/\n")
    for row in csv.DictReader(table.splitlines(), delimiter="\t"):
        target = place / "config" / row["architecture"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "config" / row["architecture"], target)
    for profile in ("default", "local", "slurm"):
        text = (source / f"profiles/{profile}/config.yaml").read_text()
        write_atomically(place / f"profiles/{profile}/config.yaml", text)
        if profile != "default":  # Snakemake looks for a profile here
            (place / profile).symlink_to(f"profiles/{profile}", target_is_directory=True)
    print(
        f"wrote {place}: {_CAMPAIGN} is the campaign, {_TABLE} its models.\n"
        f"next: cd {place} && snakemake --profile local   (simulated as it is; set `engine` to measure a GPU)"
    )
