"""Processes of this machine: who descends from whom, and which ones belong to a server. Linux only, by /proc."""

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

# The host's PID namespace, where NVML's process ids are always valid (PROC_PID_INIT_INO in Linux' proc_ns.h)
_HOST_PROCESSES = "pid:[4026531836]"
_LISTENING = "0A"  # TCP_LISTEN in Linux' tcp_states.h
_PROXIES = ("docker-proxy", "rootlessport", "conmon")  # hold a container's port; the server is no child of theirs


def ancestors(pid: int) -> list[int]:
    """Process ids from `pid` up to the first process; empty if there is no such process."""
    found: list[int] = []
    while pid > 0 and pid not in found and (about := _stat(pid)):
        found.append(pid)
        pid = int(about[1])
    return found


def _stat(pid: int) -> list[str]:
    """State, parent and more of a process; nothing if there is none."""
    try:
        # The name, in parentheses, may contain anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def name(pid: int) -> str:
    """A process's command without arguments; "" if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def sees_host_processes() -> bool:
    """Whether process ids here are the host's, and not those of a container's own namespace."""
    return _target(Path("/proc/self/ns/pid")) == _HOST_PROCESSES


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and those that they started; without itself."""
    every = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    return {one for one in every if one != pid and pid in ancestors(one)}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    return _stat(pid)[:1] not in ([], ["Z"])


def listening(port: int, host: str = "localhost") -> set[int]:
    """The processes that listen on a TCP port at an address of this machine, of those that this user may look into."""
    sockets = {f"socket:[{inode}]" for inode in _listening_sockets(port, host)}
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*") if sockets else ():
        with suppress(OSError):  # another user's, or it has ended
            if any(_target(descriptor) in sockets for descriptor in (process / "fd").iterdir()):
                found.add(int(process.name))
    return {pid for pid in found if name(pid) not in _PROXIES}


def _target(descriptor: Path) -> str:
    """What a link in /proc names; "" if it is gone, as descriptors of a busy server are all the time."""
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


def _listening_sockets(port: int, host: str) -> set[str]:
    found, addresses = set(), _as_in_proc(host)
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            address, _, own = columns[1].rpartition(":")
            if columns[3] == _LISTENING and int(own, 16) == port and address in addresses:
                found.add(columns[9])
    return found


def _as_in_proc(host: str) -> set[str]:
    """A host's addresses as /proc/net/tcp and tcp6 write them, with the addresses that stand for all."""
    found = {"0" * 8, "0" * 32}
    for family, *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
        words = [packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4)]
        found.add("".join(words))
        if family == socket.AF_INET:  # the same address where IPv6 listens for both
            found.add("0" * 16 + "FFFF0000" + words[0])
    return found


def first_of_container(container: str) -> int | None:
    """The id of a container's first process, as Docker or Podman reports it; None if neither knows the container."""
    for program in ("docker", "podman"):
        if shutil.which(program):
            asked = subprocess.run(
                [program, "inspect", "--format", "{{.State.Pid}}", container], capture_output=True, text=True
            )
            if asked.returncode == 0 and (pid := asked.stdout.strip()).isdigit() and int(pid):
                return int(pid)
    return None
