"""Arguments that several commands share."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError


def read_configuration(path: Path) -> dict[str, Any]:
    """A campaign's configuration file. Raises SweetspotError for one that cannot be read or holds no configuration."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SweetspotError(f"{path}: cannot be read ({error}); name one with --configfile") from None
    if not isinstance(raw, dict):
        raise SweetspotError(f"{path}: holds no configuration; see docs/configuration.md")
    return raw


def add_map(command: argparse._ActionsContainer, what: str) -> None:
    """`--map`, which renames columns of `what`."""
    command.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help=f"rename a column of the {what}; may be repeated",
    )


def add_set(command: argparse._ActionsContainer) -> None:
    """`--set`, which gives a column that the table lacks one value."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="one value for all rows, for model, batch, gpu, engine, precision or source where the table lacks it; may "
        "be repeated",
    )


def renames(items: Iterable[str]) -> dict[str, str]:
    """What `--map` says, theirs to ours. Raises SweetspotError for what is not THEIRS=OURS."""
    return _pairs(items, "--map", "THEIRS=OURS, for example --map nin=input_tokens")


def constants(items: Iterable[str]) -> dict[str, str]:
    """What `--set` says, column to value. Raises SweetspotError for what is not COLUMN=VALUE."""
    return _pairs(items, "--set", "COLUMN=VALUE, for example --set batch=1")


def _pairs(items: Iterable[str], option: str, form: str) -> dict[str, str]:
    pairs = {}
    for item in items:
        left, separator, right = item.partition("=")
        if not (left and separator and right):
            raise SweetspotError(f"{option} {item}: write {form}")
        pairs[left] = right
    return pairs


def add_group(command: argparse.ArgumentParser) -> None:
    """What chooses among groups of one model."""
    for name in ("gpu", "engine", "precision"):
        command.add_argument(f"--{name}", help="where the predictor holds several for this model")


def add_board(command: argparse.ArgumentParser) -> None:
    """`--gpu`, which chooses a board of this machine."""
    command.add_argument("--gpu", metavar="UUID", help="the GPU (or the start of its UUID) if several are visible")
