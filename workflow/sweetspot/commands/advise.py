"""Show what a workload costs in joules, and what shorter prompts, summaries, shorter or split replies or another batch
would save, with intervals and break-even points. By default it tries half and a quarter of the prompt, replies at the
sweet spot, and every measured batch.
"""

import argparse
import json
import sys
from pathlib import Path

from sweetspot.commands.arguments import add_answer, add_map, in_flight, renames
from sweetspot.errors import SweetspotError
from sweetspot.vocabulary import SELECTORS

HELP = "show what a workload costs and what would save energy"
EPILOG = (
    "Example: sweetspot advise --predictor results/demo/predictor.json --model llama-3.1-8b --input-tokens 2048 "
    "--output-tokens 64 --batch 16 --max-latency 5"
)
_WHAT_IFS = {
    "truncate": "prompts were cut to K tokens",
    "summarise": "prompts were summarised to K tokens first, including the cost of the summary",
    "cap": "replies were at most K tokens long",
    "split": "replies were split into requests of at most K tokens, each with the whole prompt",
    "batches": "B requests ran together",
}


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("--predictor", type=Path, required=True, metavar="FILE", help="predictor.json of a fit")
    command.add_argument("--model", required=True, help="name of a model in the predictor")
    load = command.add_argument_group("workload")
    load.add_argument("--input-tokens", type=int, metavar="N", help="prompt length")
    load.add_argument("--output-tokens", type=int, metavar="M", help="reply length")
    load.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help="instead of lengths: a log of requests (CSV, JSON, Parquet, Excel) with input_tokens, output_tokens, "
        "optionally count; names of common logs are known",
    )
    add_map(load, "requests")
    running = load.add_mutually_exclusive_group(required=True)
    running.add_argument("--batch", type=in_flight, metavar="B", help="requests in flight on one GPU")
    running.add_argument(
        "--request-rate",
        type=float,
        metavar="R",
        dest="rate_per_s",
        help="requests per second to one GPU; the batch follows from it and the predicted durations",
    )
    what = command.add_argument_group("what if")
    for name, text in _WHAT_IFS.items():
        what.add_argument(f"--{name}", type=int, nargs="+", metavar="B" if name == "batches" else "K", help=text)
    what.add_argument(
        "--summariser", metavar="MODEL", help="another model of the predictor wrote the summaries, on a separate GPU"
    )
    often = "more than S seconds for more than 1 in 20 requests"
    for name, text in (
        ("latency", "slower than S seconds"),
        ("ttft", f"whose first token takes {often}"),
        ("tpot", f"whose further tokens each take {often}"),
    ):
        what.add_argument(
            f"--max-{name}", type=float, metavar="S", dest=f"max_{name}_s", help=f"exclude options {text}"
        )
    command.add_argument(
        "--grid-g-per-kwh", type=float, metavar="G", help="also show emissions, at G grams of CO2e per kWh"
    )
    add_answer(command, "workload")


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.predict import advise, advise_text, predictor, workload

    lengths = (options.input_tokens, options.output_tokens)
    if (options.requests is None) == (lengths == (None, None)) or (options.requests is None and None in lengths):
        raise SweetspotError("give --input-tokens and --output-tokens, or a file of --requests")
    if options.map and options.requests is None:
        raise SweetspotError("--map renames columns of a file; give --requests")
    if options.requests is None:
        load = workload.of_pair(*lengths)
    else:
        from sweetspot.table import requests  # needs polars, which takes long to import

        log = requests.read(options.requests, renames(options.map))
        for note in log.notes:
            print(f"note: {note}", file=sys.stderr)
        load = workload.of_counts(log.counts)
    asked = {name: value for name, value in vars(options).items() if name in vars(advise.Wishes())}
    wishes = advise.Wishes(**asked, what_ifs={kind: getattr(options, kind) or [] for kind in advise.CHANGES})
    choice = {name: getattr(options, name) for name in SELECTORS}
    answer = advise.advise(predictor.load(options.predictor), options.model, load, wishes, **choice)
    if options.strict and (reasons := advise_text.extrapolations(answer.now, load.is_mix)):
        raise SweetspotError(f"{options.model}: {'; '.join(reasons)} (--strict)")
    print(json.dumps(advise_text.as_dict(answer), indent=2) if options.json else advise_text.as_text(answer))
