"""The command line of `sweetspot unattended`."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser(
        "unattended",
        help="measure a plan on a GPU machine without scheduler, Snakemake or network",
        description="Measure the cells of a plan one after another until all are measured or the time is up. Cells "
        "already in the directory are not measured again. Exit status: 0 if nothing is left, 3 if the time was up, 1 "
        "if nothing could be measured or the GPU was lost.",
        epilog="Example: sweetspot unattended --plan offline.json --directory results/offline --seconds 3000",
    )
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
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from sweetspot.measure import unattended

    return unattended.run(options.plan, options.directory, options.seconds)
