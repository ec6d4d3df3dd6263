"""Measure the cells of a plan one after another until all are measured or the time is up.

Cells already in the directory are not measured again. Exit status: 0 if nothing is left, 3 if the time was up, 1 if
nothing could be measured or the GPU was lost.
"""

import argparse
from pathlib import Path

HELP = "measure a plan on a GPU machine without scheduler, Snakemake or network"
EPILOG = "Example: sweetspot unattended --plan offline.json --directory results/offline --seconds 3000"


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--plan", type=Path, required=True, metavar="FILE", help="the plan that `snakemake offline_plan` wrote"
    )
    command.add_argument(
        "--directory", type=Path, required=True, metavar="DIR", help="the campaign's directory; created if missing"
    )
    command.add_argument(
        "--seconds",
        type=float,
        required=True,
        metavar="S",
        help="time available, including loading; no cell starts that is expected to end later",
    )


def run(options: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    from sweetspot.measure import unattended

    return unattended.run(options.plan, options.directory, options.seconds)
