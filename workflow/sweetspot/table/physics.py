"""What a run can cost: bounds of power and energy from the data sheet of the board and the size of the model."""

import re
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sweetspot.errors import SweetspotError
from sweetspot.gpus import find
from sweetspot.parallelism import Parallelism
from sweetspot.table.quantities import Values
from sweetspot.vocabulary import ONE_GPU

# Power of any GPU, or of several; anything outside is a wrong unit.
_PLAUSIBLE_POWER_W = (5.0, 3000.0)
_OF_TDP = (
    0.09,
    1.25,
)  # mean power over a run, as a share of the board's limit: it idles at a tenth with a model loaded
# Joules per byte read and per FLOP, and watts, of the known boards: an unknown one lies between.
_LEAST, _MOST = (1e-10, 0.4e-12, 50.0), (4e-10, 3e-12, 1300.0)
# From four bits per weight, several tokens a pass and low power, to ten times a pass of 16 bits plus 80 ms of an engine
# that launches every kernel from Python, plus a second for the run.
_FAST, _SLOW, _PASS_S, _RUN_S = 0.04, 10.0, 0.08, 1.0
_SIZES = (0.3e9, 700e9)  # parameters of a model whose name does not say
_CACHE_BYTES = 0.5e6  # per token, of a model of 7 billion parameters without grouped heads
_SMALLEST_J_PER_TOKEN = 2e-4  # a model of 1 billion parameters needs ten times as much to prefill a token on an H100


class Limits(NamedTuple):
    """Lowest and highest power (W) and energy (J) of each row."""

    low_w: NDArray[np.float64]
    high_w: NDArray[np.float64]
    low_j: NDArray[np.float64]
    high_j: NDArray[np.float64]


@cache
def size(model: str) -> tuple[float, float]:
    """The fewest parameters that a token may need, and the most that the model may have, by its name.

    "Qwen3-30B-A3B" is (3e9, 30e9), "Mixtral-8x7B" (7e9, 56e9); an unknown name gives the range of all models.
    """
    text = re.sub(r"[^a-z0-9.]+", " ", model.casefold())
    experts = [float(count) * float(each) for count, each in re.findall(r"\b(\d+)x(\d+(?:\.\d+)?)b\b", text)]
    plain = [float(number) for number in re.findall(r"(?:\b|[ax])(\d+(?:\.\d+)?)b\b", text)]
    small = [float(number) / 1e3 for number in re.findall(r"\b(\d+(?:\.\d+)?)m\b", text)]
    found = [*experts, *plain, *small]
    return (min(found) * 1e9, max(found) * 1e9) if found else _SIZES


def limits(known: Values, gpu: pl.Series, model: pl.Series) -> Limits:
    """Bounds for rows with these quantities (batch, input_tokens, output_tokens, gpus) on these boards."""
    names = {"gpu": gpu, "model": model}
    nothing = pl.Series([""] * len(gpu), dtype=pl.String)
    keys = pl.DataFrame(
        {
            key: nothing if each.dtype.is_nested() or each.dtype == pl.Binary else each.cast(pl.String)
            for key, each in names.items()
        }
    ).fill_null("")
    kinds = keys.unique().with_row_index("_kind")
    kind = keys.join(kinds, on=["gpu", "model"], how="left", maintain_order="left")["_kind"].to_numpy()
    each = np.array([_of(name, of) for _, name, of in kinds.iter_rows()]).reshape(len(kinds), -1)[kind].T
    low_w, high_w, (byte_low, flop_low, _, byte_high, flop_high, watts), (few, many) = (
        each[0],
        each[1],
        each[2:8],
        each[8:10],
    )
    count = np.nan_to_num(known.get("gpus", np.ones(1)), nan=1.0)
    batch, n, m = (known.get(name, np.full(1, np.nan)) for name in ("batch", "input_tokens", "output_tokens"))
    tokens = batch * (n + m)
    least = m * 2 * few * byte_low + tokens * 2 * few * flop_low
    cache = batch * (n + m / 2) * _CACHE_BYTES
    most = m * (2 * many + cache) * byte_high + tokens * 2 * many * flop_high
    high_j = _SLOW * most + count * watts * (m * _PASS_S + _RUN_S)
    high_w = np.where(np.isinf(watts) | (high_w == _PLAUSIBLE_POWER_W[1]), high_w, high_w * count)
    low_w = np.where(low_w == _PLAUSIBLE_POWER_W[0], low_w, low_w * count)
    return Limits(low_w, high_w, np.fmax(_FAST * least, _SMALLEST_J_PER_TOKEN * tokens), high_j)


@cache
def _of(gpu: str, model: str) -> tuple[float, ...]:
    board, (few, many) = find(gpu) if gpu else None, size(model)
    if board is None:
        return (*_PLAUSIBLE_POWER_W, *_LEAST, *_MOST, few, many)
    peak = board.peak_flops.get("bfloat16") or board.peak_flops.get("float16") or np.nan
    byte, flop = board.tdp_w / board.bandwidth_bytes_per_s, board.tdp_w / peak
    own = (byte, flop, board.tdp_w) if np.isfinite(byte + flop) else None
    return (*(share * board.tdp_w for share in _OF_TDP), *(own or _LEAST), *(own or _MOST), few, many)


def impossible(known: Values, within: Limits) -> NDArray[np.bool_]:
    """Rows whose power or energy no such board and model can have; a row that lacks either is not judged by it."""
    energy, duration = known["energy_j"], known.get("duration_s", np.full(1, np.nan))
    with np.errstate(all="ignore"):
        power = energy / duration
        wrong = (power < within.low_w) | (power > within.high_w)
        return np.asarray(wrong | (energy < within.low_j) | (energy > within.high_j))


def boards(labels: pl.Series) -> pl.Series:
    """The number of GPUs of each row by its `parallelism`; 1 if that is not understood, as in rows set aside."""
    counts = {}
    for label in labels.cast(pl.String).unique():
        with suppress(SweetspotError):
            counts[label] = float(Parallelism.parse(label or ONE_GPU).gpus)
    return labels.cast(pl.String).replace_strict(counts, default=1.0, return_dtype=pl.Float64)
