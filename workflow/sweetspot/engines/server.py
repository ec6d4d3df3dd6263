"""A server with the OpenAI API, as production runs it: one that runs already on this machine, or one started here.

Replies are streamed, so every request's times are known. What the server did is never taken from its accepting a
request, as servers accept fields that they do not know: lengths and cached tokens are those that it counted itself.
"""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from sweetspot.engines import BatchRun, EngineSpec, RequestTimes
from sweetspot.engines.adapter import (
    MODEL_DIRECTORY,
    Prompts,
    Reply,
    memory_plan,
    prepare_model,
    run_in_waves,
    shortage_in,
)
from sweetspot.engines.completions import Client, NoAnswer, request
from sweetspot.engines.kinds import ANY, KINDS, recognised
from sweetspot.errors import OutOfMemory, SweetspotError, UnfitMachine
from sweetspot.sensors import open_sensor, processes
from sweetspot.sensors.clock import Clock, WallClock
from sweetspot.sensors.meter import Sensor

ENGINES = {name: f"is {kind.program} at `url`" for name, kind in KINDS.items()}
SIMULATED = False
SERVER = True
FIXED = {
    "kv_cache_fraction": "decides itself how much memory its KV cache takes; set it where you start the server",
    "cuda_graphs": "decides itself whether to use CUDA graphs; set it where you start the server",
    "in_flight_batching": "has no static batches",
}

_START_S = 1800.0  # a large checkpoint on a slow file system takes long to load
_STOP_S = 60.0
_POLL_S = 0.5
_LOG_LINES = 15  # of the server's log are shown if it fails
_TRIAL_INPUT, _TRIAL_OUTPUT = 8, 64  # tokens of the trial batches that show how many requests run at once
_TRIALS = 3


def version() -> str:
    """There is nothing to build, so nothing depends on a version; rows have the server's own."""
    return "any"


def refusal(name: str, model_type: str, precision: str, weights: str) -> str:
    """Never refuse: only the server knows what it runs."""
    return ""


def build(spec: EngineSpec, directory: Path) -> dict[str, dict[str, int]]:
    """Write the model's directory if `engine.command` names it as {model}. Returns the memory plan in bytes."""
    plan = memory_plan(spec)
    if "{model}" in spec.command:
        prepare_model(spec, directory)
    return {"memory": plan.as_dict()}


def open_device(spec: EngineSpec, directory: Path) -> tuple["ServerEngine", Sensor, Clock]:
    """Find the server at `spec.url`, or start `spec.command`; returns the engine, its GPU's sensor and the clock.

    Raises SweetspotError if the server is on another machine, does not answer, is of another kind or serves another
    model, OutOfMemory if it does not start for lack of memory.
    """
    if not spec.command:
        client = Client(spec.url, spec.batch)
        _check_here(client)
        sensor = open_sensor(spec.gpu, servers=_processes(spec, client))
        return ServerEngine(spec, client), sensor, WallClock()
    sensor = open_sensor(spec.gpu)  # first, to find a wrong or busy GPU before minutes of loading
    client = Client(spec.url or f"http://localhost:{_free_port()}", spec.batch)
    _check_here(client)
    started = _Started(spec, directory, client, sensor.environment())
    try:
        return ServerEngine(spec, client, started), sensor, WallClock()
    except BaseException:
        started.stop()
        raise


