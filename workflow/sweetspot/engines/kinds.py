"""What is particular to each kind of server: how it is recognised, what it must be asked, what it says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweetspot.engines.completions import Client


@dataclass(frozen=True)
class About:
    """What a server says of itself; None for what it does not say.

    `kv_tokens`: tokens that its KV cache holds, in blocks of `kv_block`. `seats`: requests that it runs at once.
    `caches_prompts`: whether it reuses the KV cache of earlier prompts.
    """

    version: str
    kv_tokens: int | None = None
    kv_block: int = 1
    seats: int | None = None
    caches_prompts: bool | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of server.

    `owner`: `owned_by` of its models. `about` is called after the first requests. `fields`: what its requests need
    beyond the common ones. `counters`: the names in /metrics of the tokens of all prompts and replies, of prompt tokens
    taken from a cache, and of preemptions.
    """

    program: str
    owner: str | None
    about: Callable[[Client], About]
    fields: Mapping[str, Any] = field(default_factory=dict)
    counters: Mapping[str, str] = field(default_factory=dict)


def _version(client: Client) -> str:
    found = client.get_json("/version") or client.get_json("/v1/version") or {}
    return str(found.get("version") or found.get("release") or "unknown")


def _count(value: Any) -> int | None:
    """A number of things, if the value is one above 0."""
    try:
        return int(value) if int(value) > 0 else None
    except (TypeError, ValueError):
        return None


def _about_vllm(client: Client) -> About:
    (labels, _), *_ = client.metrics().get("vllm:cache_config_info", [("", 0.0)])
    found = dict(part.split("=", 1) for part in labels.strip("{}").replace('"', "").split(",") if "=" in part)
    block = _count(found.get("block_size")) or 1
    blocks = _count(found.get("num_gpu_blocks"))
    tokens = _count(found.get("kv_cache_size_tokens")) or (blocks * block if blocks else None)
    caches = {"True": True, "False": False}.get(found.get("enable_prefix_caching", ""))
    return About(_version(client), tokens, block, caches_prompts=caches)


def _about_sglang(client: Client) -> About:
    found = client.get_json("/server_info") or client.get_json("/get_server_info") or {}
    off = found.get("disable_radix_cache")
    block, seats = _count(found.get("page_size")) or 1, _count(found.get("max_running_requests"))
    tokens, caches = _count(found.get("max_total_num_tokens")), None if off is None else not off
    return About(str(found.get("version", "unknown")), tokens, block, seats, caches)


def _about_llamacpp(client: Client) -> About:
    found = client.get_json("/props") or {}
    seats, per_seat = _count(found.get("total_slots")), found.get("default_generation_settings") or {}
    tokens = _count(per_seat.get("n_ctx")) if per_seat else None
    # If the slots share one context instead, a batch that exceeds it fails, so it is no silent error. Prompts are not
    # cached, by cache_prompt of every request.
    whole = seats * tokens if seats and tokens else None
    return About(str(found.get("build_info", "unknown")), whole, seats=seats, caches_prompts=False)


def _about_trtllm(client: Client) -> About:
    iterations = client.get_json("/metrics") or []  # statistics of past iterations, with enable_iter_perf_stats
    latest: dict[str, Any] = next((one for one in reversed(iterations) if one.get("kvCacheStats")), {})
    cache = latest.get("kvCacheStats", {})
    block, blocks = _count(cache.get("tokensPerBlock")) or 1, _count(cache.get("maxNumBlocks"))
    seats = _count(latest.get("maxNumActiveRequests"))
    return About(_version(client), blocks * block if blocks else None, block, seats)


ANY = "server"
KINDS = {
    ANY: Kind("any server with the OpenAI API", None, lambda client: About(_version(client))),
    "vllm-server": Kind(
        "vLLM",
        "vllm",
        _about_vllm,
        counters={
            "prompt": "vllm:prompt_tokens_total",
            "reply": "vllm:generation_tokens_total",
            "cached": "vllm:prefix_cache_hits_total",
            "preempted": "vllm:num_preemptions_total",
        },
    ),
    "trtllm-server": Kind("trtllm-serve", "tensorrt_llm", _about_trtllm),
    "sglang-server": Kind(
        "SGLang",
        "sglang",
        _about_sglang,
        fields={"min_tokens": None},  # costs work in every pass there, and ignore_eos suffices
        counters={
            "prompt": "sglang:prompt_tokens_total",
            "reply": "sglang:generation_tokens_total",
            "cached": "sglang:cached_tokens_total",
            "preempted": "sglang:num_retracted_requests_total",
        },
    ),
    "llamacpp-server": Kind(
        "llama.cpp",
        "llamacpp",
        _about_llamacpp,
        fields={"min_tokens": None, "cache_prompt": False},  # knows only max_tokens and ignore_eos
        counters={"prompt": "llamacpp:prompt_tokens_total", "reply": "llamacpp:tokens_predicted_total"},
    ),
}
"""By the name of the engine."""
