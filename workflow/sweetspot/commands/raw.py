"""Recompute every row of a campaign from its raw samples and print where energy, validity or reasons differ.

Changes nothing. The exit status is 1 if anything differs or a file is damaged.
"""

import argparse
from pathlib import Path

HELP = "check the rows of a campaign against their raw samples"
EPILOG = "Example: sweetspot raw results/my-campaign"


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("directory", type=Path, metavar="DIR", help="directory of the campaign: results/NAME")


def run(options: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    from sweetspot.measure import raw

    return 1 if raw.check(options.directory) else 0
