"""What tells one board, or one state of it, from another. Standard library only."""

from collections.abc import Mapping
from typing import Any

# What changes a measurement without anybody having meant it to
_FIXED = (
    "gpu",
    "gpu_uuid",
    "driver_version",
    "vbios_version",
    "ecc",
    "power_limit_w",
    "sm_clock_default_mhz",
    "sm_clock_max_mhz",
)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two machines, or the same one in two sessions, that may change its joules; for people.

    Takes machine records' `machine`, or rows: what either does not tell is not compared.
    """
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in _FIXED
        if name in before and name in after and before[name] != after[name]
    ]
