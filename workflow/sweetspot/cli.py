"""The `sweetspot` command."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweetspot import __version__
from sweetspot.errors import SweetspotError

if TYPE_CHECKING:
    from sweetspot.predictor import Prediction
    from sweetspot.prices import SharedPrediction

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
    _add_compare(commands)
    _add_design(commands)
    _add_meter(commands)
    _add_probe(commands)
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
    command.add_argument(
        "--architectures",
        type=Path,
        metavar="DIR",
        help="directory with MODEL.json or MODEL/config.json of the table's models: fits the law across models too",
    )
    command.set_defaults(run=_fit)


def _add_predict(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "predict",
        help="predict the energy of a request",
        description="Predict joules per request and per output token from a fitted predictor, with a 95 % interval. "
        "Says when the query lies outside of what was measured.",
        epilog="Example: sweetspot predict --predictor results/demo/predictor.json --model llama-3.1-8b "
        "--input-tokens 1500 --output-tokens 200 --batch 64",
    )
    command.add_argument("--predictor", type=Path, required=True, metavar="FILE", help="predictor.json of a fit")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="name of a model in the predictor")
    which.add_argument(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="config.json of a model that was not measured: predicted by the law across models",
    )
    command.add_argument("--input-tokens", type=int, required=True, metavar="N", help="prompt length")
    command.add_argument("--output-tokens", type=int, required=True, metavar="M", help="reply length")
    command.add_argument(
        "--batch", type=int, metavar="B", help="equal requests in flight; by default the smallest measured"
    )
    for name in ("gpu", "engine", "precision"):
        command.add_argument(f"--{name}", help="where the predictor holds several for this model")
    command.add_argument(
        "--strict", action="store_true", help="refuse a request outside of what was measured, with exit status 1"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_predict)


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    command.set_defaults(run=_compare)


def _add_design(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "design",
        help="choose the cells to measure next",
        description="Write the cells that tell most about the energy law for the GPU time they take to the list that "
        "the configuration names in `cells`: those measured already and, for each model, more of the grid. The exit "
        "status is 0 when every model has the wanted accuracy, else 3: measure and call it again.",
        epilog="Example: until sweetspot design --configfile config/few.yaml --accuracy 3; do "
        "snakemake --profile local --configfile config/few.yaml; done",
    )
    command.add_argument("--configfile", type=Path, required=True, metavar="FILE", help="configuration with `cells`")
    command.add_argument(
        "--accuracy",
        type=float,
        default=3.0,
        metavar="PERCENT",
        help="wanted mean half width of the 95 %% intervals over the grid (default: 3)",
    )
    command.add_argument("--add", type=int, default=12, metavar="N", help="cells a model gets at once (default: 12)")
    command.set_defaults(run=_design)


def _add_meter(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "meter",
        help="measure the energy of any command on a GPU",
        description="Run a command and print the joules that the GPU drew meanwhile (whole board, gross), whether they "
        "can be believed, and how far. The result goes to standard error and the exit status is the command's.",
        epilog="Example: sweetspot meter -- python generate.py --model llama",
    )
    _add_gpu(command)
    command.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object to standard output; what the command prints goes to standard error",
    )
    command.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    command.set_defaults(run=_meter)


def _add_probe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "probe",
        help="find out how the sensors of this GPU behave",
        description="Find the periods and lags of this GPU's sensors, its idle power, and whether its energy counter "
        "sees all of the time (needs PyTorch for a load). Writes a machine record and suggests protocol numbers.",
    )
    _add_gpu(command)
    command.add_argument("--seconds", type=float, default=120.0, metavar="S", help="how long to probe (default: 120)")
    command.add_argument(
        "--out", type=Path, default=Path("machine.json"), metavar="FILE", help="record (default: machine.json)"
    )
    command.set_defaults(run=_probe)


def _add_gpu(command: argparse.ArgumentParser) -> None:
    command.add_argument("--gpu", metavar="UUID", help="the GPU (or how its UUID begins), where several are visible")


def _fit(options: argparse.Namespace) -> None:
    from sweetspot import predictor, shared, table, validation
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
    models = rows.frame["model"].unique(maintain_order=True)
    architectures = shared.read_architectures(options.architectures, models) if options.architectures else {}
    fitted = fit_table(rows, architectures)
    errors, predictions = validation.validate(rows, architectures)
    try:
        predictor.write(fitted, options.out / "predictor.json")
        validation.write(errors, predictions, options.out / "validation.csv", options.out / "predictions.parquet")
    except OSError as error:
        raise SweetspotError(f"cannot write to {options.out}: {error.strerror}; choose another --out") from None
    print(validation.summary(fitted, errors))
    if architectures:
        print(shared.summary(fitted["shared"]))
    print(f"wrote predictor.json, validation.csv and predictions.parquet to {options.out}")


def _predict(options: argparse.Namespace) -> None:
    from sweetspot import predictor

    if options.architecture:
        print(_shown(_predict_unmeasured(options), options))
        return
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
    print(_shown(answer, options))


def _predict_unmeasured(options: argparse.Namespace) -> "SharedPrediction":
    from sweetspot import predictor, prices

    return prices.predict(
        predictor.load(options.predictor),
        prices.read_architecture(options.architecture),
        options.input_tokens,
        options.output_tokens,
        batch=options.batch,
        gpu=options.gpu,
        engine=options.engine,
        precision=options.precision,
    )


def _shown(answer: "Prediction | SharedPrediction", options: argparse.Namespace) -> str:
    if options.strict and answer.extrapolates:
        raise SweetspotError(f"{answer.model}: {'; '.join(answer.extrapolates)} (--strict)")
    return json.dumps(answer.as_dict(), indent=2) if options.json else answer.as_text()


def _design(options: argparse.Namespace) -> int:
    import polars as pl
    import yaml

    from sweetspot import design, table
    from sweetspot.campaign import Campaign
    from sweetspot.journal import write_atomically

    try:
        raw = yaml.safe_load(options.configfile.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SweetspotError(f"{options.configfile}: cannot be read ({str(error).splitlines()[0]})") from None
    if not (isinstance(raw, dict) and raw.get("cells")):
        raise SweetspotError(f"{options.configfile}: name the list of cells to write, for example cells: few-cells.csv")
    path = Path(raw.pop("cells"))
    if not (options.add > 0 and options.accuracy > 0):
        raise SweetspotError("--add and --accuracy must be above 0")
    campaign = Campaign(raw, str(options.configfile))
    measured = campaign.directory / "measurements.parquet"
    rows = table.read([measured]) if measured.is_file() else None
    designs = design.next_cells(campaign, rows, options.add, options.accuracy / 100)
    for found in designs:
        width = "not known yet" if found.half_width is None else f"±{100 * found.half_width:.2g} %"
        more = found.cells["proposed"].sum()
        print(
            f"{found.model}: intervals {width} in the mean; "
            + ("accuracy reached" if found.reached else f"{more} more cells, {found.seconds / 60:.0f} min of GPU time")
            + f" and {found.joules / 1e3:.0f} kJ, of {found.grid_seconds / 60:.0f} min for the whole grid" * (more > 0)
        )
    cells = pl.concat(found.cells for found in designs).drop("proposed")
    write_atomically(path, cells.write_csv())
    print(f"wrote {cells.height} cells to {path}")
    done = all(found.reached or not found.cells["proposed"].any() for found in designs)
    return 0 if done else 3


def _compare(options: argparse.Namespace) -> None:
    from sweetspot import compare

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


def _meter(options: argparse.Namespace) -> int:
    from sweetspot import metered, nvml
    from sweetspot.clock import WallClock
    from sweetspot.measurement import Protocol

    sensor = nvml.open_sensor(uuid=options.gpu)
    result, status = metered.measure(options.command, sensor, WallClock(), Protocol(), aside=options.json)
    if options.json:
        print(json.dumps(result))
    else:
        print(metered.as_text(result), file=sys.stderr)
    return status


def _probe(options: argparse.Namespace) -> None:
    from sweetspot import nvml, probe
    from sweetspot.clock import WallClock
    from sweetspot.journal import write_atomically

    if not options.seconds > 0:
        raise SweetspotError(f"--seconds {options.seconds:g}: give a time above 0; 120 is usual")
    sensor = nvml.open_sensor(uuid=options.gpu)
    os.environ["CUDA_VISIBLE_DEVICES"] = sensor.uuid  # the load must run on the board that is probed
    record = probe.probe(sensor, sensor.machine(), WallClock(), options.seconds, probe.torch_load())
    try:
        write_atomically(options.out, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise SweetspotError(f"cannot write {options.out}: {error.strerror}; choose another --out") from None
    print(probe.as_text(record))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
