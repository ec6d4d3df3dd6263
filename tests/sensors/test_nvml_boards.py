"""The real bindings on a stub library: which board is measured, what is refused, what a machine record holds."""

import os
from collections.abc import Callable
from typing import Any

import pytest

import nvml_inside
from nvml_inside import CONSTANT
from nvml_stub import A100, H100, OTHER, Stub, Trace
from sweetspot.errors import SweetspotError
from sweetspot.measure.protocol import Protocol
from sweetspot.sensors import board as boards

pytest.importorskip("pynvml", reason="nvidia-ml-py IS NOT INSTALLED: NVML was not tested")

UUID = H100.split()[0]

# Refusals before anything is measured.


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["fail:nvmlInitWithFlags 9"], ["driver is not loaded", "nvidia-smi"]),
        (["fail:nvmlInitWithFlags 12"], ["libnvidia-ml.so.1", "--nv"]),
        (["fail:nvmlInitWithFlags 18"], ["reboot"]),
        (["fail:nvmlDeviceGetFieldValues 4"], ["denies access", UUID]),
        (["fail:83 3"], ["energy counter", "Volta"]),
        (["fail:nvmlDeviceGetCurrentClocksEventReasons 13"], ["EventReasons", "535"]),
        (["fail:nvmlDeviceGetUUID 999"], ["999"]),
        (["mig 1"], ["MIG", UUID, "whole GPU"]),
        ([f"process {os.getpid()}"], [str(os.getpid()), "in use", "python"]),
        (["process 4194304"], ["4194304", "in use"]),
        (["lost"], ["is lost"]),
    ],
)
def test_what_cannot_be_measured_is_refused(
    stub: Stub, inside: Callable[..., Any], lines: list[str], parts: list[str]
) -> None:
    stub.set(*lines)
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.identify)
    for part in parts:
        assert part in str(raised.value)


def test_only_the_last_user_shuts_nvml_down(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set()
    assert inside(nvml_inside.use_twice) > 0


# Which board.

SECOND = OTHER.split()[0]


@pytest.mark.parametrize(
    ("visible", "uuid", "found"),
    [
        ("0", None, UUID),
        ("1", None, SECOND),
        (SECOND, None, SECOND),
        ("GPU-222", None, SECOND),
        ("1,0", UUID, UUID),
        (None, SECOND, SECOND),
        (None, "GPU-1", UUID),
        ("1,1", None, SECOND),
    ],
)
def test_the_allocated_board_is_found(
    stub: Stub, inside: Callable[..., Any], visible: str | None, uuid: str | None, found: str
) -> None:
    stub.set(boards=(H100, OTHER))
    assert inside(nvml_inside.identify, visible, uuid) == found


@pytest.mark.parametrize("visible", ["0", None, SECOND])
def test_a_board_that_the_scheduler_fenced_off_does_not_count(
    stub: Stub, inside: Callable[..., Any], visible: str | None
) -> None:
    """Slurm with ConstrainDevices allocated the second board: index 0 is the first that opens, not the node's first."""
    stub.set("denied 0", boards=(H100, OTHER))
    assert inside(nvml_inside.identify, visible, None) == SECOND


@pytest.mark.parametrize("visible", ["0", None, UUID])
def test_access_that_is_denied_is_not_a_missing_gpu(
    stub: Stub, inside: Callable[..., Any], visible: str | None
) -> None:
    stub.set("denied 0")
    with pytest.raises(SweetspotError, match="denies this process access to 1 GPU of this machine: ask") as e:
        inside(nvml_inside.identify, visible, None)
    assert "no GPU is visible" not in str(e.value)


def test_a_named_board_that_is_denied_says_so(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set("denied 1", boards=(H100, OTHER))
    with pytest.raises(SweetspotError, match=r"does not match exactly one GPU .*; the driver denies .* to 1 GPU"):
        inside(nvml_inside.identify, SECOND, None)


@pytest.mark.parametrize("code", [15, 16, 999], ids=["lost", "needs a reset", "unknown"])
@pytest.mark.parametrize(("bad", "visible"), [(0, SECOND), (0, "GPU-2"), (0, None), (1, UUID), (1, "0"), (1, None)])
def test_a_neighbour_that_cannot_be_read_does_not_count(
    stub: Stub, inside: Callable[..., Any], bad: int, visible: str | None, code: int
) -> None:
    stub.set(f"bad {bad} {code}", boards=(H100, OTHER))
    assert inside(nvml_inside.identify, visible, None) == (UUID if bad else SECOND)


@pytest.mark.parametrize(
    ("visible", "parts"),
    [(UUID, [UUID, "does not match", SECOND]), ("0", ["by its UUID", SECOND]), ("1", ["by its UUID", SECOND])],
)
def test_a_board_of_ours_that_cannot_be_read_is_named(
    stub: Stub, inside: Callable[..., Any], visible: str, parts: list[str]
) -> None:
    stub.set("bad 0 15", boards=(H100, OTHER))
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.identify, visible, None)
    for part in ["GPU 0", "is lost", *parts]:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("boards", "visible", "uuid", "kept"),
    [
        ((H100,), None, None, None),
        ((H100,), "0", None, "0"),
        ((H100, OTHER), "1", None, "1"),
        ((H100, OTHER), "GPU-2", None, "GPU-2"),
        ((H100, OTHER), "0,1", SECOND, "1"),
        ((H100, OTHER), None, SECOND, SECOND),
    ],
)
def test_a_metered_command_keeps_its_own_way_of_naming_the_board(
    stub: Stub,
    inside: Callable[..., Any],
    boards: tuple[str, ...],
    visible: str | None,
    uuid: str | None,
    kept: str | None,
) -> None:
    stub.set(boards=boards, trace=CONSTANT, real=True)
    assert inside(nvml_inside.visible_to_a_command, visible, uuid) == kept