class ServerEngine:
    """A server that runs. A batch that exceeds its KV cache or its limit of requests runs in waves."""

    def __init__(self, spec: EngineSpec, client: Client, started: "_Started | None" = None) -> None:
        """Find out kind, version and capacity, and check with a trial batch that it does what it is asked."""
        self._spec, self._client, self._started, self._prompts = spec, client, started, Prompts(spec)
        models = (client.get_json("/v1/models") or {}).get("data") or []
        if not models:
            raise SweetspotError(f"{client.url}/v1/models lists no model; give the address of an OpenAI-compatible API")
        self._kind = KINDS[_recognised(spec, client, models)]
        self._model = _served(spec, models, client)
        self._cached: int | None = 0  # prompt tokens from a cache since the last verdict; None if a reply did not say
        self._excess_before = 0.0
        self._sent = {"prompt": 0, "reply": 0}
        self._before = self._counters()
        counted = self._count_seats()
        self._about = self._kind.about(client)
        self._seats = self._about.seats or counted
        self.version = f"{self._kind.program} {self._about.version}" if self._kind.owner else self._about.version
        self.reasons()

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run one batch. Raises OutOfMemory, or SweetspotError if a reply has the wrong length."""
        fit = self._seats
        if self._about.kv_tokens is not None:
            block = self._about.kv_block
            fit = min(fit, self._about.kv_tokens // block // -(-(input_tokens + output_tokens) // block))
        ran = self._run(fit, input_tokens, output_tokens)
        return ran if self._about.kv_tokens is not None else replace(ran, in_flight=None)

    def reasons(self) -> tuple[str, ...]:
        """Why the runs since the last call cannot be trusted: cached prompts, preemptions, requests of others."""
        now = self._counters()
        changed = {name: now[name] - self._before[name] for name in now.keys() & self._before.keys()}
        cached: float | None = self._cached
        self._cached = 0
        if cached is None:
            cached = 0 if self._about.caches_prompts is False else changed.get("cached")
        found = []
        if cached is None:
            found.append("prompt_cache_unknown")
        elif cached:
            found.append("prompt_cached")
        if changed.get("preempted"):
            found.append("preempted")
        # The server may count a reply's last tokens late, so only more than was ever asked for is another's.
        excess = max((changed[name] - sent for name, sent in self._sent.items() if name in changed), default=0)
        if excess > self._excess_before:
            self._excess_before = excess
            found.append("other_requests")
        for name in ("cached", "preempted"):
            if name in now:
                self._before[name] = now[name]
        return tuple(found)

    def close(self) -> None:
        """Stop the server if it was started here."""
        if self._started:
            self._started.stop()

    def _run(self, fit: int, input_tokens: int, output_tokens: int) -> BatchRun:
        def generate(prompts: list[str]) -> list[Reply]:
            fields = self._kind.fields
            replies = self._client.stream([request(self._model, ids, output_tokens, fields) for ids in prompts])
            for reply in replies:
                if reply.prompt_tokens != input_tokens:
                    raise SweetspotError(
                        f"{self._client.url} counted {reply.prompt_tokens} prompt tokens instead of {input_tokens}: it "
                        "does not take token ids as they are, so it cannot be measured"
                    )
                if reply.cached_tokens is None or self._cached is None:
                    self._cached = None
                else:
                    self._cached += reply.cached_tokens
            self._sent["prompt"] += input_tokens * len(replies)
            self._sent["reply"] += output_tokens * len(replies)
            return [Reply(reply.tokens, reply.times) for reply in replies]

        try:
            return run_in_waves(self._spec, fit, self._prompts.as_text, input_tokens, output_tokens, generate)
        except NoAnswer as error:
            raise SweetspotError(f"{error}{self._started.last_words() if self._started else ''}") from None

    def _count_seats(self) -> int:
        """How many requests the server runs at once, from batches of short ones; the whole batch if none waits.

        A busy host may delay requests and readings, which looks the same, so only what several batches show counts.
        """
        spec = self._spec
        lengths = min(_TRIAL_INPUT, spec.max_input_tokens), min(_TRIAL_OUTPUT, spec.max_output_tokens)
        seats = 0
        for _ in range(_TRIALS):
            seats = max(seats, _seats(self._run(spec.batch, *lengths).requests))
            if seats == spec.batch or lengths[1] < _TRIAL_OUTPUT:
                return spec.batch
        return seats

    def _counters(self) -> dict[str, float]:
        names = self._kind.counters
        metrics = self._client.metrics() if names else {}
        return {name: sum(value for _, value in metrics[own]) for name, own in names.items() if own in metrics}


def _seats(times: Sequence[RequestTimes]) -> int:
    """How many requests of a batch ran at once; all, if none waited.

    Judged at half of the reply that began first: a request that was there at a quarter of it, but has not begun, waits.
    """
    first = min(times, key=lambda one: one.first_token_s)
    reply_s = first.last_token_s - first.first_token_s
    quarter_s, half_s = (first.first_token_s + share * reply_s for share in (1 / 4, 1 / 2))
    waits = any(one.arrival_s < quarter_s and one.first_token_s > half_s for one in times)
    return sum(one.first_token_s <= half_s for one in times) if waits else len(times)


class _Started:
    """A server that this process started, in a session of its own, with its output in `server.log`."""

    def __init__(self, spec: EngineSpec, directory: Path, client: Client, environment: Mapping[str, str]) -> None:
        """Start it and wait until it answers. Raises as `open_device` does."""
        model = spec.checkpoint if spec.weights == "checkpoint" else directory / MODEL_DIRECTORY
        known = {
            "{model}": str(model),
            "{name}": spec.architecture.name,
            "{batch}": str(spec.batch),
            "{tokens}": str(spec.total_tokens),
            "{precision}": spec.precision,
            "{port}": str(client.port),
        }
        command = shlex.split(spec.command)
        for name, value in known.items():
            command = [part.replace(name, value) for part in command]
        if _answers(client):
            raise UnfitMachine(
                f"another server answers at {client.url} already; stop it, or write {{port}} for the port in "
                "engine.command and leave engine.url out, so that a free one is taken"
            )
        self._client, self._log = client, directory / "server.log"
        directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = _launch(command, {**os.environ, **environment}, log)
        deadline = time.monotonic() + _START_S
        try:
            while not _answers(client):
                self._check_running(spec, time.monotonic() > deadline)
                time.sleep(_POLL_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and everything that it started."""
        for sign, patience_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            try:
                os.killpg(self._process.pid, sign)
            except ProcessLookupError:
                return
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue

    def last_words(self) -> str:
        """The end of the server's log, for an error message."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return f"\nthe end of {self._log}:\n  " + "\n  ".join(lines)

    def _check_running(self, spec: EngineSpec, late: bool) -> None:
        status = self._process.poll()
        if status is None and not late:
            return
        what = (
            f"does not answer at {self._client.url} after {_START_S:.0f} s" if late else f"ended with status {status}"
        )
        if shortage := shortage_in(self._log.read_text(errors="replace")):
            raise OutOfMemory(
                f"{spec.architecture.name}, batch {spec.batch}: the server found no memory ({shortage}); lower the "
                "memory that it asks for in engine.command, or the batch size"
            )
        raise SweetspotError(f"the server started by engine.command {what}{self.last_words()}")


def _launch(command: list[str], environment: Mapping[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    library = ctypes.CDLL(None)
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Linux then ends the server if this process is killed (PR_SET_PDEATHSIG in Linux' prctl.h).
            preexec_fn=lambda: library.prctl(1, int(signal.SIGTERM)),
        )
    except OSError as error:
        raise UnfitMachine(f"engine.command: {command[0]} cannot be started ({error.strerror})") from None


def _answers(client: Client) -> bool:
    try:
        return client.get_json("/v1/models") is not None
    except SweetspotError:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def _check_here(client: Client) -> None:
    """Raise UnfitMachine unless the server's address is one of this machine's."""
    try:
        addresses = socket.getaddrinfo(client.host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnfitMachine(f"engine.url: {client.host}: {error.strerror}") from None
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as own:
            try:
                own.bind((address[0], 0, *address[2:]))  # possible with an address of this machine only
                return
            except OSError:
                continue
    raise UnfitMachine(
        f"the server at {client.url} is on another machine, but energy can only be read where its GPU is. Set "
        f"engine.url to http://localhost:{client.port} and run this campaign on {client.host}: there, in a copy of "
        "this directory, `snakemake --profile local` with the same --configfile"
    )


def _processes(spec: EngineSpec, client: Client) -> set[int]:
    """The ids of the server's processes: configured, or found by the port. Raises UnfitMachine if there are none."""
    if spec.pid:
        if not processes.ancestors(spec.pid):
            raise UnfitMachine(f"engine.pid: there is no process {spec.pid} here; give the server's, or leave it out")
        return {spec.pid}
    if spec.container:
        if (first := processes.first_of_container(spec.container)) is None:
            raise UnfitMachine(
                f"engine.container: neither docker nor podman knows a running container {spec.container!r} that this "
                "user may inspect; check it with `docker ps`, or give engine.pid"
            )
        return {first}
    if not _answers(client):
        client.get("/v1/models")  # for its error
        raise UnfitMachine(f"{client.url}/v1/models: no such page; give the address of an OpenAI-compatible API")
    if found := processes.listening(client.port):
        return found
    raise UnfitMachine(
        f"the process that listens on port {client.port} is another user's or a container's, so its use of the GPU "
        "cannot be told from that of others: name it with engine.container, or give engine.pid (of a container: "
        "docker inspect --format '{{.State.Pid}}' NAME)"
    )


