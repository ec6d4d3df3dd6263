"""The figures of a campaign: each as SVG for the page, PNG and a page of figures.pdf for papers, CSV for checking."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import polars.selectors as cs
import seaborn as sns
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LogNorm
from matplotlib.patches import Patch, Rectangle

from sweetspot.files import write_atomically
from sweetspot.report import charts, diagnostics, style, words
from sweetspot.report.charts import Chart
from sweetspot.report.results import Results, chosen_fits, fitted, is_of, ratios, slugs
from sweetspot.report.words import Group
from sweetspot.table.schema import CELL, rows_of

_HERO_WIDTH = 6.0  # stands beside the accuracy table
_DIGITS = 6  # significant digits in the CSV beside a figure: more than any sensor has
_PER_TOKEN = "J per output token"
_SHOWN = ["model", *CELL, "repetitions", "energy_per_output_token_j", "sd"]


def draw_all(results: Results, directory: Path) -> list[Path]:
    """Draw every figure that these results allow into `directory`; returns the files written.

    Without a valid row there is no figure. Every figure has its data beside it as CSV; a figure of simulated rows has
    SIMULATED in the drawing. figures.json lists the figures in the order of the pages of figures.pdf: `kind` names the
    plot, `group` is the index of its group in the results (null: all).
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn: list[dict[str, Any]] = []
    files: list[Path] = []
    pdf = directory / "figures.pdf"
    with matplotlib.rc_context(style.RC), PdfPages(pdf, metadata={"CreationDate": None, "Producer": None}) as pages:
        for name, group, (kind, title, caption, fig, shown) in _figures(results):
            drawn.append({"name": name, "kind": kind, "group": group, "title": title, "caption": caption})
            files += [*style.save(fig, directory, name, pages), directory / f"{name}.csv"]
            write_atomically(files[-1], shown.with_columns(cs.float().round_sig_figs(_DIGITS)).write_csv())
    index = directory / "figures.json"
    write_atomically(index, json.dumps(drawn, indent=1) + "\n")
    return [*files, pdf, index]


def _figures(results: Results) -> Iterator[tuple[str, int | None, Chart]]:
    """Each figure with its name and the index of its group."""
    if results.top is None:
        return
    hues = style.ramp(results.means["input_tokens"])
    for index, (group, name, slug) in enumerate(zip(results.groups, results.names, slugs(results.names), strict=True)):
        for chart in _of_group(results, group, name, hues):
            yield chart[0] if chart[0] == "hero" else f"{chart[0]}-{slug}", index, chart
    for chart in itertools.chain(charts.overall(results), diagnostics.overall(results)):
        yield chart[0], None, chart


def _of_group(results: Results, group: Group, name: str, hues: Mapping[int, str]) -> Iterator[Chart]:
    own, top = rows_of(results.means, group), results.top
    batches = words.representative(own["batch"])
    if top and is_of(top, group):
        yield _heat_map(group, name, "hero", own, results.plan, [top["batch"]])
    fit = f"Lines: law {group['law']}, fitted to these cells (in-sample)." if chosen_fits(group) else "No fit."
    points = f"Points: mean of the valid repetitions, bars ±1 SD. {fit}"
    caption = (
        f"{own.filter(pl.col('batch').is_in(batches)).height} cells. {points} "
        f"{words.some('Batches', batches, own['batch'])} Each panel has its own vertical scale."
    )
    yield _lines(group, own, "curves", batches, f"{name}: energy against reply length", caption, hues)
    yield _heat_map(group, name, "heatmap", own, results.plan, batches)
    if own["batch"].n_unique() > 1:
        replies = words.representative(own["output_tokens"], 3)
        caption = (
            f"{own.filter(pl.col('output_tokens').is_in(replies)).height} cells, {own['batch'].n_unique()} batches. "
            + points
            + (f" Panels: {len(replies)} of {own['output_tokens'].n_unique()} reply lengths." * (len(replies) > 2))
        )
        yield _lines(group, own, "batch", replies, f"{name}: energy against batch", caption, hues)