@pytest.mark.parametrize(
    ("visible", "uuid", "parts"),
    [
        (None, None, ["2 GPUs", UUID, SECOND, "--gpu"]),
        ("0,1", None, ["2 GPUs", UUID, SECOND]),
        ("", None, ["no GPU is visible"]),
        ("-1", None, ["no GPU is visible"]),
        ("7", None, ["7", "CUDA_VISIBLE_DEVICES"]),
        ("GPU-9", None, ["GPU-9", "CUDA_VISIBLE_DEVICES"]),
        ("GPU-", None, ["GPU- does not match exactly one GPU", "CUDA_VISIBLE_DEVICES"]),
        ("0", SECOND, ["--gpu", "not among", UUID]),
        ("MIG-44444444-aaaa-bbbb-cccc-000000000004", None, ["MIG", "slice"]),
        (f"MIG-{UUID}/1/0", None, ["MIG", "slice"]),
        (None, "MIG-44444444-aaaa-bbbb-cccc-000000000004", ["MIG", "slice"]),
    ],
)
def test_a_board_that_is_not_ours_to_measure_is_refused(
    stub: Stub, inside: Callable[..., Any], visible: str | None, uuid: str | None, parts: list[str]
) -> None:
    stub.set(boards=(H100, OTHER))
    with pytest.raises(SweetspotError) as raised:
        inside(nvml_inside.identify, visible, uuid)
    for part in parts:
        assert part in str(raised.value)


def test_indices_among_boards_of_two_kinds_are_refused(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set(boards=(H100, A100))
    with pytest.raises(SweetspotError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        inside(nvml_inside.identify, "1")
    assert inside(nvml_inside.identify, A100.split()[0]) == A100.split()[0]


def test_another_kind_of_board_than_configured_is_refused(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set()
    assert inside(nvml_inside.identify, None, None, "NVIDIA H100 80GB HBM3") == UUID
    with pytest.raises(SweetspotError, match="NVIDIA H200") as raised:
        inside(nvml_inside.identify, None, None, "NVIDIA H200")
    assert "NVIDIA H100 80GB HBM3" in str(raised.value)


# Machines.


def test_a_machine_that_changed_between_sessions_is_found(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set()
    before = inside(nvml_inside.describe)
    assert before["gpu"] == "NVIDIA H100 80GB HBM3"
    assert (before["driver_version"], before["ecc"], before["power_limit_w"]) == ("580.159.03", "on", 700.0)
    assert before["process_check"] == "throughout"
    assert boards.changes(before, inside(nvml_inside.describe)) == []
    stub.set("driver 590.1", "ecc 0", "vbios 96.2", "limit_mw 500000", "persistence 0")
    assert boards.changes(before, inside(nvml_inside.describe)) == [
        "driver_version: 580.159.03 -> 590.1",
        "vbios_version: 96.00.89.00.01 -> 96.2",
        "ecc: on -> off",
        "power_limit_w: 700.0 -> 500.0",
    ]


def test_a_board_tells_its_memory(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set("memory_mib 24564")
    assert inside(nvml_inside.memory_bytes) == 24564 * 1024**2


def test_values_that_a_board_does_not_report_are_none(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set("fail:nvmlDeviceGetEccMode 3", "fail:nvmlDeviceGetDefaultApplicationsClock 26")
    machine = inside(nvml_inside.describe)
    assert machine["ecc"] == "none"
    assert machine["sm_clock_default_mhz"] is None


def test_the_probe_finds_the_periods_of_the_sensors(stub: Stub, inside: Callable[..., Any]) -> None:
    stub.set("step 0.2", trace=Trace(((3.7, 70.0, 75.0), (2.9, 75.0, 70.0))))
    record = inside(nvml_inside.probe_idle)
    for source in ("counter", "instant", "average"):
        assert record["sensors"][source]["period_s"] == pytest.approx(0.2, abs=0.004)
    assert record["idle"]["bare"]["counter"] == pytest.approx(72.5, rel=0.02)
    assert record["idle"]["bare"]["reasons"] == ""
    assert "no load" in record["note"]
    assert record["protocol"]["counter_step_s"] == pytest.approx(0.2, abs=0.004)
    assert record["protocol"]["window_s"] == pytest.approx(20, abs=0.4)
    assert set(record["protocol"]) <= set(Protocol.__dataclass_fields__)
