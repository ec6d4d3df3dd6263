"""Detects a different board, or different settings of the same board. Standard library only."""

from collections.abc import Mapping
from typing import Any

# A change in any of these fields can alter the measured energy.
_FIXED = (
    *("gpu", "gpu_uuid", "driver_version", "vbios_version", "ecc"),
    *("power_limit_w", "sm_clock_default_mhz", "sm_clock_max_mhz"),
)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Differences of two machines (rows or records) that may alter the energy, in fields that both have, as text."""
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in _FIXED
        if name in before and name in after and before[name] != after[name]
    ]
