"""The sensors of real boards through NVIDIA's bindings (package nvidia-ml-py, module pynvml).

Boards are identified by UUID, because CUDA, NVML and Slurm number them differently.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sweetspot.errors import UnfitMachine
from sweetspot.sensors import leases, processes
from sweetspot.sensors.meter import GpuLostError, Sensor, SensorError

# nvmlDeviceGetFieldValues (nvml.h): the energy counter in mJ, power in mW over 1 s and over 25 ms
_ENERGY, _POWER_AVERAGE, _POWER_INSTANT = 83, 185, 186
# Member of the union nvmlValue_t by nvmlValueType_t
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_REMEDIES = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "libnvidia-ml.so.1 was not found: run on a machine with NVIDIA's driver; in "
    "a container, pass its GPU through (docker --gpus, apptainer --nv)",
    "NVML_ERROR_DRIVER_NOT_LOADED": "NVIDIA's driver is not loaded: ask for a node where nvidia-smi lists a GPU",
    "NVML_ERROR_NO_PERMISSION": "the driver denies access: ask the administrator for access to /dev/nvidia*",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "library and driver versions differ: reboot after the driver update",
    "NVML_ERROR_NOT_SUPPORTED": "not supported by this board or driver",
    "NVML_ERROR_FUNCTION_NOT_FOUND": "the driver is too old: install 535 or later",
}


def open_sensors(
    expected_gpu: str | None = None, boards: int | None = None, uuid: str | None = None, servers: Collection[int] = ()
) -> list["_NvmlSensor"]:
    """As sensors.open_sensors."""
    try:
        nvml = _Nvml()
        used = _boards_of(nvml, servers)
        if used and len(used) != boards:
            raise UnfitMachine(
                f"the server runs on {len(used)} GPUs ({', '.join(used)}), but its model on {boards}: set "
                "tensor_parallel and pipeline_parallel in the table of models to what it was started with"
            )
        visible, names, also = _visible_boards(nvml)
        if uuid is not None and uuid.startswith("MIG-"):
            raise _slice_error(uuid)
        chosen = [gpu for gpu in visible if not (used or uuid) or gpu in used or (uuid and gpu.startswith(uuid))]
        listed = "".join(f"\n  {gpu} ({names[gpu]})" for gpu in visible)
        if not visible:
            raise UnfitMachine(f"no GPU is visible to this process: ask the scheduler for one (Slurm: --gpus=1){also}")
        if not chosen:
            named = f"--gpu {uuid}" if uuid else f"{', '.join(used)}, where the server runs"
            raise UnfitMachine(f"{named}: not among the GPUs visible to this process{also}:{listed}")
        if boards is None and len(chosen) > 1:
            raise UnfitMachine(
                f"{len(chosen)} GPUs are visible to this process; choose one with --gpu UUID or "
                f"CUDA_VISIBLE_DEVICES=UUID:{listed}"
            )
        if len(chosen) < (wanted := boards or 1):
            raise UnfitMachine(
                f"the model needs {wanted} GPUs of one node, but this process sees {len(chosen)}: ask the scheduler "
                f"for {wanted}, or lower tensor_parallel or pipeline_parallel in the table of models{also}:{listed}"
            )
        sensors, faults = list[_NvmlSensor](), list[UnfitMachine]()
        for gpu in chosen:
            try:
                with leases.taken(gpu) if boards else nullcontext():
                    sensors.append(_fit_sensor(gpu, expected_gpu, servers, wanted))
            except UnfitMachine as fault:
                faults.append(fault)
            if len(sensors) == wanted:
                break
        if len(sensors) < wanted:
            raise faults[0]
        if len(visible) > wanted or also:
            if boards and not also and "CUDA_VISIBLE_DEVICES" not in os.environ:
                # By index, since some versions of vLLM know no UUIDs there (its issue 51677 and those before).
                os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
                visible = {gpu: str(index) for index, gpu in enumerate(names)}
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible[sensor.uuid] for sensor in sensors)
        for sensor in sensors:
            sensor.opened()
        nvml("nvmlShutdown")  # each sensor has its own
    except GpuLostError:
        raise
    except SensorError as error:
        raise UnfitMachine(str(error)) from None
    return sensors


def visible_boards() -> list[str]:
    """As sensors.visible_boards."""
    try:
        nvml = _Nvml()
        found = list(_visible_boards(nvml)[0])
        nvml("nvmlShutdown")
    except SensorError as error:
        raise UnfitMachine(str(error)) from None
    return found


def _fit_sensor(uuid: str, expected_gpu: str | None, servers: Collection[int], wanted: int) -> "_NvmlSensor":
    """The sensor of a board. Raises UnfitMachine if it is not the expected one, cannot be measured or is in use."""
    nvml = _Nvml()
    sensor = _NvmlSensor(nvml, nvml("nvmlDeviceGetHandleByUUID", uuid), servers=servers)
    board = f"GPU {sensor.name if wanted > 1 else uuid}"
    if nvml.maybe("nvmlDeviceGetMigMode", [0], sensor.handle)[0]:
        raise _slice_error(uuid)
    name = sensor.identity()["gpu"]
    if expected_gpu is not None and name != expected_gpu:
        raise UnfitMachine(
            f"{board} is a {name}, but {expected_gpu!r} is configured: "
            + (f"set `gpu: {name}` or run" if wanted == 1 else "all GPUs of a job must be alike; run")
            + f" on a machine with {expected_gpu}"
        )
    if strangers := sensor.strangers():
        names = {pid: processes.name(pid) for pid in strangers}
        pids = ", ".join(f"{pid} ({name})" if name else f"{pid}" for pid, name in names.items())
        raise UnfitMachine(
            f"{board} is in use by process {pids}: the energy of two processes cannot be separated; wait for it, end "
            "it, or use another GPU"
        )
    if servers and not sensor.has_ours():
        raise UnfitMachine(f"no process of the server is on {board}: name its GPU with CUDA_VISIBLE_DEVICES=UUID")
    # No point in loading a model if these fail.
    sensor.energy_mj()
    sensor.event_reasons()
    return sensor


# Boards that were idle when this process first opened them. If it opens one again, for example after building an
# engine, the processes found there may be its own.
_FOUND_IDLE: set[str] = set()


class _NvmlSensor(Sensor):
    """One real board, behind an NVML handle. Every call may raise GpuLostError if the board is gone."""

    def __init__(self, nvml: "_Nvml", handle: Any, *, servers: Collection[int] = ()) -> None:
        self._nvml, self.handle = nvml, handle
        self.uuid = str(self._ask("nvmlDeviceGetUUID"))
        self.name = f"{self._ask('nvmlDeviceGetIndex')}:{self.uuid}"
        nvml.place = f"GPU {self.uuid}"
        self._ours, self._roots = {os.getpid()}, {os.getpid(), *servers}
        # In a container, a server that runs already may be among the ids that mean nothing here.
        self._unknown_may_be_ours = bool(servers) and not processes.sees_host_processes()
        self._counts_unknown_ids = processes.sees_host_processes() or not (servers or self.uuid in _FOUND_IDLE)

    def energy_mj(self) -> int:
        value = self._field(_ENERGY)
        if value is None:
            raise SensorError(
                f"GPU {self.uuid}: the energy counter (field 83): {_REMEDIES['NVML_ERROR_NOT_SUPPORTED']}; it needs a "
                "physical data-center GPU of 2017 (Volta) or later"
            )
        return int(value)

    def power_instant_w(self) -> float | None:
        return self._field(_POWER_INSTANT, 1000)

    def power_average_w(self) -> float | None:
        return self._field(_POWER_AVERAGE, 1000)

    def temperature_c(self) -> float:
        return float(self._ask("nvmlDeviceGetTemperature", 0))

    def sm_clock_mhz(self) -> int:
        return int(self._ask("nvmlDeviceGetClockInfo", 1))

    def event_reasons(self) -> int:
        return int(self._ask("nvmlDeviceGetCurrentClocksEventReasons"))

    def power_limit_w(self) -> float:
        return int(self._ask("nvmlDeviceGetEnforcedPowerLimit")) / 1000

    def memory_bytes(self) -> int:
        # With the share that the driver keeps for itself (under 1 %).
        return int(self._ask("nvmlDeviceGetMemoryInfo").total)

    def strangers(self) -> tuple[int, ...] | None:
        # Ours are this process, the servers, and the descendants of both. In a container, NVML may report process ids
        # of the host, which are unknown here. They count only until `opened` is called: before that, there must be no
        # process at all (see `process_check` in the machine record).
        try:
            found = {process.pid for process in self._ask("nvmlDeviceGetComputeRunningProcesses_v3")}
        except GpuLostError:
            raise
        except SensorError:
            return None
        # A descendant stays ours when its parent ends.
        self._ours |= {pid for pid in found if self._roots & set(processes.ancestors(pid))}
        others = found - self._ours
        known = tuple(sorted(pid for pid in others if self._counts_unknown_ids or Path(f"/proc/{pid}").exists()))
        return None if others and not known and self._unknown_may_be_ours else known

    def has_ours(self) -> bool:
        return self.strangers() is None or len(self._ours) > 1

    def opened(self) -> None:
        # From now on, ids unknown in this process's namespace may belong to our own processes.
        self._counts_unknown_ids = processes.sees_host_processes()
        _FOUND_IDLE.add(self.uuid)

    def identity(self) -> dict[str, str | float]:
        return {
            "gpu": str(self._ask("nvmlDeviceGetName")),
            "gpu_uuid": self.uuid,
            "driver_version": str(self._nvml("nvmlSystemGetDriverVersion")),
            "power_limit_w": self.power_limit_w(),
            "vbios_version": str(self._maybe("nvmlDeviceGetVbiosVersion", "unknown")),
            "ecc": {0: "off", 1: "on", None: "none"}[self._maybe("nvmlDeviceGetEccMode", [None])[0]],
        }

    def machine(self) -> dict[str, Any]:
        limits_mw = self._maybe("nvmlDeviceGetPowerManagementLimitConstraints")
        default_mw = self._maybe("nvmlDeviceGetPowerManagementDefaultLimit")
        return {
            **self.identity(),
            "nvml_version": str(self._nvml("nvmlSystemGetNVMLVersion")),
            "power_limit_default_w": default_mw and default_mw / 1000,
            "power_limit_range_w": limits_mw and [limit / 1000 for limit in limits_mw],
            "sm_clock_default_mhz": self._maybe("nvmlDeviceGetDefaultApplicationsClock", None, 1),
            "sm_clock_max_mhz": self._maybe("nvmlDeviceGetMaxClockInfo", None, 1),
            "memory_clock_max_mhz": self._maybe("nvmlDeviceGetMaxClockInfo", None, 2),
            "persistence_mode": self._maybe("nvmlDeviceGetPersistenceMode"),
            "process_check": "throughout" if self._counts_unknown_ids else "when opened",
        }

    def close(self) -> None:
        self._nvml("nvmlShutdown")

    def _field(self, field: int, per_unit: int = 1) -> float | None:
        value = self._ask("nvmlDeviceGetFieldValues", [field])[0]
        if value.nvmlReturn in self._nvml.codes("NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_INVALID_ARGUMENT"):
            return None  # the driver is too old to know the field, or the board has no such sensor
        if value.nvmlReturn:
            raise self._nvml.error(f"field {field}", value.nvmlReturn)
        return float(getattr(value.value, _MEMBERS[value.valueType])) / per_unit

    def _ask(self, function: str, *arguments: Any) -> Any:
        return self._nvml(function, self.handle, *arguments)

    def _maybe(self, function: str, default: Any = None, *arguments: Any) -> Any:
        return self._nvml.maybe(function, default, self.handle, *arguments)


class _Nvml:
    """The initialised bindings, with their errors turned into ours."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError:
            raise UnfitMachine(
                "the Python package nvidia-ml-py, which reads a GPU's sensors, is missing: pip install nvidia-ml-py"
            ) from None
        if not hasattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons"):
            if hasattr(pynvml, "__path__"):  # nvidia-ml-py is a single module
                raise UnfitMachine(
                    "the old Python package pynvml hides nvidia-ml-py, whose module has the same name: pip uninstall "
                    "pynvml, then pip install --force-reinstall nvidia-ml-py"
                )
            raise UnfitMachine("the Python package nvidia-ml-py is too old: pip install --upgrade nvidia-ml-py")
        self._module: Any = pynvml
        self.place = "NVML"
        self("nvmlInit")

    def __call__(self, function: str, *arguments: Any) -> Any:
        return self._call(function, arguments)

    def maybe(self, function: str, default: Any, *arguments: Any, denied: bool = False) -> Any:
        """The answer, or `default` if the call is not supported or, with `denied`, if access is denied."""
        unknown = self.codes("NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_DEPRECATED")
        return self._call(function, arguments, unknown + self.codes("NVML_ERROR_NO_PERMISSION") * denied, default)

    def _call(self, function: str, arguments: Any, unknown: tuple[int, ...] = (), default: Any = None) -> Any:
        try:
            return getattr(self._module, function)(*arguments)
        except self._module.NVMLError as error:
            if error.value in unknown:
                return default
            raise self.error(function, error.value) from None

    def codes(self, *names: str) -> tuple[int, ...]:
        return tuple(getattr(self._module, name) for name in names)

    def error(self, what: str, code: int) -> SensorError:
        """The exception for NVML's error `code` in the call `what`, with its remedy."""
        if code in self.codes("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED"):
            return GpuLostError(
                f"{self.place} is lost: it has fallen off the bus or needs a reset; have the node checked (dmesg "
                "shows an Xid) and run again elsewhere: finished cells are kept"
            )
        for name, remedy in _REMEDIES.items():
            if code in self.codes(name):
                return SensorError(f"{self.place}: {what}: {remedy}")
        return SensorError(f"{self.place}: {what}: {self._module.NVMLError(code)} (NVML error {code}); run again")


