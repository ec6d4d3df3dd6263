"""Compile the times of TensorRT-LLM's kernels that NVIDIA measured on a board for the simulated device.

They come from an unpacked wheel of aiconfigurator-core:
`python benchmarks/compile_kernels.py aiconfigurator_core/systems/data/h200_sxm workflow/sweetspot/engines/kernel_times`
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweetspot import gpus
from sweetspot.engines import kernels
from sweetspot.errors import SweetspotError
from sweetspot.files import write_atomically

if TYPE_CHECKING:
    import polars as pl

_PRECISION = "bfloat16"
_LICENCE = {
    "SPDX-FileCopyrightText": "Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES. All rights reserved.",
    "SPDX-License-Identifier": "Apache-2.0",
}
_CHANGES = "only bfloat16 without sliding windows; times in microseconds, rounded to 4 digits"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="directory of the board in the unpacked wheel")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the file that is written")
    options = parser.parse_args(arguments)
    try:
        tables = compile_tables(options.data)
    except SweetspotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = options.out / kernels.file_name(tables["gpu"])
    text = json.dumps(tables, separators=(",", ":")) + "\n"
    write_atomically(path, gzip.compress(text.encode(), mtime=0))
    print(f"wrote {path}: {tables['source']}")
    return 0


def compile_tables(data: Path) -> dict[str, Any]:
    """The tables of the board whose measurements lie in `data`, as kernel_times/README.md describes them.

    Raises SweetspotError if a table is missing, or if its board is not known.
    """
    import polars as pl

    product = _read(data, "gemm").filter(gemm_dtype=_PRECISION)
    plain = (
        (pl.col("window_size") == 0) & (pl.col("attn_dtype") == _PRECISION) & (pl.col("kv_cache_dtype") == _PRECISION)
    )
    attention = {name: _read(data, f"{name}_attention").filter(plain) for name in ("context", "generation")}
    device, version = product.select("device", "version").row(0)
    gpu = gpus.find(device)
    if gpu is None:
        raise SweetspotError(f"{data}: board {device!r} is not known; known: {', '.join(gpus.names())}")
    return {
        **_LICENCE,
        "source": f"{_package(data)}, {data.name}, TensorRT-LLM {version}",
        "changes": _CHANGES,
        "gpu": gpu.name,
        "precision": _PRECISION,
        "matmul": _grid(product, "n", "k", "m"),
        "prefill_attention": _attention(attention["context"].with_columns(tokens="isl")),
        "decode_attention": _attention(attention["generation"].with_columns(tokens=pl.col("isl") + pl.col("step"))),
    }


def _read(data: Path, kernel: str) -> "pl.DataFrame":
    import polars as pl

    found = sorted(data.glob(f"*/trtllm/*/{kernel}_perf.parquet"))
    if not found:
        raise SweetspotError(
            f"{data}: no {kernel}_perf.parquet of TensorRT-LLM; name the directory of a board in an unpacked wheel of "
            "aiconfigurator-core, for example aiconfigurator_core/systems/data/h100_sxm"
        )
    return pl.read_parquet(found[-1])


def _package(data: Path) -> str:
    """Name and version of the package, from the directory beside it in the unpacked wheel."""
    found = sorted(data.resolve().parents[3].glob("aiconfigurator_core-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").replace("_", "-", 1) if found else "aiconfigurator-core"


def _attention(rows: "pl.DataFrame") -> list[dict[str, Any]]:
    """One table for each head size and number of key/value heads; 0 of them: as many as heads."""
    import polars as pl

    kv_heads, heads = pl.col("num_key_value_heads"), pl.col("num_heads")
    rows = rows.with_columns(
        heads=heads,
        kv_heads=pl.when(kv_heads == heads).then(0).otherwise(kv_heads),
        head_size="head_dim",
        requests="batch_size",
    )
    return [
        {"kv_heads": key[0], "head_size": key[1], **_grid(group, "heads", "requests", "tokens")}
        for key, group in sorted(rows.group_by("kv_heads", "head_size"))
    ]


def _grid(rows: "pl.DataFrame", *axes: str) -> dict[str, Any]:
    """The values of three axes and the microseconds at each of their points; None where nothing was measured."""
    values = [sorted(rows[axis].unique()) for axis in axes]
    at = {(i, j, k): float(f"{1000 * ms:.4g}") for i, j, k, ms in rows.select(*axes, "latency").iter_rows()}
    us = [[[at.get((i, j, k)) for k in values[2]] for j in values[1]] for i in values[0]]
    return {**dict(zip(axes, values, strict=True)), "us": us}


if __name__ == "__main__":
    sys.exit(main())
