"""The command line of `sweetspot predict`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweetspot.commands.arguments import add_group
from sweetspot.errors import SweetspotError

if TYPE_CHECKING:
    from sweetspot.predict.across_models import SharedPrediction
    from sweetspot.predict.predictor import Prediction

_WIDE = 0.25  # half an interval as a share of the prediction: then another law is worth asking


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
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
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from sweetspot.predict import predictor

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
    from sweetspot.predict import across_models as prices
    from sweetspot.predict import predictor

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
