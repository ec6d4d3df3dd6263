"""Reading a GPU board: clocks, the energy and power sensors, and whether a reading can be trusted.

`open_sensor` is the only place that chooses the vendor; everything else uses the interface `meter.Sensor`.
"""

from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweetspot.sensors.meter import Sensor


def open_sensor(expected_gpu: str | None = None, uuid: str | None = None, servers: Collection[int] = ()) -> "Sensor":
    """The sensor of the board that this process may use; `uuid` (or a prefix of it) selects one of several.

    `expected_gpu` is the name that the board must have. `servers` are the ids of processes that, with their
    descendants, may use it beside this one. Raises SweetspotError, with the remedy, if driver or permission
    is missing, if there is not exactly one board, or if it has another name, is a MIG slice or is in use by others.
    """
    sensor: Sensor = import_module("sweetspot.sensors.nvml").open_sensor(expected_gpu, uuid, servers)
    return sensor
