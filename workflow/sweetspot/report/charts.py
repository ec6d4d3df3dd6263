"""The figures that compare models: sweet spots, best against worst, predicted against measured, accuracy."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sweetspot.predict.laws import LAWS
from sweetspot.report import style, words
from sweetspot.report.results import Results, ratios
from sweetspot.report.words import Group
from sweetspot.table.schema import rows_of

RASTER_ABOVE = 1500  # points; more of them as vectors would be larger than the rest of the page
Chart = tuple[str, str, str, Figure, pl.DataFrame]  # kind, title, caption, figure, its data


def overall(results: Results) -> Iterator[Chart]:
    """The figures over all groups that the results allow."""
    means, groups, names, label = results.means, results.groups, results.names, results.label
    held_out = results.held_out
    if any(spot["status"] == "interior" for group in groups for spot in group.get("sweet_spots", [])):
        yield _sweet_spots(groups, names, label)
    yield _ratios(means, groups, names, label)
    if held_out.height:
        yield _predicted(held_out, groups, names, label)
    errors = results.validation.filter(pl.col("mape_percent").is_not_null())
    if errors.height:
        yield _accuracy(errors, groups, names, label)


def _sweet_spots(groups: Sequence[Group], names: Sequence[str], label: str) -> Chart:
    interior = [
        (index, spot) for index, g in enumerate(groups) for spot in g["sweet_spots"] if spot["status"] == "interior"
    ]
    every = {spot["batch"] for _, spot in interior}
    batches = words.representative(every)
    shown = {index for index, spot in interior if spot["batch"] in batches}
    title = "Sweet spots: the reply length with the least energy per output token"
    caption = (
        f"m*(n) by each model's chosen law, at the measured prompt lengths whose m* lies inside the measured replies; "
        f"{len(shown)} of {len(groups)} models have one."
        f" {words.some('Batches', batches, every)}".rstrip()
        + style_words(names)
    )
    columns = style.columns(len(batches))
    fig = style.figure(style.WIDTH, 2.6 * -(-len(batches) // columns) if columns > 1 else 3.4, title, caption, label)
    axes = style.panels(fig, len(batches), columns, "input tokens", "m*, output tokens", sharex=True, sharey=True)
    for ax, batch in zip(axes, batches, strict=True):
        for index in sorted(shown):
            look = style.model_style(groups[index]["model"])
            line = sorted(
                (s["input_tokens"], s["output_tokens"]) for i, s in interior if i == index and s["batch"] == batch
            )
            if line:
                x, y = zip(*line, strict=True)
                ax.plot(x, y, color=look.colour, linestyle=look.line, marker=look.marker, markersize=4)
        ax.set(xscale="log", yscale="log", title=f"batch {batch}")
        style.length_axis(ax.xaxis, {s["input_tokens"] for _, s in interior})
        style.value_axis(ax.yaxis)
    model_legend(fig, groups, names, sorted(shown))
    sns.despine(fig)
    spots = pl.DataFrame([{"model": names[index], "law": groups[index]["law"], **spot} for index, spot in interior])
    return "sweet-spots", title, caption, fig, spots


def _ratios(means: pl.DataFrame, groups: Sequence[Group], names: Sequence[str], label: str) -> Chart:
    table = ratios(means)
    hues = style.ramp(table["batch"])
    parts = [(name, rows_of(table, group)) for group, name in zip(groups, names, strict=True)]
    parts = sorted((part for part in parts if part[1].height), key=lambda part: max(part[1]["ratio"]))
    title = "How much the lengths matter: worst over best cell"
    caption = (
        f"Energy per output token of the worst measured cell divided by that of the best, for one model and batch; "
        f"{means.height} cells. Dotted: 33.41, the largest ratio in the paper (its batch is unknown to us)."
    )
    fig = style.figure(style.WIDTH, 0.9 + 0.24 * len(parts), title, caption, label)
    ax = fig.subplots()
    for row, (_, part) in enumerate(parts):
        values = part["ratio"].to_list()
        ax.hlines(row, min(values), max(values), color=style.GRID, linewidth=3, zorder=1)
        for batch, ratio in part.select("batch", "ratio").iter_rows():
            ax.plot(ratio, row, "o", color=hues[batch], markersize=5.5)
    ax.axvline(words.PAPER_RATIO, color=style.INK, linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="worst / best energy per output token", ylim=(-0.6, len(parts) - 0.4))
    style.rows_axis(ax, [style.shortened(name) for name, _ in parts])
    ax.set_xlim(1, 1.15 * max(words.PAPER_RATIO, ax.get_xlim()[1] / 1.1))
    style.value_axis(ax.xaxis)
    handles = [Line2D([], [], color=colour, marker="o", linestyle="", label=str(b)) for b, colour in hues.items()]
    fig.legend(handles=handles, title="batch", loc="outside right center", handlelength=0.9)
    sns.despine(fig, left=True)
    return "ratios", title, caption, fig, table


def _predicted(held_out: pl.DataFrame, groups: Sequence[Group], names: Sequence[str], label: str) -> Chart:
    tokens = pl.col("batch") * pl.col("output_tokens")
    table = held_out.with_columns(x=pl.col("energy_j") / tokens, y=pl.col("predicted_j") / tokens)
    errors = table["ape_percent"].to_numpy()
    band = style.band(errors)
    title = "Predicted against measured, held-out cells"
    caption = (
        f"{table.height} cells, each predicted by its model's chosen law ({words.law_words(groups)}) fitted without "
        f"it (5-fold). Band: ±{band:g} %, with {100 * np.mean(errors <= band):.3g} % of the cells inside. MAPE over "
        f"all these cells: {words.percent(errors.mean())}." + style_words(names)
    )
    fig = style.figure(style.WIDTH, 3.0, title, caption, label)
    left, right = fig.subplots(1, 2, gridspec_kw={"width_ratios": (1, 1)})
    values = table.filter(pl.col("y") > 0).select("x", "y").to_numpy()
    low, high = values.min() / 1.15, values.max() * 1.15
    ends = np.array([low, high])
    left.fill_between(ends, (1 - band / 100) * ends, (1 + band / 100) * ends, color=style.GRID, alpha=0.6, linewidth=0)
    right.fill_between(ends, -band, band, color=style.GRID, alpha=0.6, linewidth=0)
    left.plot(ends, ends, color=style.INK, linewidth=0.8)
    right.axhline(0, color=style.INK, linewidth=0.8)
    raster = table.height > RASTER_ABOVE
    present = []
    for index, group in enumerate(groups):
        part = rows_of(table, group)
        if part.height:
            present.append(index)
            look = style.dots(group["model"], 0.4 if raster else 0.75, raster)
            left.scatter(part["x"], part["y"], zorder=3, **look)
            right.scatter(part["x"], 100 * (part["y"] / part["x"] - 1), zorder=3, **look)
    left.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), ylabel="predicted J per output token")
    right.set(xscale="log", xlim=(low, high), ylabel="predicted - measured, % of measured")
    for ax in (left, right):
        ax.set_xlabel("measured J per output token")
        ax.set_box_aspect(1)
        style.value_axis(ax.xaxis)
    style.value_axis(left.yaxis)
    model_legend(fig, groups, names, present)
    sns.despine(fig)
    return "predicted", title, caption, fig, held_out


def _accuracy(errors: pl.DataFrame, groups: Sequence[Group], names: Sequence[str], label: str) -> Chart:
    schemes = list(dict.fromkeys(errors["scheme"]))
    laws = [law for law in LAWS if law in set(errors["law"])]
    title = "Accuracy by law, in-sample and held-out"
    caption = (
        f"MAPE over cell means: one dot per model ({len(groups)}), bar and number for their mean. In-sample (shaded): "
        "cells that the fit has seen. Held-out: cells that it has not. Dashed: 1.79 %, the paper's mean over its 13 "
        "models; its scheme is unknown to us. tdp-time fits nothing; n/a: does not apply." + style_words(names)
    )
    fig = style.figure(style.WIDTH, 0.95 + 0.36 * len(laws), title, caption, label)
    axes = fig.subplots(1, len(schemes), squeeze=False, sharex=True, sharey=True)
    for ax, scheme in zip(axes.flat, schemes, strict=True):
        seen = scheme == "in-sample"
        ax.set_title(
            "IN-SAMPLE\ncells of the fit" if seen else f"HELD-OUT\n{scheme}", fontweight="bold" if seen else "normal"
        )
        if seen:
            ax.set_facecolor(style.GRID)
            ax.patch.set_alpha(0.6)
        for row, law in enumerate(laws):
            _accuracy_row(ax, row, errors.filter(pl.col("law") == law, pl.col("scheme") == scheme))
        ax.axvline(words.PAPER_MAPE_PERCENT, color=style.INK, linestyle="--", linewidth=0.9)
        ax.set(xscale="log", xlabel="MAPE, %")
        style.rows_axis(ax, laws)
        ax.set_ylim(len(laws) - 0.45, -0.65)
    low, high = axes[0, 0].get_xlim()
    axes[0, 0].set_xlim(low / 1.15, high * 1.6)
    style.value_axis(axes[0, 0].xaxis)
    sns.despine(fig, left=True)
    return "accuracy", title, caption, fig, errors


def _accuracy_row(ax: Any, row: int, part: pl.DataFrame) -> None:
    if not part.height:
        ax.text(0.98, row - 0.05, "n/a", transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=7.5)
        return
    for model, mape in part.select("model", "mape_percent").iter_rows():
        look = style.model_style(model)
        ax.plot(mape, row + 0.18, marker=look.marker, color=look.colour, markersize=3.4, alpha=0.75, linestyle="")
    mean = part["mape_percent"].to_numpy().mean()
    ax.plot(mean, row + 0.18, marker="|", markersize=12, markeredgewidth=2.2, color=style.INK)
    place = ax.get_yaxis_transform()  # at the right end, clear of the paper's line and of the dots below
    ax.text(0.98, row - 0.05, words.percent(mean), transform=place, ha="right", va="bottom", fontsize=7.5)


def style_words(names: Sequence[str]) -> str:
    """How models are distinguished, for a caption."""
    return " Colour: model family; marker: size." if len(names) > 1 else ""


def model_legend(fig: Figure, groups: Sequence[Group], names: Sequence[str], indices: Sequence[int]) -> None:
    """Add a legend of the models with these indices, beside the panels."""
    handles = []
    for index in indices:
        look, name = style.model_style(groups[index]["model"]), style.shortened(names[index])
        handles.append(Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, ms=4, label=name))
    fig.legend(handles=handles, loc="outside right center", handlelength=2.2)
