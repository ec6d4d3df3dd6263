"""The command line of `sweetspot plan`."""

import argparse
from pathlib import Path

from sweetspot.commands.arguments import read_configuration


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
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
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from sweetspot.campaign import survey
    from sweetspot.campaign.campaign import Campaign

    raw = read_configuration(options.configfile)
    print(survey.as_text(survey.survey(Campaign(raw, str(options.configfile)))))
