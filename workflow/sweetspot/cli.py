"""The `sweetspot` command."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweetspot import __version__, advise_command, compare_command, design_command
from sweetspot.arguments import add_group, add_map, add_set, constants, renames
from sweetspot.errors import SweetspotError

if TYPE_CHECKING:
    from sweetspot.predictor import Prediction
    from sweetspot.prices import SharedPrediction

_WIDE = 0.25  # half an interval as a share of the prediction: then another law is worth asking

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
        "use snakemake: `snakemake --profile local`; `sweetspot plan` tells what that costs. `fit` and `predict` take "
        "any table of measurements.",
    )
    top.add_argument("--version", action="version", version=f"sweetspot {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_plan(commands)
    _add_fit(commands)
    _add_predict(commands)
    compare_command.add(commands)
    design_command.add(commands)
    advise_command.add(commands)
    _add_meter(commands)
    _add_probe(commands)
    return top


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "plan",
        help="what a campaign costs, and how far it is",
        description="Print cells, jobs, GPU hours and joules of a campaign: what is done, what is left, what will be "
        "measured again because settings changed, what is skipped or failed and why. Reads only: ask it before a run "
        "and while one goes on. What is left is estimated by the simulator, scaled by what the measured cells took.",
        epilog="Example: sweetspot plan --configfile config/study.yaml",
    )
    command.add_argument(
        "--configfile",
        type=Path,
        default=Path("config/config.yaml"),
        metavar="FILE",
        help="the campaign (default: config/config.yaml)",
    )
    command.set_defaults(run=_plan)


def _add_fit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "fit",
        help="fit energy laws to a table of measurements and validate them",
        description="Fit every energy law to a table of measurements, one for each (model, gpu, engine, precision), "
        "and validate them on held-out cells. Writes predictor.json, validation.csv and predictions.parquet.",
        epilog="Required columns: model, batch, input_tokens, output_tokens, energy_j (joules of one run of the whole "
        "batch, board, gross). Optional: gpu, engine, precision, duration_s, repetition, source (simulated, measured "
        "or published), valid. Usual other names are understood, and said. Other columns pass through. Example: "
        "sweetspot fit rows.csv --map prompt=input_tokens --set batch=1 --out fitted",
    )
    command.add_argument(
        "tables",
        nargs="+",
        type=Path,
        metavar="TABLE",
        help="CSV (also with tabs, semicolons or bars), JSON, JSON lines or Parquet, also .gz; several are joined",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for the results; made if missing"
    )
    add_map(command, "table")
    add_set(command)
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
    add_group(command)
    command.add_argument(
        "--strict", action="store_true", help="refuse a request outside of what was measured, with exit status 1"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_predict)


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
        "--machine", type=Path, metavar="FILE", help="record of `sweetspot probe`, to judge by this board's own sensors"
    )
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
        "sees all of the time (needs PyTorch for a load). Writes a machine record, whose numbers a campaign uses "
        "that names it as `machine`, and `sweetspot meter --machine`.",
    )
    _add_gpu(command)
    command.add_argument("--seconds", type=float, default=120.0, metavar="S", help="how long to probe (default: 120)")
    command.add_argument(
        "--out", type=Path, default=Path("machine.json"), metavar="FILE", help="record (default: machine.json)"
    )
    command.set_defaults(run=_probe)


def _add_gpu(command: argparse.ArgumentParser) -> None:
    command.add_argument("--gpu", metavar="UUID", help="the GPU (or how its UUID begins), where several are visible")


def _plan(options: argparse.Namespace) -> None:
    import yaml

    from sweetspot import plan
    from sweetspot.campaign import Campaign

    try:
        raw = yaml.safe_load(options.configfile.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SweetspotError(f"{options.configfile}: cannot be read ({error}); name one with --configfile") from None
    if not isinstance(raw, dict):
        raise SweetspotError(f"{options.configfile}: holds no configuration; see docs/configuration.md")
    print(plan.as_text(plan.survey(Campaign(raw, str(options.configfile)))))


def _fit(options: argparse.Namespace) -> None:
    from sweetspot import predictor, shared, table, validation
    from sweetspot.fit import fit_table

    rename, values = renames(options.map), constants(options.set)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweetspotError(f"cannot make {options.out}: {error.strerror}; choose another --out") from None
    rows = table.read(options.tables, rename, values)
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)
    models = rows.frame["model"].drop_nulls().unique(maintain_order=True)
    architectures, refused = (
        shared.read_architectures(options.architectures, models) if options.architectures else ({}, [])
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
        print(shared.summary(fitted["shared"]))
    print(f"wrote predictor.json, validation.csv and predictions.parquet to {options.out}")


def _predict(options: argparse.Namespace) -> None:
    from sweetspot import predictor

    if options.architecture:
        print(_shown(_predict_unmeasured(options), options))
        return
    fitted = predictor.load(options.predictor)
    answer = predictor.predict(
        fitted,
        options.model,
        options.input_tokens,
        options.output_tokens,
        batch=options.batch,
        gpu=options.gpu,
        engine=options.engine,
        precision=options.precision,
    )
    wide = answer.energy_per_request_high_j / answer.energy_per_request_j - 1
    if wide > _WIDE and predictor.is_pooled(fitted, answer.model):
        print(
            f"note: its own cells leave {answer.model} an interval of ±{wide:.0%}; the law across models counts those "
            "of other models too: ask it with --architecture and the config.json of this one",
            file=sys.stderr,
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


def _meter(options: argparse.Namespace) -> int:
    from sweetspot import metered, nvml, probe
    from sweetspot.clock import WallClock
    from sweetspot.measurement import Protocol

    sensor = nvml.open_sensor(uuid=options.gpu)
    numbers = probe.numbers(options.machine, str(sensor.identity()["gpu"])) if options.machine else {}
    result, status = metered.measure(options.command, sensor, WallClock(), Protocol(**numbers), aside=options.json)
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
