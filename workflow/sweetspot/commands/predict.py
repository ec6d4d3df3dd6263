"""Predict joules per request and per output token from a fitted predictor, with an interval.

Warns if the query lies outside the measured range. Without a predictor, simulate a model from its config.json on a
board whose kernels were measured; such an answer has no interval.
"""

import argparse
import json
import sys
from pathlib import Path

from sweetspot import models
from sweetspot.commands.arguments import add_answer, in_flight
from sweetspot.errors import SweetspotError
from sweetspot.memory import KV_CACHE_FRACTION
from sweetspot.precision import Precision
from sweetspot.vocabulary import ON_MEASURED_KERNELS, SELECTORS, SIMULATED

_WIDE = 0.25  # half an interval as a share of the prediction: beyond it another law is worth asking

HELP = "predict the energy of a request"
EPILOG = (
    "Example: sweetspot predict --predictor results/demo/predictor.json --model llama-3.1-8b --input-tokens 1500 "
    "--output-tokens 200 --batch 64"
)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--predictor",
        type=Path,
        metavar="FILE",
        help="predictor.json of a fit; without it, give --architecture, --gpu and --precision",
    )
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="name of a model in the predictor")
    which.add_argument(
        "--architecture",
        metavar="CONFIG",
        help="config.json of an unmeasured model, or its name on the hub, to predict it by the law across models, or "
        "without a predictor",
    )
    command.add_argument("--input-tokens", type=int, required=True, metavar="N", help="prompt length")
    command.add_argument("--output-tokens", type=int, required=True, metavar="M", help="reply length")
    command.add_argument(
        "--batch",
        type=in_flight,
        metavar="B",
        help="equal requests in flight, or their mean number (default: the smallest measured; without a predictor 1)",
    )
    add_answer(command, "request")


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.predict import across_models, predictor

    if options.predictor is None:
        _simulate(options)
        return
    fitted = predictor.load(options.predictor)
    request = {"input_tokens": options.input_tokens, "output_tokens": options.output_tokens, "batch": options.batch}
    choice = {name: getattr(options, name) for name in SELECTORS}
    if options.architecture:
        architecture = models.load(models.find(options.architecture))
        if architecture.quantised:
            asked = choice["precision"] and Precision.of(choice["precision"])
            choice["precision"] = models.precision(architecture, asked).name
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


def _simulate(options: argparse.Namespace) -> None:
    """Answer without a predictor, from the simulated device, where the kernels of the board were measured."""
    from sweetspot import engines, gpus
    from sweetspot.engines import kernels, simulated
    from sweetspot.predict.prediction import check_request

    if not (options.architecture and options.gpu and options.precision) or any(
        (options.engine, options.parallelism, options.strict)
    ):
        raise SweetspotError(
            "--model needs --predictor; without a predictor a model is simulated: give --architecture, --gpu and "
            "--precision, and neither --engine, --parallelism nor --strict"
        )
    n, m, batch = options.input_tokens, options.output_tokens, 1 if options.batch is None else options.batch
    architecture, board = models.load(models.find(options.architecture)), gpus.find(options.gpu)
    check_request(n, m, batch, architecture.limit)
    spec = engines.EngineSpec(
        *("simulated", architecture, options.precision, "none", board.name if board else options.gpu, batch, n, m),
        kv_cache_fraction=KV_CACHE_FRACTION,
        seed=1,
    )
    if engines.source(spec) != ON_MEASURED_KERNELS:
        raise SweetspotError(
            f"no kernel times for {architecture.name} in {options.precision} on {options.gpu}: they are known on "
            f"{', '.join(kernels.boards())} in {' and '.join(kernels.PRECISIONS)}, for dense "
            "layers; otherwise give --predictor"
        )
    simulated.build(spec, Path())  # refuses weights that do not fit
    energy_j, duration_s, waves = simulated.expected(spec, n, m)
    mean, worst = (f"{100 * error:.3g} %" for error in (kernels.HELD_OUT_MEAN, kernels.HELD_OUT_WORST))
    notes = [
        f"{SIMULATED[ON_MEASURED_KERNELS]}: nothing of this model was measured",
        f"such energies are off by {mean} on average and {worst} at worst on {kernels.HELD_OUT_ROWS} published rows of "
        "an H100 that did not calibrate them; this is no interval",
    ]
    if waves > 1:
        notes.append(f"the KV cache cannot hold the batch at once: it runs in {waves} waves")
    answer = {
        "model": architecture.name,
        "gpu": spec.gpu,
        "precision": spec.precision,
        "source": ON_MEASURED_KERNELS,
        "input_tokens": n,
        "output_tokens": m,
        "batch": batch,
        "energy_per_request_j": energy_j / batch,
        "energy_per_output_token_j": energy_j / batch / m,
        "energy_batch_j": energy_j,
        "waves": waves,
        "duration_s": duration_s,
        "power_w": energy_j / duration_s,
        "published_mean_error": kernels.HELD_OUT_MEAN,
        "published_worst_error": kernels.HELD_OUT_WORST,
        "warnings": notes,
    }
    text = [
        f"{architecture.name} ({spec.gpu}, {spec.precision})",
        f"{n} input tokens, {m} output tokens, batch {batch}; no law, simulated",
        f"  per request       {answer['energy_per_request_j']:.4g} J",
        f"  per output token  {answer['energy_per_output_token_j']:.4g} J",
        f"  whole batch       {energy_j:.4g} J in {duration_s:.4g} s, {answer['power_w']:.0f} W",
        *(f"note: {note}" for note in notes),
    ]
    print(json.dumps(answer, indent=2) if options.json else "\n".join(text))
