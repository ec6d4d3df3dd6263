"""The command line of `sweetspot raw`."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser(
        "raw",
        help="check the rows of a campaign against their raw samples",
        description="Recompute every row of a campaign from its raw samples and print where energy, validity or "
        "reasons differ. Changes nothing. The exit status is 1 if anything differs or a file is damaged.",
        epilog="Example: sweetspot raw results/my-campaign",
    )
    command.add_argument("directory", type=Path, metavar="DIR", help="directory of the campaign: results/NAME")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from sweetspot.measure import raw

    return 1 if raw.check(options.directory) else 0