def _boards_of(nvml: "_Nvml", servers: Collection[int]) -> list[str]:
    """The UUIDs of the boards with processes of these servers, of those that can be read."""
    found = []
    for index in range(nvml("nvmlDeviceGetCount")) if servers else ():
        try:
            sensor = _NvmlSensor(nvml, nvml("nvmlDeviceGetHandleByIndex", index), servers=servers)
            if sensor.strangers() is not None and sensor.has_ours():
                found.append(sensor.uuid)
        except SensorError:
            continue
    return found


def _visible_boards(nvml: _Nvml) -> tuple[dict[str, str], dict[str, str], str]:
    """The boards that this process may use, the names of all boards by UUID, and why some are unreadable.

    Of the first, each UUID comes with the item of CUDA_VISIBLE_DEVICES that names it, or itself without the variable.
    A neighbour that cannot be read is passed over. Raises UnfitMachine for a slice.
    """
    names, unread = dict[str, str](), dict[int, str]()  # unread: why, by index among the boards that open
    denied = 0
    for index in range(nvml("nvmlDeviceGetCount")):
        # If a scheduler fences devices off (Slurm's ConstrainDevices), NVML still counts the boards of other jobs. CUDA
        # does not, so indices in CUDA_VISIBLE_DEVICES count only the boards that can be opened.
        nvml.place = f"GPU {index} of this machine"
        try:
            handle = nvml.maybe("nvmlDeviceGetHandleByIndex", None, index, denied=True)
            denied += handle is None
            if handle is not None:
                gpu = str(nvml("nvmlDeviceGetUUID", handle))
                names[gpu] = str(nvml("nvmlDeviceGetName", handle))
        except SensorError as error:
            unread[len(names)] = str(error)
    also, value = "".join(f"; {reason}" for reason in unread.values()), os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f"; the driver denies this process access to {denied} GPU{'s' * (denied > 1)} of this machine" * bool(denied)
    if denied and not names and not unread:
        remedy = "ask the scheduler for one (Slurm: --gpus=1), or the administrator for access to /dev/nvidia*"
        raise UnfitMachine(f"{why[2:]}: {remedy}")
    visible: dict[str, str] = {} if value is not None else {uuid: uuid for uuid in names}
    for item in (part.strip() for part in (value or "").split(",")):
        if item in ("", "-1", "NoDevFiles"):  # CUDA stops at these; Slurm writes the last for no GPU
            break
        visible.setdefault(_named(item, names, unread, f"CUDA_VISIBLE_DEVICES={value}", also + why), item)
    return visible, names, also


