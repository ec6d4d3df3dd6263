"""Run a command and print the joules the GPU used while it ran (whole board, idle included), whether the result is
valid, and its uncertainty, on standard error. The exit status is the command's.
"""

import argparse
import json
import sys
from pathlib import Path

from sweetspot.commands.arguments import add_board

HELP = "measure the energy of any command on a GPU"
EPILOG = "Example: sweetspot meter -- python generate.py --model llama"


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_board(command)
    command.add_argument(
        "--machine",
        type=Path,
        metavar="FILE",
        help="record of `sweetspot probe` with the properties of this board's sensors",
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object to standard output; the command's own output goes to standard error",
    )
    command.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")


def run(options: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    from sweetspot.measure import command, probe
    from sweetspot.measure.protocol import Protocol
    from sweetspot.sensors import open_sensors
    from sweetspot.sensors.clock import Clock

    [sensor] = open_sensors(uuid=options.gpu)
    numbers = probe.numbers(options.machine, str(sensor.identity()["gpu"])) if options.machine else {}
    result, status = command.measure(options.command, sensor, Clock(), Protocol(**numbers), aside=options.json)
    if options.json:
        print(json.dumps(result))
    else:
        print(command.as_text(result), file=sys.stderr)
    return status
