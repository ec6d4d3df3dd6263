"""Show what was read from a model's config.json: parameters, work per token, bytes of weights and KV cache, the
boards that hold it, and what is not modelled. CONFIG is the file, its directory, or the model's name on the hub, whose
config.json then comes from the local cache or the network.
"""

import argparse
import json
import textwrap
from typing import Any

HELP = "show what a model's config.json says: parameters, FLOPs, bytes, memory"
EPILOG = "Example: sweetspot model Qwen/Qwen3-30B-A3B --precision fp8"

_BATCHES = (1, 16, 64)
_CONTEXT = 4096
_MOST_BOARDS = 16


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("config", metavar="CONFIG", help="a config.json, its directory, or a name on the hub")
    command.add_argument(
        "--precision",
        help="formats of weights, activations and cache, as in the table of models: bf16, fp8, fp8+kv_fp8",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot import models
    from sweetspot.precision import Precision

    architecture = models.load(models.find(options.config))
    precision = models.precision(architecture, options.precision and Precision.of(options.precision))
    found = describe(architecture, precision)
    print(json.dumps(found, indent=2) if options.json else _text(found))


def describe(architecture: Any, precision: Any) -> dict[str, Any]:
    """What is known of a model in a precision, in bytes, FLOPs and elements."""
    from sweetspot import gpus
    from sweetspot.architecture import NO_LIMIT
    from sweetspot.parallelism import Parallelism

    sizes = precision.sizes
    boards = {}
    for name in gpus.names():
        gpu = gpus.find(name)
        for count in (1 << n for n in range(_MOST_BOARDS.bit_length())):
            memory = Parallelism(count).memory(architecture, gpu, precision.name) if gpu else None
            if memory and (requests := memory.requests(_CONTEXT, 0)):
                boards[name] = {"boards": count, f"requests_of_{_CONTEXT}_tokens": requests}
                break
    attention = architecture.decode_flops(_CONTEXT + 1) - architecture.decode_flops(_CONTEXT)
    reply = architecture.decode_flops(1)
    return {
        "model": architecture.name,
        "model_type": architecture.model_type,
        "precision": precision.name,
        "parameters": architecture.parameters,
        "active_parameters": architecture.active_parameters,
        "layers": architecture.layers,
        "kinds_of_layers": [_kind(block) for block in architecture.blocks],
        "max_positions": architecture.max_positions if architecture.max_positions < NO_LIMIT else None,
        "weight_bytes": round(architecture.weight_bytes(sizes)),
        "weight_bytes_read_per_pass": {str(batch): round(architecture.pass_bytes(batch, sizes)) for batch in _BATCHES},
        "kv_bytes_per_token": round(architecture.kv_bytes_per_token(sizes.cached)),
        "state_bytes_per_request": sum(block.count * block.state_bytes for block in architecture.blocks),
        "flops_per_prompt_token": architecture.prefill_flops(2) - architecture.prefill_flops(1) - attention * 2,
        "flops_per_reply_token": reply - attention,
        "attention_flops_per_position": attention,
        "fits": boards,
        "not_modelled": [
            {"what": what, "parameters": count, "share": count / architecture.parameters}
            for what, count in architecture.not_modelled
        ],
    }


def _kind(block: Any) -> str:
    """A kind of layers in words."""
    parts = []
    if block.heads:
        shared = "a latent cache" if block.latent else f"{block.kv_heads} key/value"
        parts.append(f"attention, {block.heads} heads, {shared} x {block.latent or block.head_size}")
    if block.window:
        parts.append(f"{'chunks' if block.chunked else 'window'} of {block.window}")
    if block.state_bytes:
        parts.append(f"recurrent state of {block.state_bytes / 1e6:.3g} MB")
    if block.ffn:
        parts.append(f"feed-forward {block.ffn}")
    if block.experts:
        parts.append(f"{block.experts_per_token} of {block.experts} experts")
    return f"{block.count} x {', '.join(parts)}"


def _text(found: dict[str, Any]) -> str:
    reads = ", ".join(
        f"{size / 1e9:.3g} at batch {batch}" for batch, size in found["weight_bytes_read_per_pass"].items()
    )
    state = f", and {found['state_bytes_per_request'] / 1e6:.4g} MB of state per request"
    lines = [
        f"{found['model']} ({found['model_type']}, {found['precision']})",
        f"  parameters  {found['parameters'] / 1e9:.4g} billion, {found['active_parameters'] / 1e9:.4g} active",
        f"  layers      {found['layers']}",
        *(f"              {kind}" for kind in found["kinds_of_layers"]),
        f"  weights     {found['weight_bytes'] / 1e9:.4g} GB; a decode pass reads, in GB: {reads}",
        f"  KV cache    {found['kv_bytes_per_token'] / 1e3:.4g} kB per token"
        + state * bool(found["state_bytes_per_request"]),
        f"  work        {found['flops_per_prompt_token'] / 1e9:.4g} GFLOP per prompt token, "
        f"{found['flops_per_reply_token'] / 1e9:.4g} per reply token; attention: "
        f"{found['attention_flops_per_position'] / 1e6:.3g} MFLOP per position",
        f"  boards that hold it, with at least one request of {_CONTEXT} tokens",
    ]
    for count in sorted({fit["boards"] for fit in found["fits"].values()}):
        names = ", ".join(name for name, fit in found["fits"].items() if fit["boards"] == count)
        lines += textwrap.wrap(names, 100, initial_indent=f"    {count:2} x ", subsequent_indent=" " * 9)
    if not found["fits"]:
        lines.append(f"    none, with up to {_MOST_BOARDS}")
    for part in found["not_modelled"]:
        share = f": {part['share']:.2%} of the parameters" if part["parameters"] else ""
        lines += textwrap.wrap(
            f"not modelled: {part['what']}{share}", 100, initial_indent="  ", subsequent_indent="    "
        )
    return "\n".join(lines)
