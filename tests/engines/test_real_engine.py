"""The vLLM adapter on the real vLLM (its CPU build): real tokens, no stand-in. `make test-engine` runs it.

Two layers of each family with random weights. Only CUDA's synchronisation is replaced, since there is no GPU; energy
comes from the real NVML bindings on a stub library, so the joules are not those of this work.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import nvml_stub
from simulation import ARCHITECTURES, H100
from sweetspot import engines, models
from sweetspot.engines import server
from sweetspot.engines import vllm as adapter
from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically
from sweetspot.measure import raw
from sweetspot.measure.journal import Place
from sweetspot.measure.protocol import Protocol

pytestmark = pytest.mark.contract
pytest.importorskip("vllm", reason="NOT TESTED on a real engine; `make test-engine` does it")

BATCH = 4
SMALL = {"vocab_size": 1024, "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
NARROW = {"head_dim": 64, "num_key_value_heads": 2, "intermediate_size": 512}
# By family: a published config.json of it (or of its nearest relative), and what makes it small.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("falcon-7b", {}),
    "gemma": ("gemma-2-2b", {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"} | NARROW),
    "gemma2": ("gemma-2-2b", NARROW),
    "granite": ("granite-3.1-2b", NARROW),
    "llama": ("llama-3.2-1b", NARROW),
    "mistral": ("llama-3.2-1b", {"architectures": ["MistralForCausalLM"], "model_type": "mistral"} | NARROW),
    "opt": ("opt-1.3b", {"ffn_dim": 512, "word_embed_proj_dim": 256}),
    "qwen2": ("qwen2-1.5b", NARROW),
    "qwen3": ("qwen2-1.5b", {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | NARROW),
    "qwen3_moe": (
        "qwen2-1.5b",
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "norm_topk_prob": True,
        }
        | NARROW,
    ),
    "gemma3": (
        "gemma-2-2b",
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 10000.0,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }
        | NARROW,
    ),
    "phi3": (
        "llama-3.2-1b",
        {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rope_scaling": None} | NARROW,
    ),
    "gpt_oss": (
        "llama-3.2-1b",
        {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"],
            "swiglu_limit": 7.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 4096,
                "truncate": False,
            },
        }
        | NARROW,
    ),
}


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine lacks: a GPU to wait for. The KV cache takes 1 GiB."""
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def small(place: Path, family: str) -> Path:
    """A config.json of the family with two narrow layers."""
    name, changes = FAMILIES[family]
    config = json.loads((ARCHITECTURES / f"{name}.json").read_text()) | SMALL | changes
    write_atomically(place / "small.json", json.dumps(config))
    return place / "small.json"


def spec(place: Path, family: str, **changes: Any) -> engines.EngineSpec:
    path = small(place, family)
    whole = engines.EngineSpec(
        "vllm",
        models.load(path),
        "bfloat16",
        "dummy",
        H100.name,
        BATCH,
        256,
        64,
        0.9,
        1,
        model_config=models.resolved(path)["config"],
    )
    return replace(whole, **changes)


class Loaded:
    """The adapter's engine, and what vLLM itself says of every batch that it was given."""

    def __init__(self, wanted: engines.EngineSpec, place: Path) -> None:
        engines.build(wanted, place / "engine")
        self.engine = adapter.VllmEngine(wanted, place / "engine")
        self.batches: list[Any] = []
        self.running: list[int] = []
        llm = self.engine._llm
        generate, scheduler = llm.generate, self.scheduler
        schedule = scheduler.schedule

        def watched(*arguments: Any, **options: Any) -> Any:
            self.batches.append(generate(*arguments, **options))
            return self.batches[-1]

        def counted(*arguments: Any, **options: Any) -> Any:
            output = schedule(*arguments, **options)
            self.running.append(len(scheduler.running))
            return output

        llm.generate, scheduler.schedule = watched, counted

    @property
    def scheduler(self) -> Any:
        return self.engine._llm.llm_engine.engine_core.engine_core.scheduler


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Any]:
    made: list[Loaded] = []

    def load(family: str, **changes: Any) -> Loaded:
        made.append(Loaded(spec(tmp_path, family, **changes), tmp_path))
        return made[-1]

    yield load
    for one in made:
        one.engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_whole_batches_of_exact_lengths(family: str, loaded: Any) -> None:
    made = loaded(family)
    for input_tokens, output_tokens in ((64, 16), (256, 64), (1, 1)):
        made.batches.clear()
        made.running.clear()
        ran = made.engine.run(input_tokens, output_tokens)
        assert (ran.in_flight, ran.waves) == (BATCH, 1)
        (replies,) = made.batches
        assert [len(reply.prompt_token_ids) for reply in replies] == [input_tokens] * BATCH
        assert [len(reply.outputs[0].token_ids) for reply in replies] == [output_tokens] * BATCH
        assert not any(reply.num_cached_tokens for reply in replies), "every prompt is computed"
        assert max(made.running) == BATCH, "the whole batch is in flight at once"


