"""The `sweetspot` command: its subcommands, one module each, and what every one of them does with an error."""

import argparse
import sys

from sweetspot import __version__
from sweetspot.commands import (
    advise,
    compare,
    dataset,
    design,
    fit,
    meter,
    plan,
    predict,
    probe,
    raw,
    unattended,
)
from sweetspot.errors import SweetspotError

# In the order of --help. A module imports what its command needs when the command runs: `predict` must answer at once,
# without the libraries that fitting needs, and `unattended` must run where they are not installed.
COMMANDS = (plan, fit, predict, compare, design, advise, meter, probe, unattended, raw, dataset)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a problem the user can solve, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except SweetspotError as error:
        print(f"sweetspot: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sweetspot: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for example, has gone
        sys.stderr.close()
        return 141


def parser() -> argparse.ArgumentParser:
    """The whole command line; docs/command-line.md is generated from it."""
    top = argparse.ArgumentParser(
        prog="sweetspot",
        description="Measure, model and predict the energy of LLM inference. To run a campaign (measure, fit, report), "
        "use snakemake: `snakemake --profile local`; `sweetspot plan` estimates its cost. `fit` and `predict` take "
        "any table of measurements.",
    )
    top.add_argument("--version", action="version", version=f"sweetspot {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return top
