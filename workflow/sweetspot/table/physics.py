"""What a run can cost: bounds of power and energy from the data sheet of the board and the size of the model."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sweetspot.errors import SweetspotError
from sweetspot.gpus import find
from sweetspot.parallelism import Parallelism
from sweetspot.table.numbers import as_text
from sweetspot.table.quantities import Values
from sweetspot.table.schema import CELL, GROUP
from sweetspot.table.words import FACTS
from sweetspot.vocabulary import ONE_GPU

_BOUNDS: dict[str, Any] = FACTS["bounds"]


@cache
def _size(model: str) -> Sequence[float]:
    """The fewest parameters that a token may need, and the most that the model may have, by its name.

    "Qwen3-30B-A3B" is (3e9, 30e9), "Mixtral-8x7B" (7e9, 56e9); an unknown name gives the range of all models.
    """
    text = re.sub(r"[^a-z0-9.]+", " ", model.casefold())
    found = [float(count) * float(each) for count, each in re.findall(r"\b(\d+)x(\d+(?:\.\d+)?)b\b", text)]
    found += [float(number) for number in re.findall(r"(?:\b|[ax])(\d+(?:\.\d+)?)b\b", text)]
    found += [float(number) / 1e3 for number in re.findall(r"\b(\d+(?:\.\d+)?)m\b", text)]
    sizes: Sequence[float] = _BOUNDS["sizes"]
    least = min(found, default=0.0) / (_BOUNDS["sparse"] if found and min(found) > _BOUNDS["dense"] else 1.0)
    return (least * 1e9, max(found) * 1e9) if found else sizes


@cache
def _of(gpu: str, model: str) -> tuple[float, ...]:
    """Power of a board (low, high), of it and others (low, high); J per byte and FLOP (low, high), W; parameters."""
    board = find(gpu) if gpu else None
    if board is None:
        return (0.0, 0.0, *_BOUNDS["any_power_w"], *_BOUNDS["least"], *_BOUNDS["most"], *_size(model))
    watts = board.tdp_w
    peak = board.peak_flops.get("bfloat16") or board.peak_flops["float16"]
    costs = (watts / board.bandwidth_bytes_per_s, watts / peak)
    return (*(share * watts for share in _BOUNDS["of_tdp"]), 0.0, 0.0, *costs, *costs, watts, *_size(model))


def exceeded(known: Values, gpu: pl.Series, model: pl.Series) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows whose power, and whose energy, no such boards and models can have; what a row lacks is not judged."""
    names = pl.DataFrame({"gpu": as_text(gpu).fill_null(""), "model": as_text(model).fill_null("")})
    kinds = names.unique().with_row_index("_kind")
    kind = names.join(kinds, on=["gpu", "model"], how="left", maintain_order="left")["_kind"].to_numpy()
    of_kinds = np.array([_of(*names) for _, *names in kinds.iter_rows()] or [_of("", "")])
    each_low, each_high, all_low, all_high, byte_low, flop_low, byte, flop, watts, few, many = of_kinds[kind].T
    nothing = np.full(names.height, np.nan)
    count = np.nan_to_num(known.get("gpus", nothing), nan=1.0)
    batch, n, m, energy = (known[name] for name in (*CELL, "energy_j"))
    with np.errstate(all="ignore"):
        power = energy / known.get("duration_s", nothing)
        tokens, cached = batch * (n + m), batch * (n + m / 2) * _BOUNDS["cache_bytes"]
        least = 2 * few * (m * byte_low + tokens * flop_low)
        most = m * (2 * many + cached) * byte + 2 * many * tokens * flop
        low_j = np.fmax(_BOUNDS["fast"] * least, _BOUNDS["smallest_j_per_token"] * tokens)
        high_j = _BOUNDS["slow"] * most + count * watts * (m * _BOUNDS["pass_s"] + _BOUNDS["run_s"])
        odd_power = (power < count * each_low + all_low) | (power > count * each_high + all_high)
        return odd_power, (energy < low_j) | (energy > high_j)