def _lines(
    group: Group, own: pl.DataFrame, kind: str, panels: list[int], title: str, caption: str, hues: Mapping[int, str]
) -> Chart:
    """Cells and law against the reply length, in a panel for each batch ("curves"), or the other way round."""
    curves = kind == "curves"
    panel, x = ("batch", "output_tokens") if curves else ("output_tokens", "batch")
    columns = style.columns(len(panels))
    height = 2.7 if not curves else 2.5 * -(-len(panels) // columns) if columns > 1 else 3.3
    fig = style.figure(style.WIDTH, height, title, caption, words.source_label(own["source"]))
    label = "output tokens" if curves else "batch (requests in flight)"
    axes = style.panels(fig, len(panels), columns, label, _PER_TOKEN, sharex=curves, sharey=not curves)
    smooth = curves or any(fit["batch"] is None for fit in chosen_fits(group))
    for ax, value in zip(axes, panels, strict=True):
        part = own.filter(pl.col(panel) == value)
        for n, line in sorted((key[0], frame) for key, frame in part.group_by("input_tokens")):
            line = line.sort(x)
            ax.errorbar(
                line[x],
                line["energy_per_output_token_j"],
                yerr=line["sd"].fill_null(0.0),
                color=hues[n],
                label=str(n),
                fmt="o",
                markersize=3.2,
                elinewidth=0.9,
                capsize=1.8,
                capthick=0.9,
            )
            places = np.geomspace(line[x][0], line[x][-1], 60 if curves else 40) if smooth else line[x].to_list()
            law = [fitted(group, value, n, at) if curves else fitted(group, at, n, value) for at in places]
            if None not in law:
                ax.plot(places, law, color=hues[n], linewidth=1.2)
        ax.set(xscale="log", yscale="log", title=f"batch {value}" if curves else f"{value} output tokens")
        style.length_axis(ax.xaxis, own[x])
        style.value_axis(ax.yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    handles = [Patch(color=handle.lines[0].get_color()) for handle in handles]
    place: dict[str, Any] = {"loc": "outside right center", "handlelength": 0.9, "handleheight": 0.9}
    fig.legend(handles[::-1], labels[::-1], title="input\ntokens", **place)
    sns.despine(fig)
    return kind, title, caption, fig, own.select(_SHOWN)


def _heat_map(
    group: Group, name: str, kind: str, own: pl.DataFrame, plan: pl.DataFrame | None, batches: list[int]
) -> Chart:
    grid = own.select(CELL)
    if plan is not None:
        planned = plan.filter(pl.col("model") == group["model"]).select(CELL)
        grid = pl.concat([grid, planned.cast(pl.Int64)]).unique()
    inputs, outputs = sorted(set(grid["input_tokens"])), sorted(set(grid["output_tokens"]))
    shown = own.filter(pl.col("batch").is_in(batches))
    missing = len(inputs) * len(outputs) * len(batches) - shown.height
    spots = [spot for spot in group.get("sweet_spots", []) if spot["batch"] in batches]
    inside = any(spot["status"] == "interior" for spot in spots)
    title = f"{name}: {_PER_TOKEN}" + (f", batch {batches[0]}" if len(batches) == 1 else "")
    caption = (
        f"{shown.height} cells, mean of the valid repetitions. Colour: ratio to that batch's best cell (log scale). "
        + (f"Line: sweet spot m*(n) by law {group.get('law')}, inside the measured range. " if inside else "")
        + ("" if inside or not spots else "No sweet spot is identified inside the measured range. ")
        + (f"Hatched: {missing} without a value (skipped, or no valid row). " if missing else "")
        + (words.some("Batches", batches, own["batch"]) if kind != "hero" else "")
    ).strip()
    width = _HERO_WIDTH if kind == "hero" else style.WIDTH
    columns = style.columns(len(batches), 16 / len(outputs))  # 16 cells side by side leave room for numbers
    rows = -(-len(batches) // columns)
    cell = ((width - 1.7) / columns - 0.08) / len(outputs)  # its width in inches
    longest = max(len(style.shown(value)) for value in shown["energy_per_output_token_j"])
    size = min(8.0, 72 * cell / max(longest, 4) / 0.64)
    tallest = 0.42 if columns == 1 else 0.36
    if kind == "hero":
        tallest = min(0.5, 2.6 / len(inputs))  # as high as the sentences and the table beside it
    height = min(max(cell, 0.2), tallest) * len(inputs) + 0.55
    fig = style.figure(width, height * rows + 0.1, title, caption, words.source_label(own["source"]))
    axes = style.panels(fig, len(batches), columns, "output tokens", "input tokens", sharey=True)
    norm = LogNorm(1, max(2.0, *ratios(shown)["ratio"]))
    for ax, batch in zip(axes, batches, strict=True):
        _heat_panel(ax, shown.filter(pl.col("batch") == batch), inputs, outputs, norm, size)
        ridge = [spot for spot in spots if spot["batch"] == batch and spot["status"] == "interior"]
        _ridge(ax, ridge, inputs, outputs)
        ax.set_title(f"batch {batch}" if len(batches) > 1 else "")
    bar = fig.colorbar(axes[0].collections[0], ax=axes, aspect=25 * rows, pad=0.02, fraction=0.05)
    bar.set_label("× best cell of the batch")
    bar.outline.set_visible(False)
    style.value_axis(bar.ax.yaxis)
    return kind, title, caption, fig, own.select(_SHOWN)


def _heat_panel(ax: Any, part: pl.DataFrame, inputs: list[int], outputs: list[int], norm: LogNorm, size: float) -> None:
    values = np.full((len(inputs), len(outputs)), np.nan)
    for n, m, value in part.select("input_tokens", "output_tokens", "energy_per_output_token_j").iter_rows():
        values[inputs.index(n), outputs.index(m)] = value
    numbers = np.array([[style.shown(value) if np.isfinite(value) else "" for value in row] for row in values])
    labels = {"xlabel": ax.get_xlabel(), "ylabel": ax.get_ylabel()}  # seaborn removes them
    sns.heatmap(
        values / np.nanmin(values),
        norm=norm,
        cmap=style.HEAT,
        annot=numbers if size >= 4.5 else False,
        fmt="",
        annot_kws={"fontsize": size, "va": "bottom"},
        linewidths=0.5,
        linecolor="white",
        cbar=False,
        ax=ax,
        xticklabels=outputs,
        yticklabels=inputs,
    )
    for text in ax.texts:
        column, row = (int(place) for place in text.get_position())
        text.set_color(style.readable_on(style.HEAT(norm(values[row, column] / np.nanmin(values)))))
    for row, column in zip(*np.nonzero(np.isnan(values)), strict=True):
        ax.add_patch(Rectangle((column, row), 1, 1, hatch="////", facecolor="none", edgecolor=style.MUTED, linewidth=0))
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(**labels, ylim=(0, len(inputs)))  # short prompts at the bottom


def _ridge(ax: Any, spots: list[dict[str, Any]], inputs: list[int], outputs: list[int]) -> None:
    """The line m*(n) over the cells of a heat map, placed between cell centres by the logarithm of the length."""
    if not spots or len(outputs) < 2:
        return
    spots = sorted(spots, key=lambda spot: int(spot["input_tokens"]))
    centres = np.arange(len(outputs)) + 0.5
    x = np.interp(np.log([spot["output_tokens"] for spot in spots]), np.log(outputs), centres)
    y = [inputs.index(spot["input_tokens"]) + 0.25 for spot in spots]  # below the numbers
    ax.plot(x, y, color="#0b6bcb", linewidth=1, alpha=0.5)
    ax.plot(x, y, color="#0b6bcb", linestyle="", marker="D", markersize=5, markeredgecolor="white")
