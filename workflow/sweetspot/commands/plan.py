"""Print cells, jobs, GPU hours and joules of a campaign: what is done, what is left, what will be measured again
because settings changed, what was skipped or failed and why. It only reads, so it can be run before and during a
campaign. The cost left is estimated by the simulator, scaled by the measured cells.
"""

import argparse
from pathlib import Path

HELP = "show the cost and progress of a campaign"
EPILOG = "Example: sweetspot plan --configfile config/study.yaml"


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--configfile",
        type=Path,
        default=Path("config/config.yaml"),
        metavar="FILE",
        help="the campaign (default: config/config.yaml)",
    )


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.campaign import survey
    from sweetspot.campaign.campaign import Campaign
    from sweetspot.campaign.configfile import read_configuration

    raw = read_configuration(options.configfile)
    print(survey.as_text(survey.survey(Campaign(raw, str(options.configfile)))))
