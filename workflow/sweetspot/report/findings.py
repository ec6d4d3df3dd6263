"""The three sentences that open the report: how much lengths matter, where the sweet spot is, how well a law predicts.

Intervals are 95 %: energies over repetitions, sweet spots over the fit's coefficients, errors over cells.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from sweetspot.fit.solve import t_quantile
from sweetspot.fit.sweet_spots import plateau
from sweetspot.report import words
from sweetspot.report.results import Results, is_of, of_chosen_law
from sweetspot.report.words import Group, number, percent, tokens
from sweetspot.table.schema import CELL, GROUP

Span = tuple[float, float]


def sentences(results: Results) -> list[str]:
    """Three sentences, or none without a valid row."""
    means, groups, names, top = results.means, results.groups, results.names, results.top
    if top is None:
        return []
    name, group = next(
        ((name, group) for name, group in zip(names, groups, strict=True) if is_of(top, group)),
        (top["model"], {}),
    )
    own = means.filter(pl.col(key) == top[key] for key in (*GROUP, "batch")).sort("energy_per_output_token_j")
    best, worst = own.row(0, named=True), own.row(-1, named=True)
    half, factor = _half(best, worst), _with(top["ratio"], None)
    if half is not None:
        factor = _with(top["ratio"], (top["ratio"] * math.exp(-half), top["ratio"] * math.exp(half)))
    return [
        f"{name} at batch {top['batch']} needs {_energy(best)} J per output token at best ({_lengths(best)}) "
        f"and {_energy(worst)} J at worst ({_lengths(worst)}): the lengths alone change it by a factor of {factor}"
        + (f", the largest of {len(groups)} models." if len(groups) > 1 else "."),
        _spot_sentence(group, top["batch"], groups),
        _accuracy_sentence(groups, results.validation, results.held_out),
    ]


def _lengths(cell: Mapping[str, Any]) -> str:
    return f"{cell['input_tokens']:,} tokens in, {cell['output_tokens']:,} out"


def _energy(cell: Mapping[str, Any]) -> str:
    energy, half = cell["energy_per_output_token_j"], _half(cell)
    return _with(energy, None if half is None else (energy * (1 - half), energy * (1 + half)))


def _half(*cells: Mapping[str, Any]) -> float | None:
    """Half-width of the interval of a mean, or of a ratio of two, relative to it; None for a single repetition."""
    if any(not cell["sd"] or cell["repetitions"] < 2 for cell in cells):
        return None
    errors = [cell["sd"] / math.sqrt(cell["repetitions"]) / cell["energy_per_output_token_j"] for cell in cells]
    return t_quantile(min(cell["repetitions"] for cell in cells) - 1) * math.hypot(*errors)


def _spot_interval(spot: Mapping[str, Any]) -> Span:
    """The 95 % confidence set of a sweet spot; an unknown end is 0 or inf."""
    low, high = spot["output_tokens_low"], spot["output_tokens_high"]
    return 0.0 if low is None else low, math.inf if high is None else high


def _spot_sentence(group: Group, batch: int, groups: Sequence[Group]) -> str:
    every = [spot for one in groups for spot in one.get("sweet_spots", [])]
    inside = [spot["output_tokens"] for spot in every if spot["status"] == "interior"]
    if all(spot["status"] == "not identified" for spot in every):
        return "The measured cells do not determine the sweet spot, the reply length with the least energy per token."
    if not inside:
        return "No fitted law has a sweet spot, a reply length with least energy per token, in the measured lengths."
    own = [spot for spot in group.get("sweet_spots", []) if spot["status"] == "interior" and spot["batch"] == batch]
    here = sorted(own, key=lambda spot: spot["input_tokens"])
    over = "models and batches" if len(groups) > 1 else "batches and prompts"
    span = f"across all {over} it lies between {tokens(min(inside))} and {tokens(max(inside))} tokens."
    if not here:
        return f"At that batch no sweet spot lies inside the measured lengths; {span}"
    ends = " and ".join(
        f"{_with(spot['output_tokens'], _spot_interval(spot), tokens)}{unit}{plateau(spot)} "
        f"{words} {spot['input_tokens']:,}"
        for unit, words, spot in zip(
            (" tokens", ""), ("after a prompt of", "after one of"), (here[0], *here[1:][-1:]), strict=False
        )
    )
    meaning = "the reply length with the least energy per token"
    return f"By the fitted law {group['law']}, its sweet spot, {meaning}, is {ends}; {span}"


def _accuracy_sentence(groups: Sequence[Group], validation: pl.DataFrame, held_out: pl.DataFrame) -> str:
    chosen = of_chosen_law(validation, groups).filter(pl.col("mape_percent").is_not_null())
    seen, unseen = (
        chosen.filter(pl.col("scheme") == scheme)["mape_percent"].to_list() for scheme in ("in-sample", "5-fold")
    )
    if not unseen:
        return "How well a law predicts is unknown: too few cells to hold any out."
    of = f"mean of {len(unseen)} models, worst {percent(max(unseen))}" if len(unseen) > 1 else "one model"
    in_sample = (
        f"in-sample, on the cells it was fitted to, {percent(sum(seen) / len(seen))}" if seen else "in-sample unknown"
    )
    mean = sum(unseen) / len(unseen)
    return (
        f"The chosen law ({words.law_words(groups)}) predicts cells that its fit has not seen with a MAPE of "
        f"{_with(mean, _error_interval(mean, held_out))} % (held-out, 5-fold; {of}); {in_sample}."
    )


def _error_interval(mean: float, held_out: pl.DataFrame) -> Span | None:
    """Interval of the mean over models of their mean errors, from the scatter of the cells' errors."""
    of_models = held_out.group_by(*GROUP).agg(pl.col("ape_percent").std(), pl.len().alias("cells"))
    if held_out.select(*GROUP, *CELL).is_duplicated().any() or of_models["ape_percent"].null_count():
        return None
    error = float(np.sqrt(np.sum(of_models["ape_percent"].to_numpy() ** 2 / of_models["cells"].to_numpy())))
    half = t_quantile(math.inf) * error / of_models.height
    return max(mean - half, 0.0), mean + half


def _with(value: float, span: Span | None, words: Callable[[float], str] = number) -> str:
    """A number with its interval: "7.68 [7.65, 7.71]"."""
    if span is None:
        return words(value)
    low, high = (words(end) if math.isfinite(end) else "∞" for end in span)
    return f"{words(value)} [{low}, {high}]"
