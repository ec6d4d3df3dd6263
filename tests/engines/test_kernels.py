"""Kernel times that NVIDIA measured: the tables, how they are compiled, and the passes composed of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import compile_kernels
import polars as pl
import pytest

from simulation import ARCHITECTURES, H100
from sweetspot import models
from sweetspot.architecture import Architecture
from sweetspot.engines import EngineSpec, kernels, simulated

LLAMA = models.load(ARCHITECTURES / "llama-3.1-8b.json")


def changed(**sizes: Any) -> Architecture:
    """LLaMA with other sizes of its layers."""
    return replace(LLAMA, blocks=(replace(LLAMA.blocks[0], **sizes),))


# Seconds of a static batch (batch, input and output tokens) of Llama 3.1 8B, as AIConfigurator 0.12.0 (Apache-2.0)
# composes them from the same tables.
COMPOSED = {
    (1, 64, 64): 0.4185627,
    (1, 4096, 64): 0.5173800,
    (8, 1024, 64): 0.6252965,
    (32, 512, 64): 0.8333690,
    (128, 128, 64): 0.8708943,
}


@pytest.fixture
def h100() -> kernels.Kernels:
    found = kernels.load(H100.name, "bfloat16")
    assert found
    return found


@pytest.mark.parametrize("run", COMPOSED, ids=str)
def test_passes_take_as_long_as_nvidia_composes_them(h100: kernels.Kernels, run: tuple[int, int, int]) -> None:
    batch, n, m = run
    total_s = h100.dense_s(LLAMA, batch * n, batch) + h100.prefill_attention_s(LLAMA, batch, n)
    total_s += (m - 1) * (h100.dense_s(LLAMA, batch, batch) + h100.decode_attention_s(LLAMA, batch, n + m / 2))
    assert total_s == pytest.approx(COMPOSED[run], rel=0.01)


def test_the_steps_of_tiles_are_in_the_times(h100: kernels.Kernels) -> None:
    """One row more than a tile costs a whole one, as no smooth law has it; a smaller step costs nothing."""
    inside, edge, beyond = (h100.matmul_s(m, 4096, 4096) for m in (112, 128, 129))
    assert beyond / edge > 1.1
    assert edge / inside < 1.02


def test_no_size_is_faster_than_the_board_and_larger_ones_take_longer(h100: kernels.Kernels) -> None:
    rows = (1, 512, 4096, 8192)
    for n, k in ((6144, 4096), (28672, 4096), (4096, 14336), (256000, 3584)):
        times = [h100.matmul_s(m, n, k) for m in rows]
        assert times == sorted(times)
        for m, seconds in zip(rows, times, strict=True):
            assert seconds > 2 * m * n * k / H100.peak_flops["bfloat16"]
            assert seconds > 2 * n * k / H100.bandwidth_bytes_per_s


def test_beyond_the_tables_times_grow_with_the_roofline(h100: kernels.Kernels) -> None:
    assert h100.matmul_s(1, 131072, 4096) == pytest.approx(2 * h100.matmul_s(1, 65536, 4096), rel=0.01)


def test_a_sliding_window_bounds_the_attention(h100: kernels.Kernels) -> None:
    windowed = changed(window=1024)
    for attention in (h100.prefill_attention_s, h100.decode_attention_s):
        assert attention(windowed, 8, 1000) == attention(LLAMA, 8, 1000)
        assert attention(windowed, 8, 8192) < attention(LLAMA, 8, 8192) / 3


@pytest.mark.parametrize(("board", "precision"), [("NVIDIA L4", "bfloat16"), (H100.name, "fp8"), ("none", "bfloat16")])
def test_what_was_not_measured_has_no_kernels(board: str, precision: str) -> None:
    assert kernels.load(board, precision) is None


def test_a_model_costs_the_same_under_any_name() -> None:
    specs = [
        EngineSpec("simulated", replace(LLAMA, name=name), "bfloat16", "none", H100.name, 4, 0, 0, 0.9, 1)
        for name in ("one", "other")
    ]
    assert simulated.expected(specs[0], 256, 64) == simulated.expected(specs[1], 256, 64)


def test_a_head_size_outside_the_tables_is_not_covered(h100: kernels.Kernels) -> None:
    assert h100.covers(LLAMA)
    assert not h100.covers(changed(head_size=512))


def wheel(path: Path, device: str = "NVIDIA L4") -> Path:
    """An unpacked wheel with two points for every axis of every table; returns the directory of the board."""
    (path / "aiconfigurator_core-9.9.dist-info").mkdir(parents=True)
    data = path / "aiconfigurator_core/systems/data/l4"
    common = {"device": device, "version": "7.7"}
    product = [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": 0.001 * m * n * k / 64}
        for dtype in ("bfloat16", "fp8")
        for m, n, k in ((m, n, k) for m in (1, 64) for n in (64, 128) for k in (64, 128))
    ]
    attention = [
        {"batch_size": b, "num_heads": h, "num_key_value_heads": kv, "head_dim": 64, "window_size": window}
        | {"isl": n, "step": 1, "latency": 0.002 * b * n, "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
        for b in (1, 2)
        for h, kv in ((2, 2), (4, 2), (4, 4), (8, 2))
        for n in (1, 15)
        for window in (0, 128)
        if (b, n) != (2, 15)
    ]
    for kernel, rows in (("gemm", product), ("context_attention", attention), ("generation_attention", attention)):
        place = data / f"any/trtllm/7.7/{kernel}_perf.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame([common | row for row in rows]).write_parquet(place)
    return data


def test_another_board_is_compiled_from_an_unpacked_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_kernels.main([str(wheel(tmp_path)), str(tmp_path / "out")]) == 0
    assert "aiconfigurator-core-9.9, l4, TensorRT-LLM 7.7" in capsys.readouterr().out
    first = (tmp_path / "out/nvidia-l4.json.gz").read_bytes()
    compile_kernels.main([str(tmp_path / "aiconfigurator_core/systems/data/l4"), str(tmp_path / "out")])
    assert (tmp_path / "out/nvidia-l4.json.gz").read_bytes() == first, "the same tables give the same file"
    monkeypatch.setattr(kernels, "DIRECTORY", tmp_path / "out")
    kernels.load.cache_clear()
    found = kernels.load("NVIDIA L4", "float16")
    kernels.load.cache_clear()
    assert found
    assert found.matmul_s(64, 128, 64) == pytest.approx(0.001 * 64 * 128 * 1e-3)
    small = changed(count=1, heads=4, kv_heads=2, head_size=64, value_size=64)
    assert found.prefill_attention_s(small, 1, 15) == pytest.approx(0.03e-3)
    assert found.decode_attention_s(small, 1, 16) == pytest.approx(0.03e-3)


def test_what_is_not_a_board_of_the_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_kernels.main([str(tmp_path), str(tmp_path)]) == 1
    assert "no gemm_perf.parquet" in capsys.readouterr().err
    assert compile_kernels.main([str(wheel(tmp_path, device="TPU")), str(tmp_path)]) == 1
    assert "board 'TPU' is not known" in capsys.readouterr().err
