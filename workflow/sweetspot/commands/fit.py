"""Fit every energy law to a table of measurements, separately for each (model, gpu, engine, precision), and validate
the laws on held-out cells. Writes predictor.json, validation.csv and predictions.parquet.
"""

import argparse
import sys
from pathlib import Path

from sweetspot.commands.arguments import add_map, pairs, renames
from sweetspot.errors import SweetspotError

HELP = "fit energy laws to a table of measurements and validate them"
EPILOG = (
    "Required columns: model, batch, input_tokens, output_tokens, energy_j (joules of one run of the whole batch, "
    "whole board, idle included). Optional: gpu, engine, precision, duration_s, repetition, source (simulated, "
    "measured or published), valid. Common alternative column names are recognised and reported. Other columns "
    "pass through. Example: sweetspot fit rows.csv --map prompt=input_tokens --set batch=1 --out fitted"
)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "tables",
        nargs="+",
        type=Path,
        metavar="TABLE",
        help="CSV (separated by commas, tabs, semicolons or bars), JSON, JSON Lines or Parquet, optionally .gz; "
        "several tables are joined",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the results; created if missing"
    )
    add_map(command, "table")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="one value for all rows of a missing column: model, batch, gpu, engine, precision, parallelism or source; "
        "may be repeated",
    )
    command.add_argument(
        "--architectures",
        type=Path,
        metavar="DIR",
        help="directory with MODEL.json or MODEL/config.json of the table's models, to also fit the law across models",
    )


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.fit import across_models, validation
    from sweetspot.fit.fit import fit_table
    from sweetspot.predict import predictor
    from sweetspot.table import read as table

    rename, values = renames(options.map), pairs(options.set, "--set", "COLUMN=VALUE, for example --set batch=1")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweetspotError(f"cannot make {options.out}: {error.strerror}; choose another --out") from None
    rows = table.read(options.tables, rename, values)
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)
    models = rows.frame["model"].drop_nulls().unique(maintain_order=True)
    architectures, refused = (
        across_models.read_architectures(options.architectures, models) if options.architectures else ({}, [])
    )
    for note in refused:
        print(f"warning: {note}", file=sys.stderr)
    fitted = fit_table(rows, architectures)
    errors, predictions = validation.validate(rows, architectures)
    try:
        predictor.write(fitted, options.out / "predictor.json")
        validation.write(errors, predictions, options.out / "validation.csv", options.out / "predictions.parquet")
    except OSError as error:
        raise SweetspotError(f"cannot write to {options.out}: {error.strerror}; choose another --out") from None
    print(validation.summary(fitted, errors))
    if architectures:
        print(across_models.summary(fitted["across_models"]))
    print(f"wrote predictor.json, validation.csv and predictions.parquet to {options.out}")
