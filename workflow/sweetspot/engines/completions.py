"""A client of OpenAI-compatible servers: streams replies of exact lengths, and times them."""

import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from sweetspot.engines import RequestTimes
from sweetspot.engines.adapter import Reply
from sweetspot.errors import SweetspotError

_SILENCE_S = 600.0  # without a byte from the server, it is taken to hang
_PIECE = 1 << 16  # bytes read at once
_SINGLE = 0.8  # events per token, at least; fewer means that they hold several tokens each
_LAST_EVENTS = 5  # the end of a stream: last token, usage, "[DONE]"; earlier events are not parsed, to save time


class Client:
    """Talks to the server at a URL. Every method raises SweetspotError if the server refuses or does not answer."""

    def __init__(self, url: str, requests: int) -> None:
        """For up to so many `requests` at once. `url`: http://HOST:PORT. The key in OPENAI_API_KEY, if any, is sent."""
        self._pool = ThreadPoolExecutor(requests)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._https, self.host, self.port, self._base = parse(self.url)
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key.isascii() or not key.isprintable():
            raise SweetspotError("the key in OPENAI_API_KEY has characters that no key has; set it again, or unset it")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._open: set[http.client.HTTPConnection] = set()

    def get(self, path: str) -> bytes | None:
        """The content at `path`; None if there is no such page. Raises NoAnswer if the server is not there or ready."""
        connection = self._connect()
        try:
            connection.request("GET", self._base + path, headers=self._headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from None
        finally:
            connection.close()
        if answer.status in (404, 405, 501):
            return None
        if answer.status in (502, 503, 504):
            raise NoAnswer(f"the server at {self.url} is not ready ({_message(answer.status, content)})")
        if answer.status != 200:
            raise SweetspotError(f"{self.url}{path}: {_message(answer.status, content)}")
        return content

    def get_json(self, path: str) -> Any:
        """The JSON at `path`; None if there is none."""
        try:
            return json.loads(self.get(path) or b"null")
        except ValueError:
            return None

    def metrics(self) -> dict[str, list[tuple[str, float]]]:
        """The Prometheus metrics: by name, the labels and the value of each sample; empty if there are none."""
        found: dict[str, list[tuple[str, float]]] = {}
        for line in (self.get("/metrics") or b"").decode(errors="replace").splitlines():
            if match := re.fullmatch(
                r"([a-zA-Z_:][\w:]*)(\{.*\})?\s+([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(\s+\d+)?", line
            ):
                found.setdefault(match[1], []).append((match[2] or "", float(match[3])))
        return found

    def stream(self, bodies: Sequence[str]) -> list[Reply]:
        """Send all requests at once, each on a connection of its own, and read their replies as they stream."""
        together = threading.Barrier(len(bodies), timeout=_SILENCE_S)
        waiting = [self._pool.submit(self._stream_one, body.encode(), together) for body in bodies]
        try:
            failures = [error for one in waiting if (error := one.exception())]
        except BaseException:  # such as Ctrl-C: the threads must not wait for the server
            together.abort()
            for connection in set(self._open):
                if connection.sock:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)
            raise
        if failures:  # a cause, rather than what it broke
            raise min(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        return [one.result() for one in waiting]

    def _stream_one(self, body: bytes, together: threading.Barrier) -> Reply:
        pieces: list[tuple[float, bytes]] = []
        connection = self._connect()
        self._open.add(connection)
        try:
            try:
                connection.connect()
            except OSError:
                together.abort()
                raise
            together.wait()
            sent_s = time.monotonic()
            headers = {**self._headers, "Content-Type": "application/json"}
            connection.request("POST", f"{self._base}/v1/completions", body, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise SweetspotError(f"{self.url}: {_message(answer.status, answer.read())}")
            heard_s = time.monotonic()
            while piece := answer.read1(_PIECE):
                now_s = time.monotonic()
                pieces.append((now_s, piece))
                heard_s = now_s if b"data:" in piece else heard_s
                if now_s - heard_s > _SILENCE_S:  # comments only, which keep the connection alive
                    raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from None
        finally:
            self._open.discard(connection)
            connection.close()
        return _read(pieces, sent_s, self.url)

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=_SILENCE_S)

    def _lost(self, error: Exception) -> SweetspotError:
        what = f"sent nothing for {_SILENCE_S:.0f} s" if isinstance(error, TimeoutError) else "does not answer"
        return NoAnswer(f"the server at {self.url} {what} ({error or type(error).__name__}); see its log")


class NoAnswer(SweetspotError):
    """The server is not there, or no longer."""


def parse(url: str) -> tuple[bool, str, int, str]:
    """Whether a URL is https, its host, port and path. Raises SweetspotError if it is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna" if not host.isascii() else "ascii")
        fits = parts.scheme in ("http", "https") and host and ".." not in host and url == "".join(url.split())
    except ValueError:
        fits = False
    if not fits:
        raise SweetspotError(f"engine.url is {url!r}: give the server's address, as http://localhost:8000")
    return parts.scheme == "https", host, port or (443 if parts.scheme == "https" else 80), parts.path


def request(model: str, prompt: str, output_tokens: int, more: Mapping[str, Any]) -> str:
    """A request as JSON for `output_tokens`; `prompt`: ids, as "1,2,3"; `more`: fields of this kind, None: left out."""
    fields = {
        "model": model,
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **more,
    }
    known = json.dumps({name: value for name, value in fields.items() if value is not None})
    return f'{known[:-1]}, "prompt": [{prompt}]}}'


def _read(pieces: Sequence[tuple[float, bytes]], sent_s: float, url: str) -> Reply:
    """The reply in a stream of server-sent events that arrived in `pieces`, each with its time."""
    text = b"".join(piece for _, piece in pieces)
    separator = b"\r\n\r\n" if b"\r\n\r\n" in text else b"\n\n"
    events: list[tuple[int, bytes]] = []  # where each ends in the text; without comments
    at = 0
    for event in text.split(separator):
        at += len(event) + len(separator)
        if not event.startswith(b":"):
            events.append((at - len(separator), event))
    if b'"error"' in text:
        for _, event in events:
            _event(event, url)
    usage, timings, last = dict[str, Any](), dict[str, Any](), None
    for end, event in reversed(events[-_LAST_EVENTS:]):
        content = _event(event, url)
        usage, timings = usage or content.get("usage") or {}, timings or content.get("timings") or {}
        last = end if last is None and content.get("choices") else last
    begins = next((index for index, (_, event) in enumerate(events) if _event(event, url).get("choices")), None)
    try:
        prompt_tokens, tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        cached = None if cached is None else int(cached)
        predicted_s = float(timings["predicted_ms"]) / 1000 if "predicted_ms" in timings else None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SweetspotError(
            f"{url}: the end of the stream has no usage that can be read, so the lengths cannot be checked: the server "
            "must know stream_options.include_usage"
        ) from None
    times = None
    if begins is not None and last is not None:
        last_s, first_s = _arrived(pieces, last), _arrived(pieces, events[begins][0])
        many = sum(end <= last for end, _ in events[begins:])
        if predicted_s is not None:
            # llama.cpp holds back tokens that end inside a character: its first event may be late, but it says when.
            times = RequestTimes(sent_s, max(sent_s, last_s - predicted_s), last_s)
        elif _begins_with_one(_event(events[begins][1], url), many, tokens):
            times = RequestTimes(sent_s, first_s, last_s)
    return Reply(tokens, times, prompt_tokens, cached)


def _begins_with_one(first: Mapping[str, Any], events: int, tokens: int) -> bool:
    """Whether the first event has a single token: as the server says, else if there is about an event for each."""
    try:
        return int(first["usage"]["completion_tokens"]) == 1
    except (KeyError, TypeError, ValueError):
        return events >= _SINGLE * tokens


def _event(event: bytes, url: str) -> Mapping[str, Any]:
    """The JSON of a server-sent event; empty for other events. Raises SweetspotError if it reports an error."""
    lines = [line.removeprefix(b"data:").strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        content = json.loads(b"\n".join(lines)) if lines else {}
    except ValueError:
        return {}  # "[DONE]"
    if not isinstance(content, dict):
        return {}
    if error := content.get("error"):
        raise SweetspotError(f"{url}: {error.get('message', error) if isinstance(error, dict) else error}")
    return content


def _arrived(pieces: Sequence[tuple[float, bytes]], place: int) -> float:
    """When the byte before `place` arrived."""
    received = 0
    for at_s, piece in pieces:
        received += len(piece)
        if received >= place:
            return at_s
    return pieces[-1][0]


def _message(status: int, content: bytes) -> str:
    """An answer that refuses, in one line."""
    text = content.decode(errors="replace").strip()
    if 300 <= status < 400:
        return f"HTTP {status}: it redirects to another address; give that one"
    try:
        error = json.loads(text)
        error = error.get("error", error.get("detail", error.get("message", error)))
        text = error.get("message", str(error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    return f"HTTP {status}: {' '.join(text.split())[:500] or 'no explanation'}"
