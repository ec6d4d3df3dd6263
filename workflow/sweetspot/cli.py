"""The `sweetspot` command."""

import argparse
import json
import sys
from pathlib import Path

from sweetspot import __version__
from sweetspot.errors import SweetspotError

# Each command imports what it needs itself: `predict` must answer at once, without the libraries that fitting needs.


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a problem to solve, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except SweetspotError as error:
        print(f"sweetspot: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sweetspot: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        sys.stderr.close()
        return 141


def parser() -> argparse.ArgumentParser:
    """The whole command line; docs/command-line.md is made from it."""
    top = argparse.ArgumentParser(
        prog="sweetspot",
        description="Measure, model and predict the energy of LLM inference. To run a campaign (measure, fit, report), "
        "use snakemake: `snakemake --profile local`. The commands here work on any table of measurements.",
    )
    top.add_argument("--version", action="version", version=f"sweetspot {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_fit(commands)
    _add_predict(commands)
    return top


def _add_fit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "fit",
        help="fit energy laws to a table of measurements and validate them",
        description="Fit every energy law to a table of measurements, one for each (model, gpu, engine, precision), "
        "and validate them on held-out cells. Writes predictor.json, validation.csv and predictions.parquet.",
        epilog="Required columns: model, batch, input_tokens, output_tokens, energy_j (joules of one run of the whole "
        "batch, board, gross). Optional: gpu, engine, precision, duration_s, repetition, source (simulated, measured "
        "or published), valid. Other columns pass through. Example: sweetspot fit rows.csv --map nin=input_tokens "
        "--map nout=output_tokens --out fitted",
    )
    command.add_argument(
        "tables", nargs="+", type=Path, metavar="TABLE", help="CSV, Parquet or JSON lines; several are joined"
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the results; made if missing"
    )
    command.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="rename a column of the table; may be repeated",
    )
    command.set_defaults(run=_fit)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "predict",
        help="predict the energy of a request",
        description="Predict joules per request and per output token from a fitted predictor, with a 95 %% interval. "
        "Says when the query lies outside of what was measured.",
        epilog="Example: sweetspot predict --predictor results/demo/predictor.json --model llama-3.1-8b "
        "--input-tokens 1500 --output-tokens 200 --batch 64",
    )
    command.add_argument("--predictor", type=Path, required=True, metavar="FILE", help="predictor.json of a fit")
    command.add_argument("--model", required=True, help="name of a model in the predictor")
    command.add_argument("--input-tokens", type=int, required=True, metavar="N", help="prompt length")
    command.add_argument("--output-tokens", type=int, required=True, metavar="M", help="reply length")
    command.add_argument(
        "--batch", type=int, metavar="B", help="equal requests in flight; by default the smallest measured"
    )
    for name in ("gpu", "engine", "precision"):
        command.add_argument(f"--{name}", help="where the predictor holds several for this model")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_predict)


def _fit(options: argparse.Namespace) -> None:
    from sweetspot import predictor, table, validation
    from sweetspot.fit import fit_table

    rename = {}
    for item in options.map:
        theirs, separator, ours = item.partition("=")
        if not (theirs and separator and ours):
            raise SweetspotError(f"--map {item}: write THEIRS=OURS, for example --map nin=input_tokens")
        rename[theirs] = ours
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweetspotError(f"cannot make {options.out}: {error.strerror}; choose another --out") from None
    rows = table.read(options.tables, rename)
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)
    fitted = fit_table(rows)
    errors, predictions = validation.validate(rows)
    try:
        predictor.write(fitted, options.out / "predictor.json")
        validation.write(errors, predictions, options.out / "validation.csv", options.out / "predictions.parquet")
    except OSError as error:
        raise SweetspotError(f"cannot write to {options.out}: {error.strerror}; choose another --out") from None
    print(validation.summary(fitted, errors))
    print(f"wrote predictor.json, validation.csv and predictions.parquet to {options.out}")


def _predict(options: argparse.Namespace) -> None:
    from sweetspot import predictor

    answer = predictor.predict(
        predictor.load(options.predictor),
        options.model,
        options.input_tokens,
        options.output_tokens,
        batch=options.batch,
        gpu=options.gpu,
        engine=options.engine,
        precision=options.precision,
    )
    print(json.dumps(answer.as_dict(), indent=2) if options.json else answer.as_text())


if __name__ == "__main__":
    sys.exit(main())
