"""A real Slurm on this machine: Debian's munged, slurmctld and slurmd, one node with two H100s that are /dev/null.

Needs root, because the jobs' environment is stripped of SLURM_CONF and so the configuration must be in /etc/slurm.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from debian import have

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.socket
CredType=cred/munge
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=2,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
MinJobAge=3600
DefMemPerCPU=256
KillWait=1
JobRequeue=0
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=64000 Gres=gpu:h100:2 Feature=h100 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=12:00:00 State=UP
"""


def unavailable() -> str:
    """Why a Slurm cannot be started here, or nothing. Tries to install it first."""
    if os.geteuid() != 0:
        return "Slurm needs root here: its jobs read /etc/slurm"
    _clear_leftovers()
    if Path("/etc/slurm/slurm.conf").exists():
        return "this machine has a Slurm configuration of its own; it is left alone"
    return have(lambda: all(map(shutil.which, PROGRAMS)), PACKAGES)


def jobs() -> dict[int, dict[str, str]]:
    """What Slurm says of every job so far, by its id."""
    shown = subprocess.run(
        ["scontrol", "show", "job", "--all", "--details", "-o"], capture_output=True, text=True, check=True
    ).stdout
    records = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in shown.splitlines()]
    return {int(record["JobId"]): record for record in records if "JobId" in record}


def scontrol(*arguments: object) -> None:
    """Give an order to the controller."""
    subprocess.run(["scontrol", *map(str, arguments)], check=True, capture_output=True)


def node() -> str:
    """The name of the one node."""
    return socket.gethostname().split(".")[0]


def clear() -> None:
    """Cancel all jobs and wait for their end."""
    subprocess.run(["scancel", "--user", "root"], capture_output=True)
    subprocess.run(["scancel", "--user", "root", "--signal=CONT", "--full"], capture_output=True)
    deadline = time.monotonic() + 60
    while subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < deadline, "jobs do not end"
        time.sleep(0.2)
    if "drain" in subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout:
        scontrol("update", f"nodename={node()}", "state=resume")


def restart_controller(root: Path) -> None:
    """End slurmctld and start it again with what it saved."""
    _end(root / "slurmctld.pid")
    subprocess.run(["slurmctld"], check=True)
    _wait_for(root, "sinfo", "-h")


@contextmanager
def configured(root: Path, old: str, new: str) -> Iterator[None]:
    """Another line in slurm.conf for a while."""
    file = root / "etc/slurm.conf"
    text = file.read_text()
    file.write_text(text.replace(old, new))
    scontrol("reconfigure")
    try:
        yield
    finally:
        file.write_text(text)
        scontrol("reconfigure")


def _clear_leftovers() -> None:
    """End the cluster of a test run that was killed before it could: its owner is gone."""
    link = Path("/etc/slurm/slurm.conf")
    owner = link.resolve().parent / "owner" if link.is_symlink() else link / "none"
    if link.is_symlink() and (not owner.exists() or not Path("/proc", owner.read_text()).exists()):
        for pid in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            _end(owner.parent.parent / pid)
        for name in FILES:
            Path("/etc/slurm", name).unlink(missing_ok=True)


def _end(pid_file: Path) -> None:
    """End a daemon and wait until it is gone."""
    if pid_file.exists():
        pid = int(pid_file.read_text())
        deadline = time.monotonic() + 30
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.1)
            os.kill(pid, signal.SIGKILL)


def _wait_for(root: Path, *command: str, output: str = "") -> None:
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 and output in done.stdout:
            return
        assert time.monotonic() < deadline, (root / "log/slurmctld.log").read_text()
        time.sleep(0.1)


@contextmanager
def cluster(root: Path) -> Iterator[Path]:
    """A running cluster; yields the directory of its logs and records."""
    host = node()
    for name in ("munge", "state", "spool", "log", "dev", "etc"):
        (root / name).mkdir(parents=True, mode=0o755)
    for index in (0, 1):
        (root / f"dev/nvidia{index}").symlink_to("/dev/null")
    (root / "etc/slurm.conf").write_text(SLURM_CONF.format(host=host, root=root))
    (root / "etc/gres.conf").write_text(f"NodeName={host} Name=gpu Type=h100 File={root}/dev/nvidia[0-1]\n")
    (root / "etc/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (root / "etc/owner").write_text(str(os.getpid()))
    key = root / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    Path("/etc/slurm").mkdir(exist_ok=True)
    for name in FILES:
        Path("/etc/slurm", name).symlink_to(root / "etc" / name)
    try:
        munge = [
            f"--{n}={root}/munge/{v}"
            for n, v in (("socket", "munge.socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))
        ]
        subprocess.run(["munged", "--force", f"--key-file={key}", *munge], check=True)
        subprocess.run(["slurmctld", "-c"], check=True)
        subprocess.run(["slurmd", "-c"], check=True)
        _wait_for(root, "sinfo", "-h", "-o", "%t", output="idle")
        yield root
    finally:
        subprocess.run(["scancel", "--user", "root"], capture_output=True)
        for pid in (root / "slurmd.pid", root / "slurmctld.pid", root / "munge/pid"):
            _end(pid)
        for name in FILES:
            Path("/etc/slurm", name).unlink(missing_ok=True)
