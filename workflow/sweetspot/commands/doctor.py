"""Print versions, GPUs and their sensors, Slurm and free disk of this machine, and what would fail in a campaign, with
what to do about it. Exit status 0 if the demo would run here. Run it in an engine's environment, too: it needs no
package.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

from sweetspot import __version__, gpus
from sweetspot.errors import SweetspotError

HELP = "show what this machine has and what would fail on it"
EPILOG = "Example: sweetspot doctor --json > doctor.json"

_ANALYSIS = (
    *("snakemake", "snakemake-executor-plugin-slurm", "polars", "numpy", "scipy", "statsmodels", "matplotlib"),
    *("pandera", "pydantic", "transformers"),
)
_ENGINES = ("vllm", "tensorrt_llm", "torch")
_PLUGIN = "snakemake_logger_plugin_sweetspot"
_NEEDED_GB = 1.0  # the demo's results, with its environment already there


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    found = examined()
    print(json.dumps(found, indent=2) if options.json else as_text(found))
    return 0 if not found["problems"]["demo"] else 1


def examined() -> dict[str, Any]:
    """What this machine has, and under `problems` what would fail: in the demo, in measuring a GPU here, on Slurm."""
    versions = {name: _version(name) for name in (*_ANALYSIS, "nvidia-ml-py", *_ENGINES)}
    free_gb = shutil.disk_usage(Path()).free / 1e9
    demo = [
        f"the Python package {name} is missing: install sweetspot with its dependencies (README.md)"
        for name in _ANALYSIS
        if versions[name] is None
    ]
    if util.find_spec(_PLUGIN) is None:
        demo.append(f"{_PLUGIN}, which the profiles name, is missing: pip install --no-deps --editable .")
    if not os.access(Path(), os.W_OK):
        demo.append(f"{Path.cwd()} is not writable: change to a directory of yours, or set `results`")
    if free_gb < _NEEDED_GB:
        demo.append(f"{free_gb:.1f} GB are free here: results need {_NEEDED_GB:g} GB or more")
    boards, measuring = _boards()
    cluster, submitting = _slurm()
    return {
        "versions": {"sweetspot": __version__, "python": platform.python_version(), **versions},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "executable": sys.executable},
        "disk": {"directory": str(Path.cwd()), "free_gb": round(free_gb, 1)},
        "boards": boards,
        "slurm": cluster,
        "problems": {"demo": demo, "measuring": measuring, "slurm": submitting},
    }


def as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    versions = [f"{name} {version}" for name, version in found["versions"].items() if version]
    machine, disk = found["machine"], found["disk"]
    lines = [", ".join(versions), f"{machine['platform']}, {machine['cores']} cores, Python at {machine['executable']}"]
    lines += [f"{disk['free_gb']} GB free in {disk['directory']}"]
    for board in found["boards"]:
        sensors = ", ".join(f"{name} {'yes' if there else 'NO'}" for name, there in board["sensors"].items())
        lines.append(
            f"{board['gpu']} {board['gpu_uuid']}: driver {board['driver_version']}, power limit "
            f"{board['power_limit_w']:g} W, ECC {board['ecc']}; {sensors}"
        )
    lines += [] if found["boards"] else ["no GPU that can be measured here"]
    for partition in (found["slurm"] or {}).get("partitions", ()):
        lines.append(
            f"Slurm partition {partition['name']}: {partition['nodes']} nodes, {partition['gpus'] or 'no GPU'}, "
            f"at most {partition['limit']} per job"
        )
    for what, problems in found["problems"].items():
        title = {"demo": "the demo", "measuring": "measuring a GPU of this machine", "slurm": "--profile slurm"}[what]
        lines += ["", f"{title}: {'would fail' if problems else 'nothing stands in the way'}"]
        lines += [f"  - {problem}" for problem in problems]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _boards() -> tuple[list[dict[str, Any]], list[str]]:
    """The boards that can be measured, each opened as a job would, and why others cannot."""
    from sweetspot import sensors

    boards, problems, environment = list[dict[str, Any]](), list[str](), dict(os.environ)
    try:
        uuids = sensors.visible_boards()
    except SweetspotError as error:
        return [], [str(error)]
    for uuid in uuids:
        try:
            (sensor,) = sensors.open_sensors(uuid=uuid)
            about = sensor.machine()
            seen = {"energy counter": True, "power over 25 ms": sensor.power_instant_w() is not None}
            boards.append({**about, "sensors": {**seen, "power over 1 s": sensor.power_average_w() is not None}})
            sensor.close()
            if gpus.find(about["gpu"]) is None:
                problems.append(
                    f"there is no data sheet of {about['gpu']}: describe it under `board` to plan a campaign"
                )
        except SweetspotError as error:
            problems.append(str(error))
        finally:  # opening one hides the others
            os.environ.clear()
            os.environ.update(environment)
    return boards, problems if uuids else ["no GPU is visible to this process: ask the scheduler for one"]


def _slurm() -> tuple[dict[str, Any] | None, list[str]]:
    """Partitions and how Snakemake would ask for job states, and what is wrong with that; None without Slurm."""
    from sweetspot.campaign import slurm

    if shutil.which("sbatch") is None:
        return None, ["no Slurm here (no sbatch on the PATH): run on a login node of the cluster"]
    partitions, problems = slurm.partitions(), list[str]()
    if not any(partition["gpus"] for partition in partitions):
        problems.append("no partition has GPUs (`sinfo`): ask the administrator")
    try:
        asked, _ = slurm.status_command("sacct", slurm.FIRST_LOOK_S)
    except SweetspotError as error:
        asked = None
        problems.append(str(error))
    return {"partitions": partitions, "job_states": asked}, problems
