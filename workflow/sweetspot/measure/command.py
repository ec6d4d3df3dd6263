"""`sweetspot meter`: measure any command as a campaign measures its cells."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sweetspot.errors import SweetspotError
from sweetspot.measure.protocol import Protocol, open_meter
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Sensor
from sweetspot.sensors.window import explained, uncertainty

SCHEMA_VERSION = 1


def measure(
    command: Sequence[str], sensor: Sensor, clock: Clock, protocol: Protocol, *, aside: bool = False
) -> tuple[dict[str, Any], int]:
    """Run `command`; returns its energy and duration, and its exit status (128 + signal number if a signal ended it).

    `aside`: the command's standard output goes to standard error. Energies are in J, gross, of the whole board. Raises
    SweetspotError if there is no such command or the sensor fails before it starts.
    """
    if shutil.which(command[0]) is None:
        raise SweetspotError(f"{command[0]}: no such command on the PATH; write: sweetspot meter -- COMMAND ARGUMENTS")
    status = 0

    def work() -> None:
        nonlocal status
        try:
            process = subprocess.Popen(command, stdout=sys.stderr if aside else None)
        except OSError as error:
            raise SweetspotError(f"{command[0]}: cannot be run: {error.strerror}") from None
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue  # the terminal interrupted the command too; let it end by itself
        status = code if code >= 0 else 128 - code

    identity = sensor.identity()
    started = datetime.now(UTC)
    window = open_meter([sensor], clock, protocol).window(work)
    return {
        "schema_version": SCHEMA_VERSION,
        "command": list(command),
        "exit_status": status,
        "started": started.isoformat(timespec="milliseconds"),
        "energy_j": window.energy_j,
        "energy_instant_j": window.energy_instant_j,
        "energy_average_j": window.energy_average_j,
        "duration_s": window.duration_s,
        "power_w": window.power_w,
        "valid": not window.reasons,
        "reasons": list(window.reasons),
        "flags": list(window.flags),
        "temperature_c": window.temperature_c,
        "sm_clock_mhz": window.sm_clock_mhz,
        "uncertainty": uncertainty(window, protocol.sensor_gain),
        **identity,
    }, status


def as_text(result: dict[str, Any]) -> str:
    """The result as a few lines of text."""
    energy_j, duration_s = result["energy_j"], result["duration_s"]
    if energy_j is None:
        lines = [f"energy: none ({duration_s:.2f} s)"]
    else:
        parts = {cause: f"{cause.replace('_', ' ')} {share:.1%}" for cause, share in result["uncertainty"].items()}
        total = parts.pop("total").removeprefix("total ")
        lines = [f"energy: {energy_j:.5g} J within {total} ({', '.join(parts.values())})"]
        lines += [f"time: {duration_s:.2f} s, mean power {result['power_w']:.4g} W"]
    for name in ("instant", "average"):
        other_j = result[f"energy_{name}_j"]
        lines += [f"{name} power, integrated: " + ("none" if other_j is None else f"{other_j:.5g} J")]
    lines += [f"{flag.replace('_', ' ')} during the command" for flag in result["flags"]]
    lines += [f"NOT VALID: {explained(reason)} ({reason})" for reason in result["reasons"]]
    return "\n".join(lines)