def _named(item: str, names: Mapping[str, str], unread: Mapping[int, str], where: str, also: str) -> str:
    """The UUID of the board that an item of CUDA_VISIBLE_DEVICES means: an index, a UUID or a prefix of one."""
    uuids = list(names)
    if item.startswith("MIG-"):
        raise _slice_error(item)
    if item.isdecimal():
        if len(set(names.values())) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            raise UnfitMachine(
                f"{where}: CUDA and NVML number GPUs of different kinds differently; set "
                "CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPU by its UUID"
            )
        if before := [reason for place, reason in unread.items() if place <= int(item)]:
            raise UnfitMachine(
                f"{where}: {before[0]}. CUDA may or may not count that GPU, so name the one to measure by its UUID: "
                f"{', '.join(uuids)}"
            )
        found = uuids[int(item) : int(item) + 1]
    else:
        found = [uuid for uuid in uuids if uuid.startswith(item)]
    if len(found) != 1:
        raise UnfitMachine(
            f"{where}: {item} does not match exactly one GPU of this machine, which has "
            f"{', '.join(uuids) or 'none'}{also}"
        )
    return found[0]


def _slice_error(uuid: str) -> UnfitMachine:
    return UnfitMachine(
        f"{uuid} is a MIG slice or is divided into slices: NVML counts whole boards; ask for a whole GPU with MIG off"
    )
