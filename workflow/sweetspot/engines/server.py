"""A server with the OpenAI API, as production runs it: one that runs already on this machine, or one started here.

Replies are streamed, so every request's times are known. What the server did is never taken from its accepting a
request, as servers accept fields that they do not know: lengths and cached tokens are those that it counted itself.
"""

import re
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweetspot.engines import BatchRun, Engine, EngineSpec, RequestTimes
from sweetspot.engines.adapter import Prompts, Reply, prepare_model, run_in_waves
from sweetspot.engines.completions import Client, NoAnswer, parse, request
from sweetspot.engines.kinds import ANY, KINDS
from sweetspot.engines.started import PLACEHOLDERS, Started, free_port
from sweetspot.errors import SweetspotError, UnfitMachine
from sweetspot.parallelism import Parallelism
from sweetspot.sensors import open_sensors, processes
from sweetspot.sensors.clock import Clock
from sweetspot.sensors.meter import Sensor

ENGINES = {name: f"is {kind.program} at `url`" for name, kind in KINDS.items()}
SIMULATED = False
SERVER = True
FIXED = {
    "kv_cache_fraction": "decides itself how much memory its KV cache takes; set it where you start the server",
    "cuda_graphs": "decides itself whether to use CUDA graphs; set it where you start the server",
    "in_flight_batching": "has no static batches",
}

_EXPANDED, _ASSIGNED = re.compile(r".*\$[({A-Za-z_]|.*`|~"), re.compile(r"\w+=")
_SHELL = re.compile(r"(^|/)(ba|da|z|k)?sh$")

# Tokens of the trial batches that show how many requests run at once: the longer the replies, the less a delay matters.
_TRIAL_INPUT, _SHORTEST, _LONGEST = 8, 64, 256
_TRIALS = 6


def version() -> str:
    """There is nothing to build, so nothing depends on a version; rows have the server's own."""
    return "any"


def refusal(name: str, precision: str, weights: str, parallelism: Parallelism) -> str:
    """Never refuse: only the server knows what it runs."""
    return ""


def mistake(url: str | None, command: str | None) -> str:
    """What is wrong with these settings, if anything; for the check of a configuration."""
    if url is None and command is None:
        return "it needs engine.url (a server that runs) or engine.command (starts one)"
    try:
        port = parse(url if url is not None else "http://localhost")[2]
        words = shlex.split(command if command is not None else "-")
    except SweetspotError as error:
        return str(error)
    except ValueError as error:
        return f"engine.command: {error}: {command}"
    if not words:
        return "engine.command is empty; leave it out, or give a command"
    if unknown := {name for name in re.findall(r"\{(\w+)\}", command or "")} - set(PLACEHOLDERS):
        return f"engine.command: {{{sorted(unknown)[0]}}} is not known; known: {', '.join(PLACEHOLDERS)}"
    if url is None and "{port}" not in (command or ""):
        return "engine.command must pass {port} on to the server, or engine.url must name its port"
    if (found := _for_a_shell(command or "")) and not _SHELL.search(words[0]):
        return (
            f"engine.command: {found} means something to a shell only, and no shell runs the command; write "
            "`env NAME=value program` for variables, paths in full, or `sh -c '...'`"
        )
    given = re.search(r"\s--port[=\s]+(\d+)\b", command or "")
    if given and url is not None and int(given[1]) != port:
        return f"engine.command has the server listen at port {given[1]}, engine.url says {port}; write {{port}} for it"
    return ""


def _for_a_shell(command: str) -> str:
    """The first part of a command that only a shell understands: an operator, a substitution, or a variable set."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    for index, token in enumerate(lexer):
        if set(token) <= set("();<>|&") or _EXPANDED.match(token) or (index == 0 and _ASSIGNED.match(token)):
            return token
    return ""


def build(spec: EngineSpec, directory: Path) -> dict[str, Any]:
    """Write the model's directory if `engine.command` names it as {model}. Returns its memory plan in bytes."""
    # Otherwise only the server knows what it serves, and how much memory that takes.
    return prepare_model(spec, directory) if "{model}" in spec.command else {}


