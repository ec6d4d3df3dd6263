"""The command line of `sweetspot compare`."""

import argparse
import json
from pathlib import Path

from sweetspot.errors import SweetspotError

# What the command needs is imported when it runs: the other commands must answer at once.


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser(
        "compare",
        help="compare two predictors or tables: GPUs, engines, precisions",
        description="Say how much more or less energy B needs than A for the same requests, with a 95 % interval, and "
        "in which region of batches and lengths. Predictors are compared by their laws inside what both measured; "
        "tables by the cells that both hold.",
        epilog="Example: sweetspot compare a100/predictor.json h100/predictor.json. Within one file: "
        "sweetspot compare predictor.json predictor.json --a precision=bfloat16 --b precision=fp8",
    )
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
            help=f"of {letter.upper()} only groups whose model, gpu, engine or precision holds this; may be repeated",
        )
    command.add_argument("--json", action="store_true", help="print one JSON array, an object for each pair")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from sweetspot.fit import compare

    sides = []
    for path, selected in ((options.A, options.of_a), (options.B, options.of_b)):
        wanted = dict(item.partition("=")[::2] for item in selected)
        for key, value in wanted.items():
            if key not in ("model", "gpu", "engine", "precision") or not value:
                raise SweetspotError(f"{key}={value}: write KEY=VALUE with a key of model, gpu, engine, precision")
        sides.append(compare.read(path, wanted))
    found = compare.compare(*sides)
    if options.json:
        print(json.dumps([one.as_dict() for one in found], indent=2))
    else:
        print("\n\n".join(one.as_text() for one in found))