@pytest.mark.parametrize(
    ("precision", "kinds", "cache"),
    [
        ("fp8+kv_fp8", {"torch.bfloat16", "torch.float32", "torch.float8_e4m3fn"}, "fp8"),
        ("int8", {"torch.bfloat16", "torch.float32", "torch.int8"}, "auto"),
        ("int4", {"torch.bfloat16", "torch.int32", "torch.int64"}, "auto"),
    ],
)
def test_random_weights_are_quantised_as_asked(precision: str, kinds: set[str], cache: str, loaded: Any) -> None:
    """What the CPU has kernels for: not weights-only fp8 and int8, nvfp4, mxfp4, nor caches in int8 and nvfp4."""
    made = loaded("llama", precision=precision)
    stored = made.engine._llm.apply_model(lambda model: {str(p.dtype) for p in model.parameters()})[0]
    assert stored <= kinds
    assert stored & (kinds - {"torch.bfloat16", "torch.float32"}) or precision == "int8"
    assert made.engine._llm.llm_engine.vllm_config.cache_config.cache_dtype == cache
    ran = made.engine.run(256, 64)
    assert (ran.in_flight, ran.waves) == (BATCH, 1)
    assert [len(reply.outputs[0].token_ids) for reply in made.batches[-1]] == [64] * BATCH


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_as_many_requests_fit_as_the_adapter_says(family: str, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In waves, none is preempted; one more than fit do not run together."""
    arguments = adapter._arguments
    monkeypatch.setattr(adapter, "_arguments", lambda *given: arguments(*given) | {"num_gpu_blocks_override": 20})
    made = loaded(family, batch=8)
    fit = made.engine._requests_that_fit(256 + 64)
    assert 1 <= fit < 8
    assert made.engine.run(256, 64).in_flight <= fit
    assert max(made.running) <= fit
    assert sum(len(batch) for batch in made.batches) == 8
    made.running.clear()
    sampling = made.engine._package.SamplingParams(max_tokens=64, min_tokens=64, ignore_eos=True, detokenize=False)
    prompts = made.engine._prompts.take(fit + 1, 256)
    made.engine._llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    assert made.running[-1] < fit + 1


def test_gaussian_weights_are_gaussian_and_an_engine_loads_again(loaded: Any) -> None:
    made = loaded("opt", weights="gaussian")
    spread = made.engine._llm.apply_model(
        lambda model: max(float(p.data.std()) for p in model.parameters() if p.dim() > 1)
    )
    assert spread[0] == pytest.approx(0.02, rel=0.05)
    ran = made.engine.run(64, 16)
    assert (ran.in_flight, ran.waves) == (BATCH, 1)
    made.engine.close()
    ran = loaded("opt").engine.run(64, 16)
    assert (ran.in_flight, ran.waves) == (BATCH, 1)


def test_a_model_that_vllm_does_not_know_is_refused(tmp_path: Path) -> None:
    wanted = spec(tmp_path, "llama")
    unknown = replace(wanted, model_config={**wanted.model_config, "architectures": ["NobodysForCausalLM"]})
    with pytest.raises(SweetspotError, match="does not run NobodysForCausalLM"):
        engines.build(unknown, tmp_path / "engine")


ON_A_CPU = """
import torch
torch.cuda.synchronize = torch.cuda.empty_cache = lambda: None
"""


SERVER = (
    f"{sys.executable} -m vllm.entrypoints.openai.api_server --model {{model}} --served-model-name {{name}}"
    " --port {port} --max-model-len {tokens} --max-num-seqs {batch} --load-format dummy --skip-tokenizer-init"
    " --no-enable-prefix-caching --enable-prompt-tokens-details"
)


@pytest.mark.parametrize(("engine", "command"), [("vllm", None), ("vllm-server", SERVER)])
def test_a_campaign_runs_from_the_engine_to_rows(engine: str, command: str | None, tmp_path: Path) -> None:
    """Session, meter, real NVML bindings on a board of 400 W, real tokens: rows with the watts that the board drew."""
    stub = nvml_stub.build(tmp_path)
    board = f"{nvml_stub.H100.split()[0]} {H100.name}"
    stub.set(trace=nvml_stub.Trace(((1.0, 400.0, 400.0),)), boards=[board], real=True)
    (tmp_path / "sitecustomize.py").write_text(ON_A_CPU)
    cells = [{"input_tokens": n, "output_tokens": m, "flags": ""} for n, m in ((64, 16), (256, 64))]
    wanted = spec(tmp_path, "llama")
    protocol = Protocol(window_s=2.0, window_runs=1, warmup_s=1.0, warmup_max_s=2.0, idle_s=2.0, visits=1)
    job = {
        "campaign": "real",
        "model": "small",
        "batch": BATCH,
        "engine": {
            **{name: getattr(wanted, name) for name in ("gpu", "precision", "weights", "kv_cache_fraction")},
            "name": engine,
            "seed": 1,
            **({"command": command} if command else {}),
        },
        "protocol": asdict(replace(protocol, repetitions=2, min_repetitions=2)),
        "seed": 1,
        "cells": cells,
        "limits": engines.limits(cells),
    }
    where = Place(tmp_path / "results", "small", BATCH, "grid")
    write_atomically(where.architecture, json.dumps(models.resolved(tmp_path / "small.json")))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, **stub.environment, "PYTHONPATH": path}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    environment["VLLM_RPC_BASE_PATH"] = tempfile.gettempdir()  # the path of a socket has at most 107 characters
    for stage in (["build"], ["measure", "--block", "grid"]):
        shared = ["--job", json.dumps(job), "--directory", str(where.directory)]
        done = subprocess.run(
            [sys.executable, "-m", "sweetspot.measure.session", *stage, *shared],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in where.rows.read_text().splitlines()]
    assert {(row["input_tokens"], row["output_tokens"]) for row in rows} == {(64, 16), (256, 64)}
    assert {row["source"] for row in rows} == {"measured"}
    for row in rows:
        assert row["in_flight"] in ((BATCH, None) if command else (BATCH,)), "unknown on a busy host, but never another"
        assert "random_weights" in row["flags"].split(";")
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"]
        # A busy host may hide the times of some batches, so means over requests and over batches may differ.
        assert 0 < row["tpot_p50_s"] <= row["tpot_p99_s"]
        assert row["ttft_p99_s"] + row["tpot_p50_s"] * (row["output_tokens"] - 1) < row["window_s"]
        assert 0 <= row["start_spread_s"] < row["window_s"]
        if row["valid"]:
            assert row["energy_j"] == pytest.approx(400 * row["duration_s"], rel=0.03)
    assert sum(row["valid"] for row in rows) >= 2, [row["reasons"] for row in rows]
    assert raw.check(where.directory) == 0


def test_a_server_tells_what_it_took_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real server, with its prefix cache on: new prompts find nothing there, the same prompt again is seen.

    It runs two requests at once, which it says nowhere. On a busy host that may stay unknown, but is never wrong.
    """
    command = SERVER.replace("--no-enable", "--enable").replace("{batch}", "2")
    wanted = replace(spec(tmp_path, "llama"), name="vllm-server", command=command)
    engines.build(wanted, tmp_path / "engine")
    monkeypatch.setattr(server, "open_sensors", lambda gpu, boards, servers: [None])
    engine, _, _ = engines.open_device(wanted, tmp_path / "engine")
    try:
        ran = engine.run(256, 16)
        assert (ran.in_flight, ran.waves) in ((2, BATCH // 2), (None, 1))
        assert ("kv_capacity_unknown" in ran.flags) == (ran.in_flight is None)
        engine.run(256, 16)
        assert engine.reasons() == ()
        same = engine._prompts.as_text(BATCH, 256)
        monkeypatch.setattr(engine._prompts, "as_text", lambda requests, tokens: same[:requests])
        engine.run(256, 16)
        engine.run(256, 16)
        assert engine.reasons() == ("prompt_cached",)
    finally:
        engine.close()
