"""The command line of `sweetspot dataset`."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser(
        "dataset",
        help="turn a measured campaign into a dataset to keep or publish",
        description="Write every measured row (Parquet), the raw samples, the machine of each session, the commands "
        "that measured, and a README to a new directory.",
        epilog="Example: sweetspot dataset results/my-campaign resources/measurements/my-campaign",
    )
    command.add_argument("results", type=Path, metavar="RESULTS", help="directory of the measured campaign")
    command.add_argument("out", type=Path, metavar="OUT", help="directory of the dataset; must not exist")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from sweetspot.campaign import dataset

    frame = dataset.write(options.results, options.out)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"wrote {frame.height} rows and their raw samples to {options.out}, {size / 1e6:.1f} MB")
