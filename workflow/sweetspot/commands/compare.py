"""Show how much more or less energy B needs than A for the same requests, with an interval, by region of batches and
lengths. Predictors are compared by their laws within the range that both measured, tables by the cells they have in
common.
"""

import argparse
import json
from pathlib import Path

from sweetspot.commands.arguments import pairs
from sweetspot.errors import SweetspotError
from sweetspot.vocabulary import SELECTORS

_KEYS = ("model", *SELECTORS)
_FORM = f"KEY=VALUE with a key of {', '.join(_KEYS)}"

HELP = "compare two predictors or tables: GPUs, engines, precisions"
EPILOG = (
    "Example: sweetspot compare a100/predictor.json h100/predictor.json. Within one file: sweetspot compare "
    "predictor.json predictor.json --a precision=bfloat16 --b precision=fp8"
)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    for letter in "AB":
        command.add_argument(
            letter, type=Path, help="predictor.json, or a table of measurements (CSV, Parquet, JSON lines)"
        )
    for letter in "ab":
        command.add_argument(
            f"--{letter}",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest=f"of_{letter}",
            help=f"use only groups of {letter.upper()} with this in their model, gpu, engine, precision or "
            "parallelism; may be repeated",
        )
    command.add_argument("--json", action="store_true", help="print one JSON array with an object per pair")


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.fit import compare

    sides = []
    for option, path, selected in (("--a", options.A, options.of_a), ("--b", options.B, options.of_b)):
        wanted = pairs(selected, option, _FORM)
        for key in wanted.keys() - _KEYS:
            raise SweetspotError(f"{option} {key}={wanted[key]}: write {_FORM}")
        sides.append(compare.read(path, wanted))
    found = compare.compare(*sides)
    if options.json:
        print(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        print("\n\n".join(one.as_text() for one in found))
