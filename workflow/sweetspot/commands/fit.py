"""Fit every energy law to a table of measurements, separately for each (model, gpu, engine, precision), and validate
the laws on held-out cells. Writes predictor.json, validation.csv and predictions.parquet.
"""

import argparse
import sys
from pathlib import Path

from sweetspot.commands.arguments import add_reading, read_tables
from sweetspot.errors import SweetspotError

HELP = "fit energy laws to a table of measurements and validate them"
EPILOG = (
    "Required columns: model, batch, input_tokens, output_tokens, energy_j (joules of one run of the whole batch, "
    "whole board, idle included). Optional: gpu, engine, precision, duration_s, repetition, source (simulated, "
    "measured or published), valid. Common alternative columns, units and the result formats of common benchmarks are "
    "recognised and reported (`sweetspot import` shows how). Other columns pass through. Example: sweetspot fit "
    "rows.csv --map prompt=input_tokens --set batch=1 --out fitted"
)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_reading(command)
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the results; created if missing"
    )
    command.add_argument(
        "--trust",
        action="store_true",
        help="fit a table although its energies look impossible for its boards and models",
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

    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweetspotError(f"cannot make {options.out}: {error.strerror}; choose another --out") from None
    rows = read_tables(options)
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)
    if rows.impossible and not options.trust:
        raise SweetspotError(
            f"{', '.join(map(str, options.tables))}: most rows cannot be true (see the notes); nothing is fitted. Give "
            "the columns their right meaning and unit with --map, as in --map energy=energy_kWh, or insist with --trust"
        )
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
