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

# Mean power over a run, as a share of the board's limit: it idles at a tenth with a model loaded.
_OF_TDP = (0.09, 1.25)
# Of unknown boards: lowest and highest power; joules per byte and per FLOP, at least and at most, and watts.
_ANY_POWER_W = (5.0, 3000.0)
_LEAST, _MOST = (1e-10, 0.4e-12), (4e-10, 3e-12, 1300.0)
# From four bits per weight, several tokens a pass and low power, to ten times a pass of 16 bits plus 80 ms of an
# engine that launches every kernel from Python, plus a second for the run.
_FAST, _SLOW, _PASS_S, _RUN_S = 0.04, 10.0, 0.08, 1.0
_SIZES = (0.3e9, 700e9)  # parameters of a model whose name does not say
_DENSE, _SPARSE = 90.0, 25.0  # a model above so many billions may be a mixture that activates this part of itself
_CACHE_BYTES = 0.5e6  # per token, of a model of 7 billion parameters without grouped heads
_SMALLEST_J_PER_TOKEN = 2e-4  # a model of 1 billion parameters needs ten times as much to prefill a token on an H100


class Limits(NamedTuple):
    """Lowest and highest power (W) and energy (J) of each row."""

    low_w: NDArray[np.float64]
    high_w: NDArray[np.float64]
    low_j: NDArray[np.float64]
    high_j: NDArray[np.float64]

    def exceeded(self, known: Values) -> NDArray[np.bool_]:
        """Rows whose power or energy no such board and model can have; what a row lacks is not judged."""
        energy = known["energy_j"]
        with np.errstate(all="ignore"):
            power = energy / known.get("duration_s", np.full(1, np.nan))
            wrong = (power < self.low_w) | (power > self.high_w)
            return np.asarray(wrong | (energy < self.low_j) | (energy > self.high_j))


@cache
def size(model: str) -> tuple[float, float]:
    """The fewest parameters that a token may need, and the most that the model may have, by its name.

    "Qwen3-30B-A3B" is (3e9, 30e9), "Mixtral-8x7B" (7e9, 56e9); an unknown name gives the range of all models.
    """
    text = re.sub(r"[^a-z0-9.]+", " ", model.casefold())
    found = [float(count) * float(each) for count, each in re.findall(r"\b(\d+)x(\d+(?:\.\d+)?)b\b", text)]
    found += [float(number) for number in re.findall(r"(?:\b|[ax])(\d+(?:\.\d+)?)b\b", text)]
    found += [float(number) / 1e3 for number in re.findall(r"\b(\d+(?:\.\d+)?)m\b", text)]
    if not found:
        return _SIZES
    return min(found) * 1e9 / (_SPARSE if min(found) > _DENSE else 1.0), max(found) * 1e9


@cache
def _of(gpu: str, model: str) -> tuple[float, ...]:
    """Power of a board (low, high), of it and others (low, high); J per byte and FLOP (low, high), W; parameters."""
    board, sizes = find(gpu) if gpu else None, size(model)
    if board is None:
        return (0.0, 0.0, *_ANY_POWER_W, *_LEAST, *_MOST, *sizes)
    powers = (*(share * board.tdp_w for share in _OF_TDP), 0.0, 0.0)
    peak = board.peak_flops.get("bfloat16") or board.peak_flops.get("float16") or np.nan
    byte, flop = board.tdp_w / board.bandwidth_bytes_per_s, board.tdp_w / peak
    own = (byte, flop) if np.isfinite(byte + flop) else None
    return (*powers, *(own or _LEAST), *((*own, board.tdp_w) if own else _MOST), *sizes)


def limits(known: Values, gpu: pl.Series, model: pl.Series) -> Limits:
    """Bounds for rows with these quantities (batch, input_tokens, output_tokens, gpus) on these boards."""
    names = {"gpu": _text(gpu), "model": _text(model)}
    kinds = pl.DataFrame(names).unique().with_row_index("_kind")
    kind = pl.DataFrame(names).join(kinds, on=["gpu", "model"], how="left", maintain_order="left")["_kind"].to_numpy()
    of_kinds = np.array([_of(*names) for _, *names in kinds.iter_rows()] or [_of("", "")])
    each_low, each_high, all_low, all_high, byte_low, flop_low, byte, flop, watts, few, many = of_kinds[kind].T
    count = np.nan_to_num(known.get("gpus", np.ones(1)), nan=1.0)
    batch, n, m = (known.get(name, np.full(1, np.nan)) for name in ("batch", "input_tokens", "output_tokens"))
    with np.errstate(all="ignore"):
        tokens, cached = batch * (n + m), batch * (n + m / 2) * _CACHE_BYTES
        least = 2 * few * (m * byte_low + tokens * flop_low)
        most = m * (2 * many + cached) * byte + 2 * many * tokens * flop
        return Limits(
            count * each_low + all_low,
            count * each_high + all_high,
            np.fmax(_FAST * least, _SMALLEST_J_PER_TOKEN * tokens),
            _SLOW * most + count * watts * (m * _PASS_S + _RUN_S),
        )


def _text(series: pl.Series) -> pl.Series:
    if series.dtype.is_nested() or series.dtype == pl.Binary:
        return pl.Series([""] * len(series), dtype=pl.String)
    return series.cast(pl.String).fill_null("")


def boards(labels: pl.Series) -> pl.Series:
    """The number of GPUs of each row by its `parallelism`; 1 if that is not understood, as in rows set aside."""
    counts = {}
    for label in _text(labels).unique():
        with suppress(SweetspotError):
            counts[label] = float(Parallelism.parse(label or ONE_GPU).gpus)
    return _text(labels).replace_strict(counts, default=1.0, return_dtype=pl.Float64)
