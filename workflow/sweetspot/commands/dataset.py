"""Write every measured row (Parquet), the raw samples, the machine of each session, the commands that measured, and a
README to a new directory.
"""

import argparse
from pathlib import Path

HELP = "turn a measured campaign into a dataset to keep or publish"
EPILOG = "Example: sweetspot dataset results/my-campaign resources/measurements/my-campaign"


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("results", type=Path, metavar="RESULTS", help="directory of the measured campaign")
    command.add_argument("out", type=Path, metavar="OUT", help="directory of the dataset; must not exist")


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.campaign import dataset

    frame = dataset.write(options.results, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"wrote {frame.height} rows and their raw samples to {options.out}, {size / 1e6:.1f} MB")
