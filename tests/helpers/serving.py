"""What tests of servers share: the model, the kinds, the settings of an engine, and the stand-in as a program."""

import sys
from dataclasses import replace
from typing import Any

import servers
from simulation import ARCHITECTURES, H100
from sweetspot import engines, models

MODEL = "llama-3.2-1b"
KINDS = {
    "server": "other",
    "vllm-server": "vllm",
    "trtllm-server": "trtllm",
    "sglang-server": "sglang",
    "llamacpp-server": "llamacpp",
}
PROGRAM = f"{sys.executable} {servers.__file__}"


def spec(name: str, **changes: Any) -> engines.EngineSpec:
    """A server of 8 requests of at most 64 + 64 tokens."""
    path = ARCHITECTURES / f"{MODEL}.json"
    arch, config = models.load(path), models.resolved(path)["config"]
    whole = engines.EngineSpec(name, arch, "bfloat16", "served", H100.name, 8, 64, 64, 0.9, 1, model_config=config)
    return replace(whole, **changes)
