"""The command line of `sweetspot predict`."""

import argparse
import json
import sys
from pathlib import Path

from sweetspot.commands.arguments import add_group
from sweetspot.errors import SweetspotError

_WIDE = 0.25  # half an interval as a share of the prediction: beyond it another law is worth asking


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser(
        "predict",
        help="predict the energy of a request",
        description="Predict joules per request and per output token from a fitted predictor, with an interval. "
        "Warns if the query lies outside the measured range.",
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
        help="config.json of an unmeasured model, to predict it by the law across models",
    )
    command.add_argument("--input-tokens", type=int, required=True, metavar="N", help="prompt length")
    command.add_argument("--output-tokens", type=int, required=True, metavar="M", help="reply length")
    command.add_argument(
        "--batch", type=int, metavar="B", help="equal requests in flight (default: the smallest measured)"
    )
    add_group(command)
    command.add_argument(
        "--strict", action="store_true", help="refuse a request outside the measured range, with exit status 1"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from sweetspot.predict import across_models, predictor

    fitted = predictor.load(options.predictor)
    request = {"input_tokens": options.input_tokens, "output_tokens": options.output_tokens, "batch": options.batch}
    choice = {name: getattr(options, name) for name in ("gpu", "engine", "precision")}
    if options.architecture:
        architecture = across_models.read_architecture(options.architecture)
        answer = across_models.predict(fitted, architecture, **request, **choice)
    else:
        answer = predictor.predict(fitted, options.model, **request, **choice)
        wide = answer.energy_per_request_high_j / answer.energy_per_request_j - 1
        if wide > _WIDE and predictor.is_pooled(fitted, answer.model):
            print(
                f"note: the interval of {answer.model} from its own cells is ±{wide:.0%}; the law across models also "
                "uses the cells of other models: ask it with --architecture and the config.json of this model",
                file=sys.stderr,
            )
    if options.strict and answer.extrapolates:
        raise SweetspotError(f"{answer.model}: {'; '.join(answer.extrapolates)} (--strict)")
    print(json.dumps(answer.as_dict(), indent=2) if options.json else answer.as_text())