def open_device(spec: EngineSpec, directory: Path) -> tuple["ServerEngine", Sequence[Sensor], Clock]:
    """Find the server at `spec.url`, or start `spec.command`; returns the engine, its GPUs' sensors and the clock.

    Raises SweetspotError if the server is on another machine, does not answer, is of another kind, serves another
    model or uses another number of GPUs, OutOfMemory if it does not start for lack of memory.
    """
    client = Client(spec.url or f"http://localhost:{free_port()}", spec.batch)
    _check_here(client)
    # First, to find a wrong or busy GPU before minutes of loading.
    sensors = open_sensors(spec.gpu, spec.gpus, servers=() if spec.command else _processes(spec, client))
    if not spec.command:
        return ServerEngine(spec, client), sensors, Clock()
    started = Started(spec, directory, client)
    try:
        engine = ServerEngine(spec, client, started)
        if spec.gpus > 1 and (unused := [sensor.name for sensor in sensors if not sensor.has_ours()]):
            raise UnfitMachine(
                f"the server does not use GPU {', '.join(unused)} of its {spec.gpus}: have engine.command pass "
                "{tensor_parallel} and {pipeline_parallel} on to it (vLLM: --tensor-parallel-size {tensor_parallel})"
            )
        return engine, sensors, Clock()
    except BaseException:
        started.stop()
        raise


