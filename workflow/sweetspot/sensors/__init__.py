"""Reading GPU boards: clocks, the energy and power sensors, and whether a reading can be trusted.

`open_sensors` and `visible_boards` are the only places that choose the vendor; everything else uses the interface
`meter.Sensor`.
"""

from collections.abc import Collection, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweetspot.sensors.meter import Sensor


def open_sensors(
    expected_gpu: str | None = None, boards: int | None = None, uuid: str | None = None, servers: Collection[int] = ()
) -> "Sequence[Sensor]":
    """The sensors of the boards that this process may use, which are the only ones that CUDA shows it from now on.

    A job that needs `boards` takes as many that nobody uses; no other job gets them before this process ends. Without
    `boards`, there must be one board, or `uuid` (a prefix is enough) selects it. `expected_gpu` is the name that boards
    must have. `servers` are the ids of processes that, with their descendants, may use them beside this one. Raises
    SweetspotError, with the remedy, if driver or permission is missing, if there are too few boards or, without
    `boards`, several, or if one has another name, is divided by MIG or is in use by others.
    """
    sensors: Sequence[Sensor] = _vendor().open_sensors(expected_gpu, boards, uuid, servers)
    return sensors


def visible_boards() -> list[str]:
    """The UUIDs of the boards that this process may use. Raises SweetspotError as `open_sensors` does."""
    return list(_vendor().visible_boards())


def _vendor() -> Any:
    return import_module("sweetspot.sensors.nvml")
