"""Arguments that several commands share."""

import argparse
from collections.abc import Iterable

from sweetspot.errors import SweetspotError


def add_map(command: argparse._ActionsContainer, what: str) -> None:
    """`--map`, which renames columns of `what`."""
    command.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help=f"rename a column of the {what}; may be repeated",
    )


def renames(items: Iterable[str]) -> dict[str, str]:
    """What `--map` says, theirs to ours. Raises SweetspotError for what is not THEIRS=OURS."""
    rename = {}
    for item in items:
        theirs, separator, ours = item.partition("=")
        if not (theirs and separator and ours):
            raise SweetspotError(f"--map {item}: write THEIRS=OURS, for example --map nin=input_tokens")
        rename[theirs] = ours
    return rename


def add_group(command: argparse.ArgumentParser) -> None:
    """What chooses among groups of one model."""
    for name in ("gpu", "engine", "precision"):
        command.add_argument(f"--{name}", help="where the predictor holds several for this model")
