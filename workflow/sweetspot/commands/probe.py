"""Measure the update periods and lags of this GPU's sensors, its idle power, and whether its energy counter covers all
of the time (needs PyTorch for a load). Writes a machine record for `machine` in a campaign's configuration and for
`sweetspot meter --machine`.
"""

import argparse
import json
from pathlib import Path

from sweetspot.commands.arguments import add_board
from sweetspot.errors import SweetspotError

HELP = "characterise the sensors of this GPU"
EPILOG = ""


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_board(command)
    command.add_argument("--seconds", type=float, default=120.0, metavar="S", help="how long to probe (default: 120)")
    command.add_argument(
        "--out", type=Path, default=Path("machine.json"), metavar="FILE", help="record (default: machine.json)"
    )


def run(options: argparse.Namespace) -> None:
    """Run it."""
    from sweetspot.files import write_atomically
    from sweetspot.measure import probe
    from sweetspot.sensors import open_sensors
    from sweetspot.sensors.clock import Clock

    if not options.seconds > 0:
        raise SweetspotError(f"--seconds {options.seconds:g}: must be above 0; the default is 120")
    [sensor] = open_sensors(uuid=options.gpu)
    record = probe.probe(sensor, sensor.machine(), Clock(), options.seconds, probe.torch_load())
    try:
        write_atomically(options.out, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise SweetspotError(f"cannot write {options.out}: {error.strerror}; choose another --out") from None
    print(probe.as_text(record))
    print(f"wrote {options.out}")