def boards(labels: pl.Series) -> pl.Series:
    """The number of GPUs of each row by its `parallelism`; 1 if that is not understood, as in rows set aside."""
    counts, texts = {}, as_text(labels).fill_null(ONE_GPU)
    for label in texts.unique():
        with suppress(SweetspotError):
            counts[label] = float(Parallelism.parse(label or ONE_GPU).gpus)
    return texts.replace_strict(counts, default=1.0, return_dtype=pl.Float64)


def doubts(frame: pl.DataFrame) -> tuple[list[str], bool]:
    """What a user should check, one sentence each; and whether most valid rows are impossible."""
    found = []
    valid = frame.filter("valid").with_columns(_power=pl.col("energy_j") / pl.col("duration_s"))
    known: Values = {name: valid[name].cast(pl.Float64).to_numpy() for name in (*CELL, "energy_j", "duration_s")}
    known["gpus"] = valid["_gpus"].fill_null(boards(valid["parallelism"])).to_numpy()
    odd_power, odd_energy = exceeded(known, valid["gpu"], valid["model"])
    for row in valid.filter(odd_power).head(1).iter_rows(named=True):
        board = find(row["gpu"])
        named = f"{board.name} ({board.tdp_w:g} W) does not draw" if board else "no GPU draws"
        found.append(
            f"{odd_power.sum()} rows imply a power that {named}, first {row['_file']}, row {row['_row']}: "
            f"{row['energy_j']:g} J in {row['duration_s']:g} s is {row['_power']:.3g} W; is energy_j in joules "
            "(not Wh, kJ or mJ), for the whole batch (not one request) on one board, and duration_s in seconds?"
        )
    for row in valid.filter(odd_energy).head(1).iter_rows(named=True):
        each = row["energy_j"] / (row["batch"] * row["output_tokens"])
        found.append(
            f"{odd_energy.sum()} rows have an energy that such a model on such a board cannot need, first "
            f"{row['_file']}, row {row['_row']}: {row['energy_j']:.4g} J is {each:.2g} J per output token; is energy_j "
            "in joules (not Wh, kJ or mJ), for the whole batch?"
        )
    energy = pl.col("energy_j")
    cells = valid.group_by(*GROUP, *CELL, maintain_order=True).agg(_rows=pl.len(), _ratio=energy.max() / energy.min())
    differ = cells.filter(pl.col("_ratio") > _BOUNDS["repeats"])
    for row in differ.head(1).iter_rows(named=True):
        found.append(
            f"{differ.height} cells have repetitions that differ by more than a factor of {_BOUNDS['repeats']:g}, "
            f"first batch {row['batch']}, {row['input_tokens']} input and {row['output_tokens']} output tokens: "
            f"{row['_ratio']:.3g} times in {row['_rows']} repetitions"
        )
    found += (falling := _falling(valid))
    return found, bool(falling or (valid.height and (odd_power | odd_energy).mean() >= _BOUNDS["half"]))


def _falling(valid: pl.DataFrame) -> list[str]:
    """A sentence if a larger batch needs less energy in all: no batch does the work of a smaller one and more for less.

    Energies of one request fall so, and those of a batch whose lengths are sums over its requests.
    """
    same = [*GROUP, "input_tokens", "output_tokens"]
    means = valid.group_by(*same, "batch").agg(pl.col("energy_j").mean()).sort(*same, "batch")
    ends = means.group_by(*same, maintain_order=True).agg(
        pl.first("batch", "energy_j").name.suffix("_first"), pl.last("batch", "energy_j").name.suffix("_last")
    )
    ends = ends.filter(pl.col("batch_last") > pl.col("batch_first"))
    low = ends.filter(pl.col("energy_j_last") < _BOUNDS["falls"] * pl.col("energy_j_first"))
    if not low.height or low.height < _BOUNDS["half"] * ends.height:
        return []
    row = low.row(0, named=True)
    ends_j = [f"{row[f'energy_j_{end}']:.4g} J for batch {row[f'batch_{end}']:g}" for end in ("first", "last")]
    return [
        f"the energy falls as the batch grows: with {row['input_tokens']} input and {row['output_tokens']} output "
        f"tokens each, {' and '.join(ends_j)}; a larger batch of the same requests cannot need less. Is it the energy "
        "of one request (map the column to energy_per_request_j), or are the lengths sums over the batch (map them to "
        "batch_input_tokens and batch_output_tokens)?"
    ]
