"""Stand-ins for servers with the OpenAI API, as strict as the published sources of each kind.

vLLM 0.33 (entrypoints/openai/completion/protocol.py), TensorRT-LLM 1.2 (serve/openai_protocol.py), SGLang 0.5.23
(srt/entrypoints/openai/protocol.py) and llama.cpp (tools/server). Also a program: `python servers.py KIND PORT MODEL`.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNERS = {"vllm": "vllm", "trtllm": "tensorrt_llm", "sglang": "sglang", "llamacpp": "llamacpp", "other": "someone"}
_COMMON = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "ignore_eos", "seed", "stop"}
KNOWN = {
    "vllm": _COMMON | {"min_tokens", "add_special_tokens", "return_token_ids", "cache_salt", "stream_interval"},
    "trtllm": _COMMON | {"min_tokens", "add_special_tokens", "detokenize", "truncate_prompt_tokens", "best_of"},
    "sglang": _COMMON | {"min_tokens", "return_token_ids", "return_cached_tokens_details", "cache_salt"},
    "llamacpp": _COMMON | {"n_predict", "cache_prompt", "timings_per_token", "return_tokens", "id_slot"},
    "other": _COMMON | {"min_tokens"},
}


class Server(ThreadingHTTPServer):
    """A server of `kind` with the models `serves`, on a free port unless given one.

    It runs `seats` requests at once, says that its KV cache holds `kv_tokens`, and takes `step_s` for a token. A test
    changes its conduct by setting attributes: see below.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, kind: str, serves: str, port: int = 0, seats: int = 64, kv_tokens: int = 100_000) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.kind, self.serves, self.seats, self.kv_tokens, self.step_s = kind, serves, seats, kv_tokens, 0.001
        self.reports_cached = True  # in usage
        self.caches = False  # says that it reuses prompts
        self.cached_of_each = 0  # tokens of each prompt that it takes from a cache
        self.short_by = 0  # tokens that replies lack
        self.more_prompt = 0  # tokens that it adds to prompts
        self.fails = ""  # an error in the middle of each stream
        self.goes_on_after_failing = False
        self.tokens_per_event, self.first_alone = 1, False  # and whether the first token comes by itself all the same
        self.pings_at_the_end = 0
        self.hangs = False  # sends nothing but comments
        self.instead: dict[str, tuple[int, str]] = {}  # status and content by path, instead of what the kind answers
        self.key = ""  # that requests must have
        self.usage: dict[str, Any] = {}  # what replaces parts of the last event
        self.counters: dict[str, float] = {"prompt": 0, "reply": 0, "cached": 0, "preempted": 0}
        self.asked: list[dict[str, Any]] = []
        self.running = threading.Semaphore(seats)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def started(self) -> "Server":
        """Serve from a thread."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def page(self, path: str) -> Any:
        """What the kind answers to GET; None for 404."""
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": self.serves, "owned_by": OWNERS[self.kind]}]}
        pages: dict[str, Mapping[str, Any]] = {
            "vllm": {"/version": {"version": "0.33.0"}, "/metrics": self._prometheus("vllm")},
            "trtllm": {"/version": {"version": "1.2.1"}, "/metrics": self._iterations()},
            "sglang": {
                "/server_info": {
                    "version": "0.5.23",
                    "disable_radix_cache": not self.caches,
                    "max_total_num_tokens": self.kv_tokens,
                    "max_running_requests": self.seats,
                    "page_size": 1,
                },
                "/metrics": self._prometheus("sglang"),
            },
            "llamacpp": {
                "/props": {
                    "build_info": "b9000-0c1e57098",
                    "total_slots": self.seats,
                    "default_generation_settings": {"n_ctx": self.kv_tokens // self.seats},
                }
            },
            "other": {},
        }
        return pages[self.kind].get(path)

    def _iterations(self) -> list[dict[str, Any]]:
        if not self.asked:
            return []
        cache = {"maxNumBlocks": self.kv_tokens // 32, "tokensPerBlock": 32}
        return [{"iter": 1, "maxNumActiveRequests": self.seats, "kvCacheStats": cache}]

    def _prometheus(self, prefix: str) -> str:
        names = {
            "prompt": "prompt_tokens_total",
            "reply": "generation_tokens_total",
            "cached": "prefix_cache_hits_total",
        }
        names["preempted"] = "num_preemptions_total"
        if prefix == "sglang":
            names |= {"cached": "cached_tokens_total", "preempted": "num_retracted_requests_total"}
        lines = [f'{prefix}:{own}{{model_name="m"}} {self.counters[name]}' for name, own in names.items()]
        if prefix == "vllm":
            about = f'block_size="16",enable_prefix_caching="{self.caches}",kv_cache_size_tokens="{self.kv_tokens}"'
            lines.append(f"vllm:cache_config_info{{{about}}} 1.0")
        return "# HELP none\n" + "\n".join(lines) + "\n"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path in self.server.instead:
            self._answer(*self.server.instead[self.path])
        elif self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._answer(401, json.dumps({"error": "Unauthorized"}))
        else:
            content = self.server.page(self.path)
            text = content if isinstance(content, str) else json.dumps(content)
            self._answer(404 if content is None else 200, text)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(request)
        if wrong := self._refusal(request):
            self._answer(400, json.dumps({"error": {"message": wrong, "code": 400}}))
            return
        with server.running:
            self._stream(request)

    def _refusal(self, request: Mapping[str, Any]) -> str:
        server = self.server
        extra = request.keys() - KNOWN[server.kind]
        if server.kind == "trtllm" and extra:
            return f"Extra inputs are not permitted: {', '.join(sorted(extra))}"
        prompt = request["prompt"]
        if not isinstance(prompt, list) or not all(isinstance(one, int) for one in prompt):
            return "this stand-in takes one prompt of token ids"
        if len(prompt) + request["max_tokens"] > server.kv_tokens:
            return f"max_tokens={request['max_tokens']} is too large"
        return ""

    def _stream(self, request: Mapping[str, Any]) -> None:
        server, wanted = self.server, request["max_tokens"] - self.server.short_by
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event({"choices": []} if server.kind == "sglang" else None)  # not every event is a token
        while server.hangs:
            self._event(None)
            time.sleep(0.05)
        start_s = time.monotonic()
        prompt = len(request["prompt"]) + server.more_prompt
        usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": wanted}
        if server.reports_cached:
            usage["prompt_tokens_details"] = {"cached_tokens": server.cached_of_each}
        ends = {"usage": usage, "timings": {"predicted_ms": 0.0}} if server.kind == "llamacpp" else {}
        for number in range(1, wanted + 1):
            time.sleep(server.step_s)
            if server.fails and number == wanted:
                self._event({"error": {"message": server.fails}})
                if not server.goes_on_after_failing:
                    break
            start_s = time.monotonic() if number == 1 else start_s
            bundled = number % server.tokens_per_event and not (server.first_alone and number == 1)
            if number < wanted and (ends or bundled):
                continue  # as llama.cpp while tokens end inside a character
            last = ends | {"timings": {"predicted_ms": 1000 * (time.monotonic() - start_s)}} if ends else {}
            if request.get("stream_options", {}).get("continuous_usage_stats") and server.kind in (
                "vllm",
                "trtllm",
                "sglang",
            ):
                last = {"usage": {"prompt_tokens": prompt, "completion_tokens": number}}
            self._event({"choices": [{"index": 0, "text": "", "finish_reason": None}], **last})
        with server.lock:
            server.counters["prompt"] += prompt
            server.counters["reply"] += wanted
            server.counters["cached"] += server.cached_of_each
        if not ends and request.get("stream_options", {}).get("include_usage"):
            self._event({"choices": [], "usage": usage} | server.usage)
        for _ in range(server.pings_at_the_end):
            self._event(None)
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, content: Mapping[str, Any] | None) -> None:
        self._chunk(b": ping\n\n" if content is None else f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    if "out-of-memory" in sys.argv:
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    if "broken" in sys.argv:
        sys.exit("ValueError: no such option")
    print("serving", sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    one = Server(sys.argv[1], sys.argv[3], int(sys.argv[2]))
    one.hangs, one.key = "hanging" in sys.argv, "secret" if "locked" in sys.argv else ""
    one.serve_forever()