def _recognised(spec: EngineSpec, client: Client, models: list[dict[str, Any]]) -> str:
    """The engine whose kind of server this is. Raises SweetspotError if it is not the kind that is configured."""
    found = recognised(models)
    if spec.name not in (ANY, found):
        what = KINDS[found].program if found != ANY else f"of no known kind (owned_by: {models[0].get('owned_by')!r})"
        raise SweetspotError(f"the server at {client.url} is {what}, but engine.name is {spec.name}; set it to {found}")
    if spec.name != found:
        print(
            f"note: {client.url} is {KINDS[found].program}; `engine: name: {found}` keeps its rows apart from those of "
            "other servers",
            file=sys.stderr,
        )
    return found


def _served(spec: EngineSpec, models: list[dict[str, Any]], client: Client) -> str:
    """The model's name at the server. Raises SweetspotError if it serves only others."""
    served = [str(model.get("id")) for model in models]
    own = [name for name in served if _plain(name) == _plain(spec.architecture.name)]
    if not own and "{model}" in spec.command:
        own = served  # it was started with this model's directory
    if not own:
        raise SweetspotError(
            f"the server at {client.url} serves {', '.join(served)}, not {spec.architecture.name}: give the model that "
            "name in the table of models, or start the server with it (vLLM, SGLang: --served-model-name; llama.cpp: "
            "--alias)"
        )
    return own[0]


def _plain(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold().removesuffix(".gguf")
