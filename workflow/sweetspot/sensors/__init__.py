"""Reading a GPU board: clocks, the energy and power sensors, and whether a reading can be believed.

`open_sensor` is the one place that chooses the vendor; everything else speaks to a `meter.Sensor`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweetspot.sensors.meter import Sensor


def open_sensor(expected_gpu: str | None = None, uuid: str | None = None) -> "Sensor":
    """The sensor of the board that this process may use; `uuid` (or its beginning) chooses among several.

    `expected_gpu` is the name that the board must have. Raises SweetspotError, with the remedy, if there is no driver,
    permission or single board, or if the board is another, a slice, or in use.
    """
    sensor: Sensor = import_module("sweetspot.sensors.nvml").open_sensor(expected_gpu, uuid)
    return sensor
