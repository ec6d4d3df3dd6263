"""The `sweetspot` command: its subcommands, one module each, and their common handling of errors.

A subcommand is named after its module, whose docstring is its description in --help.
"""

import argparse
import sys
from importlib import import_module

from sweetspot import __version__
from sweetspot.errors import reported

# In the order of --help. Each module imports what its command needs only when the command runs, so that `predict`
# answers at once, and `unattended` runs without the packages that fitting needs.
COMMANDS = (
    *("init", "doctor", "plan", "model", "import", "fit", "predict", "compare", "design", "advise"),
    *("meter", "probe", "unattended", "raw", "dataset"),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for an error the user can fix, 2 for wrong usage, 70 for a defect."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("sweetspot: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, for example `head`, has exited
        sys.stderr.close()
        return 141
    except Exception as error:
        message, status = reported(error)
        print(f"sweetspot: {message}", file=sys.stderr)
        return status


def parser() -> argparse.ArgumentParser:
    """The whole command line, from which docs/command-line.md is generated."""
    top = argparse.ArgumentParser(
        prog="sweetspot",
        description="Measure, model and predict the energy of LLM inference. Snakemake runs a campaign (measure, fit, "
        "report): `snakemake --profile local`; `sweetspot plan` estimates its cost. `fit` and `predict` work with any "
        "table of measurements.",
    )
    top.add_argument("--version", action="version", version=f"sweetspot {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"sweetspot.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__, epilog=module.EPILOG)
        module.add(command)
        command.set_defaults(run=module.run)
    return top
