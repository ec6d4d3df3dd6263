"""Arguments that several commands share."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.precision import name_of
from sweetspot.vocabulary import SELECTORS


def in_flight(text: str) -> float:
    """A batch: whole, or the mean number of requests in flight."""
    return int(text) if text.isdecimal() else float(text)


def add_map(command: argparse._ActionsContainer, what: str) -> None:
    """`--map`, which renames columns of `what`."""
    command.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help=f"rename a column of the {what}; may be repeated",
    )


def add_reading(command: argparse.ArgumentParser) -> None:
    """The tables to read, and how."""
    command.add_argument(
        "tables",
        nargs="+",
        type=Path,
        metavar="TABLE",
        help="CSV and the like, JSON, JSON Lines, Parquet or Excel, optionally .gz, or a result of a known benchmark "
        "(docs/how-to.md lists them); several tables are joined",
    )
    add_map(command, "table")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="one value for all rows of a column that the table lacks, for example batch=1, input_tokens=300 or "
        "power_w=350; may be repeated",
    )
    command.add_argument(
        "--decimal", choices=(".", ","), default="", help="decimal mark, where the numbers do not show it"
    )


def read_tables(options: argparse.Namespace) -> Any:
    """The `Table` that the arguments of `add_reading` name. Raises SweetspotError as `table.read` does."""
    from sweetspot.table import read as table  # needs polars, which takes long to import

    values = pairs(options.set, "--set", "COLUMN=VALUE, for example --set batch=1")
    return table.read(options.tables, renames(options.map), values, options.decimal)


def renames(items: Iterable[str]) -> dict[str, str]:
    """The pairs of `--map`, theirs to ours. Raises SweetspotError if one is not THEIRS=OURS."""
    return pairs(items, "--map", "THEIRS=OURS, for example --map nin=input_tokens")


def pairs(items: Iterable[str], option: str, form: str) -> dict[str, str]:
    """What a repeated option of the form LEFT=RIGHT says. Raises SweetspotError if an item has another form."""
    found = {}
    for item in items:
        left, separator, right = item.partition("=")
        if not (left and separator and right):
            raise SweetspotError(f"{option} {item}: write {form}")
        found[left] = right
    return found


def add_answer(command: argparse.ArgumentParser, asked: str) -> None:
    """Which group of a predictor answers, whether outside of its range, and how."""
    for name in SELECTORS:
        read = name_of if name == "precision" else str
        command.add_argument(f"--{name}", type=read, help="needed if the predictor holds several for this model")
    refuse = f"refuse a {asked} outside the measured range, with exit status 1"
    command.add_argument("--strict", action="store_true", help=refuse)
    command.add_argument("--json", action="store_true", help="print one JSON object")


def add_board(command: argparse.ArgumentParser) -> None:
    """`--gpu`, which chooses a board of this machine."""
    command.add_argument("--gpu", metavar="UUID", help="UUID of the GPU, or its start, if several are visible")