class ServerEngine(Engine):
    """A server that runs. A batch that exceeds its KV cache or its limit of requests runs in waves."""

    def __init__(self, spec: EngineSpec, client: Client, started: Started | None = None) -> None:
        """Find out kind, version and capacity, and check with a trial batch that it does what it is asked."""
        self._spec, self._client, self._started, self._prompts = spec, client, started, Prompts(spec)
        try:
            models = [dict(model) for model in client.get_json("/v1/models")["data"]]
        except (TypeError, KeyError, ValueError):
            models = []
        if not models:
            raise SweetspotError(f"{client.url}/v1/models lists no model; give the address of an OpenAI-compatible API")
        self._kind = KINDS[_recognised(spec, client, models)]
        self._model = _served(spec, models, client)
        self._cached: int | None = 0  # prompt tokens from a cache since the last verdict; None if a reply did not say
        self._foreign = {"prompt": 0.0, "reply": 0.0}  # tokens of others, as far as known
        self._sent = {"prompt": 0, "reply": 0}
        self._before = self._latest = self._counters()
        counted = self._count_seats()
        try:
            self._about = self._kind.about(client)
        except (TypeError, KeyError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise SweetspotError(
                f"what the server at {client.url} says of itself is not understood ({type(error).__name__}: {error}); "
                f"its version is not one of those that {spec.name} knows"
            ) from None
        self._seats = self._about.seats or counted
        self.version = f"{self._kind.program} {self._about.version}" if self._kind.owner else self._about.version
        self.reasons()

    def run(self, input_tokens: int, output_tokens: int) -> BatchRun:
        """Run one batch. Raises OutOfMemory, or SweetspotError if a reply has the wrong length."""
        fit = self._seats or self._spec.batch
        if self._about.kv_tokens is not None:
            block = self._about.kv_block
            fit = min(fit, self._about.kv_tokens // block // -(-(input_tokens + output_tokens) // block))
        ran = self._run(fit, input_tokens, output_tokens)
        unknown = self._about.kv_tokens is None or not self._seats
        counted = self._foreign.keys() <= self._before.keys()
        flags = ("kv_capacity_unknown",) * unknown + ("requests_unchecked",) * (not counted)
        return replace(ran, in_flight=None if unknown else ran.in_flight, flags=flags)

    def reasons(self) -> tuple[str, ...]:
        """Why the runs since the last call cannot be trusted: cached prompts, preemptions, requests of others."""
        now = self._counters()
        changed = {name: now[name] - self._before[name] for name in now.keys() & self._before.keys()}
        cached: float | None = self._cached
        self._cached = 0
        if cached is None:
            cached = 0 if self._about.caches_prompts is False else changed.get("cached")
        found = ["prompt_cache_unknown"] * (cached is None) + ["prompt_cached"] * bool(cached)
        found += ["preempted"] * bool(changed.get("preempted"))
        if any(now[name] < latest for name, latest in self._latest.items() if name in now):
            found.append("server_restarted")
            self._sent, self._foreign = dict.fromkeys(self._sent, 0), dict.fromkeys(self._foreign, 0.0)
            self._before = dict(now)
        # The server may count a reply's last tokens late, so only more than was ever asked for is another's.
        for name in self._foreign.keys() & now.keys() & self._before.keys():
            foreign = now[name] - self._before[name] - self._sent[name]
            if foreign > self._foreign[name]:
                self._foreign[name] = foreign
                found += ["other_requests"] * ("other_requests" not in found)
        self._latest = now
        self._before |= {name: now[name] for name in ("cached", "preempted") if name in now}
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
            return replies

        try:
            return run_in_waves(self._spec, fit, self._prompts.as_text, input_tokens, output_tokens, generate)
        except NoAnswer as error:
            raise SweetspotError(f"{error}{self._started.last_words() if self._started else ''}") from None

    def _count_seats(self) -> int:
        """How many requests the server runs at once, from batches of short ones; the whole batch if none waits.

        0 if that cannot be told: a busy host may delay requests and readings, which looks as if they waited, so a
        smaller number than the batch must be the largest of all trials, and be seen in half of them.
        """
        spec = self._spec
        input_tokens = min(_TRIAL_INPUT, spec.max_input_tokens)
        lengths = input_tokens, min(_LONGEST, spec.total_tokens - input_tokens)
        seen: list[int] = []
        for _ in range(_TRIALS):
            times = self._run(spec.batch, *lengths).requests
            if not times or lengths[1] < _SHORTEST:
                return 0 if spec.batch > 1 else 1
            seen.append(_seats(times))
            if max(seen) == spec.batch:
                return spec.batch
        return max(seen) if 2 * seen.count(max(seen)) >= _TRIALS else 0

    def _counters(self) -> dict[str, float]:
        names = self._kind.counters
        metrics = self._client.metrics() if names else {}
        return {name: sum(value for _, value in metrics[own]) for name, own in names.items() if own in metrics}


def _seats(times: Sequence[RequestTimes]) -> int:
    """How many requests of a batch ran at once; all, if none waited."""
    # At half of the reply that began first: a request that was there at a quarter of it, but has not begun, waits.
    first = min(times, key=lambda one: one.first_token_s)
    reply_s = first.last_token_s - first.first_token_s
    quarter_s, half_s = (first.first_token_s + share * reply_s for share in (1 / 4, 1 / 2))
    waits = any(one.arrival_s < quarter_s and one.first_token_s > half_s for one in times)
    return sum(one.first_token_s <= half_s for one in times) if waits else len(times)


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
    if client.get("/v1/models") is None:
        raise UnfitMachine(f"{client.url}/v1/models: no such page; give the address of an OpenAI-compatible API")
    if found := processes.listening(client.port, client.host):
        return found
    raise UnfitMachine(
        f"the process that listens on port {client.port} is another user's or a container's, so its use of the GPU "
        "cannot be told from that of others: name it with engine.container, or give engine.pid (of a container: "
        "docker inspect --format '{{.State.Pid}}' NAME)"
    )


def _recognised(spec: EngineSpec, client: Client, models: list[dict[str, Any]]) -> str:
    """The engine whose kind of server this is. Raises SweetspotError if it is not the kind that is configured."""
    owner = models[0].get("owned_by")
    found = next((name for name, kind in KINDS.items() if kind.owner and kind.owner == str(owner or "")), ANY)
    if spec.name not in (ANY, found):
        what = KINDS[found].program if found != ANY else f"of no known kind (owned_by: {owner!r})"
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
