"""Starting a server for a block of cells, and ending it whatever happens to the process that measures.

Run as a program with a command as arguments, this module is that server's supervisor: it ends the server, with
everything that it started, when its standard input ends. That happens even if the measuring process is killed.
"""

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from sweetspot.engines import EngineSpec
from sweetspot.engines.adapter import model_place, shortage_in
from sweetspot.engines.completions import Client, NoAnswer
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine
from sweetspot.sensors import processes

PLACEHOLDERS = ("model", "name", "batch", "tokens", "precision", "port", "tensor_parallel", "pipeline_parallel")
"""What `engine.command` may name in braces."""

_START_S = 1800.0  # a large checkpoint on a slow file system takes long to load
_STOP_S = 60.0
_POLL_S = 0.5
_LOG_LINES = 15  # of the server's log are shown if it fails
_LIBRARY = Path(__file__).parent.parent.parent


class Started:
    """A server that this process started, in a session of its own, with its output in `server.log`."""

    def __init__(self, spec: EngineSpec, directory: Path, client: Client) -> None:
        """Start it and wait until it answers. Raises OutOfMemory or, also if another server answers, SweetspotError."""
        model = model_place(spec, directory)
        values = model, spec.architecture.name, spec.batch, spec.total_tokens, spec.precision, client.port
        command = shlex.split(spec.command)
        for name, value in zip(PLACEHOLDERS, (*values, spec.tensor_parallel, spec.pipeline_parallel), strict=True):
            command = [part.replace(f"{{{name}}}", str(value)) for part in command]
        if shutil.which(command[0]) is None:
            raise UnfitMachine(f"engine.command: {command[0]} cannot be started: there is no such program here")
        self._spec, self._client, self._log = spec, client, directory / "server.log"
        if self._answers():
            raise UnfitMachine(self._taken())
        directory.mkdir(parents=True, exist_ok=True)
        program = f"import sys; sys.path.insert(0, {str(_LIBRARY)!r}); from sweetspot.engines import started; "
        with self._log.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-c", program + "started.supervise(sys.argv[1:])", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches only this process, which then stops the server
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and everything that it started."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()

    def last_words(self) -> str:
        """The end of the server's log, for an error message."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return f"\nthe end of {self._log}:\n  " + "\n  ".join(lines)

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if (status := self._supervisor.poll()) is not None:
                raise self._failure(f"ended with status {status}")
            if time.monotonic() > deadline:
                raise self._failure(f"does not answer at {self._client.url} after {_START_S:.0f} s")
            time.sleep(_POLL_S)
        own = processes.descendants(self._supervisor.pid)
        found = processes.listening(self._client.port, self._client.host)
        if found and not found & own:
            raise UnfitMachine(self._taken())

    def _answers(self) -> bool:
        try:
            return self._client.get_json("/v1/models") is not None
        except NoAnswer:
            return False

    def _taken(self) -> str:
        return (
            f"another server answers at {self._client.url} already; stop it, or write {{port}} for the port in "
            "engine.command and leave engine.url out, so that a free one is taken"
        )

    def _failure(self, what: str) -> SweetspotError:
        spec = self._spec
        if shortage := shortage_in(self._log.read_text(errors="replace")):
            return OutOfMemory(
                f"{spec.architecture.name}, batch {spec.batch}: the server found no memory ({shortage}); lower the "
                "memory that it asks for in engine.command, or the batch size"
            )
        return SweetspotError(f"the server started by engine.command {what}{self.last_words()}")


def free_port() -> int:
    """A TCP port that nothing uses now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def supervise(command: list[str]) -> None:
    """Run a command until it or standard input ends, then end all that it started; exits with its status."""
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, lambda number, frame: _end(os.getpid()))
    # Linux' prctl.h: orphans become children of this process and are found (36, PR_SET_CHILD_SUBREAPER), and the server
    # ends if this process is killed (1, PR_SET_PDEATHSIG).
    system = ctypes.CDLL(None)
    system.prctl(36, 1)
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: system.prctl(1, int(signal.SIGTERM))
    )

    def until_input_ends() -> None:
        while os.read(0, 1):  # not sys.stdin, which a thread must not hold when Python ends
            pass
        _end(os.getpid())

    threading.Thread(target=until_input_ends, daemon=True).start()
    status = server.wait()
    _end(os.getpid())
    sys.exit(status if status >= 0 else 128 - status)


def _end(parent: int) -> None:
    """End every descendant of a process: first politely, then not."""
    found = processes.descendants(parent)  # before any ends, since an orphan's parent is forgotten
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_S
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
        while (found := {pid for pid in found if processes.is_alive(pid)}) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not found:
            return
