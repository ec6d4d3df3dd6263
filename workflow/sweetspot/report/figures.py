"""The figures of a campaign for papers: each as SVG and PNG and a page of figures.pdf, with its data as CSV."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import polars.selectors as cs
import seaborn as sns
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sweetspot.files import write_atomically
from sweetspot.report import style, words
from sweetspot.report.results import Results, chosen_fits, fitted, ratios, slugs
from sweetspot.report.words import Group
from sweetspot.table.schema import CELL, GROUP, rows_of

_DIGITS = 6  # significant digits in the CSV beside a figure: more than any sensor has
_PER_TOKEN = "J per output token"
_SHOWN = ["model", *CELL, "repetitions", "energy_per_output_token_j", "sd"]
_AXES = {**dict.fromkeys(CELL), "temperature_c": "GPU temperature, °C", "time_s": "time in the session, s"}
_SENSORS = {"energy_instant_j": "instant power, integrated", "energy_average_j": "one-second average, integrated"}
_RASTER_ABOVE = 1500  # points; more of them as vectors would make large files
Drawn = tuple[str, str, str, Figure, pl.DataFrame]  # name, title, caption, figure, its data


def draw_all(results: Results, directory: Path) -> list[Path]:
    """Draw every figure that these results allow into `directory`; returns the files written.

    Without a valid row there is no figure. Every figure has its data beside it as CSV; a figure of simulated rows has
    SIMULATED in the drawing. figures.json lists name, title and caption in the order of the pages of figures.pdf.
    """
    directory.mkdir(parents=True, exist_ok=True)
    listed, files, pdf = [], list[Path](), directory / "figures.pdf"
    matplotlib.use("agg")
    with matplotlib.rc_context(style.RC), PdfPages(pdf, metadata={"CreationDate": None, "Producer": None}) as pages:
        for name, title, caption, fig, shown in _figures(results) if results.top else ():
            style.header(fig, title, caption, results.label)
            listed.append({"name": name, "title": title, "caption": caption})
            files += [*style.save(fig, directory, name, pages), directory / f"{name}.csv"]
            write_atomically(files[-1], shown.with_columns(cs.float().round_sig_figs(_DIGITS)).write_csv())
    index = directory / "figures.json"
    write_atomically(index, json.dumps(listed, indent=1) + "\n")
    return [*files, pdf, index]


def _figures(results: Results) -> Iterator[Drawn]:
    for group, name, slug in zip(results.groups, results.names, slugs(results.names), strict=True):
        own = rows_of(results.means, group)
        yield _lines(f"curves-{slug}", group, name, own, "output_tokens", "batch")
        yield _heat_maps(f"heatmap-{slug}", group, name, own)
        if own["batch"].n_unique() > 1:
            yield _lines(f"batch-{slug}", group, name, own, "batch", "output_tokens")
    of = _Models(results)
    yield from filter(None, (_sweet_spots(results, of), _ratios(results), _predicted(results, of)))
    yield from filter(None, (_accuracy(results, of), _residuals(results, of), _sensors(results)))


class _Models:
    """Colour and marker of each model, for seaborn's `hue` and `style`."""

    def __init__(self, results: Results) -> None:
        self._named = {tuple(g[k] for k in GROUP): n for g, n in zip(results.groups, results.names, strict=True)}
        looks = dict(zip(results.names, style.looks(results.groups), strict=True))
        self.palette = {name: look.colour for name, look in looks.items()}
        self.markers = {name: look.marker for name, look in looks.items()}

    def frame(self, table: pl.DataFrame, **columns: Any) -> pd.DataFrame:
        """A table for seaborn, with the names of its groups as `name`."""
        names = [self._named.get(key) for key in table.select(GROUP).iter_rows()]
        return _pandas(table.with_columns(**columns, name=pl.Series(names, dtype=pl.String)))

    def look(self, frame: pd.DataFrame) -> dict[str, Any]:
        """How seaborn distinguishes the models of a frame."""
        there = [name for name in self.palette if name in set(frame["name"])]
        same = {"hue": "name", "style": "name", "hue_order": there, "style_order": there}
        return {**same, "palette": self.palette, "markers": self.markers}


def _pandas(table: pl.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(table.to_dict(as_series=False))


def _lines(figure: str, group: Group, name: str, own: pl.DataFrame, x: str, panel: str) -> Drawn:
    """Cells as points and the law as lines, for each prompt length, in a panel for each batch or reply length."""
    panels, hues = words.representative(own[panel]), style.ramp(own["input_tokens"])
    shown = own.filter(pl.col(panel).is_in(panels))
    grid = sns.relplot(
        _pandas(shown),
        **{"x": x, "y": "energy_per_output_token_j", "hue": "input_tokens", "palette": hues, "s": 22},
        **{"col": panel, "col_wrap": min(2, len(panels)), "height": 2.5, "aspect": 1.45},
        facet_kws={"sharex": True, "sharey": False},
    )
    smooth = x != "batch" or any(fit["batch"] is None for fit in chosen_fits(group))
    for key, ax in grid.axes_dict.items():
        value = int(key)
        for (n,), line in shown.filter(pl.col(panel) == value).group_by("input_tokens", maintain_order=True):
            low, high = line[x].to_numpy().min(), line[x].to_numpy().max()
            places = np.geomspace(low, high, 50) if smooth else np.sort(line[x].to_numpy())
            cells = [(at, n, value) if x == "batch" else (value, n, at) for at in map(float, places)]
            law = [fitted(group, *cell) for cell in cells]
            if None not in law:
                ax.plot(places, law, color=hues[int(str(n))], linewidth=1.2)
        ax.set(xscale="log", yscale="log", title=f"{panel.replace('_', ' ')} {value}")
        style.lengths(ax.xaxis, own[x])
        style.amounts(ax.yaxis)
    grid.set_axis_labels(x.replace("_", " "), _PER_TOKEN)
    lines = f"Lines: law {group['law']}, fitted to these cells (in-sample)." if chosen_fits(group) else "No fit."
    caption = f"{shown.height} cells, mean of the valid repetitions. {lines} {words.some(panel, panels, own[panel])}"
    return figure, f"{name}: energy against {x.replace('_', ' ')}", caption, grid.figure, own.select(_SHOWN)


def _heat_maps(figure: str, group: Group, name: str, own: pl.DataFrame) -> Drawn:
    batches = words.representative(own["batch"], 3)
    inputs, outputs = sorted(set(own["input_tokens"])), sorted(set(own["output_tokens"]))
    size = (1.3 + 0.52 * len(outputs)) * len(batches), 1 + 0.32 * len(inputs)
    fig, axes = plt.subplots(1, len(batches), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for ax, batch in zip(axes.flat, batches, strict=True):
        values = np.full((len(inputs), len(outputs)), np.nan)
        part = own.filter(pl.col("batch") == batch)
        for n, m, value in part.select("input_tokens", "output_tokens", "energy_per_output_token_j").iter_rows():
            values[inputs.index(n), outputs.index(m)] = value
        look = {"annot": True, "fmt": ".3g", "annot_kws": {"fontsize": 6.5}, "cbar": False, "linewidths": 0.5}
        ticks = {"xticklabels": outputs, "yticklabels": inputs}
        sns.heatmap(values, norm=LogNorm(), cmap="rocket_r", ax=ax, **look, **ticks)
        spots = [s for s in group.get("sweet_spots", []) if s["batch"] == batch and s["status"] == "interior"]
        spots = sorted((s for s in spots if s["input_tokens"] in inputs), key=lambda s: int(s["input_tokens"]))
        if spots and len(outputs) > 1:  # between the centres of cells, by the logarithm of the length
            centres = np.arange(len(outputs)) + 0.5
            x = np.interp(np.log([s["output_tokens"] for s in spots]), np.log(outputs), centres)
            y = [inputs.index(s["input_tokens"]) + 0.15 for s in spots]
            ax.plot(x, y, color="#0b6bcb", marker="D", markersize=4, markeredgecolor="white", linewidth=0.8)
        ax.set(title=f"batch {batch}", xlabel="output tokens", ylim=(0, len(inputs)))
        ax.tick_params(axis="y", rotation=0)
    axes[0, 0].set_ylabel("input tokens")
    caption = (
        f"{own.filter(pl.col('batch').is_in(batches)).height} cells, mean of the valid repetitions; colours (log) "
        f"are of each panel alone. Diamonds: sweet spot by law {group.get('law')}, where it lies inside the measured "
        f"replies. {words.some('Batches', batches, own['batch'])}"
    )
    return figure, f"{name}: {_PER_TOKEN}", caption, fig, own.select(_SHOWN)


def _sweet_spots(results: Results, of: _Models) -> Drawn | None:
    interior = [
        {**{key: group[key] for key in GROUP}, "law": group["law"], **spot}
        for group in results.groups
        for spot in group["sweet_spots"]
        if spot["status"] == "interior"
    ]
    if not interior:
        return None
    table = pl.DataFrame(interior, infer_schema_length=None)
    batches = words.representative(table["batch"])
    frame = of.frame(table.filter(pl.col("batch").is_in(batches)))
    panels = {"col": "batch", "col_wrap": min(2, len(batches)), "height": 2.6, "aspect": 1.3}
    grid = sns.relplot(
        frame, x="input_tokens", y="output_tokens", kind="line", dashes=False, **of.look(frame), **panels
    )
    _log(grid.axes.flat, frame["input_tokens"])
    grid.set_axis_labels("input tokens", "m*, output tokens").legend.set_title("")
    caption = (
        "m*(n), the reply length with the least energy per output token, by each model's chosen law, where it lies "
        f"inside the measured replies: {frame['name'].nunique()} of {len(results.groups)} models have one. "
        f"{words.some('Batches', batches, table['batch'])}"
    )
    return "sweet-spots", "Sweet spots", caption, grid.figure, table


def _log(axes: Any, xs: Any) -> None:
    for ax in axes:
        ax.set(xscale="log", yscale="log")
        style.lengths(ax.xaxis, xs)
        style.amounts(ax.yaxis)


def _ratios(results: Results) -> Drawn:
    table = ratios(results.means).sort("ratio", descending=True)
    fig, ax = plt.subplots(figsize=(7, 1 + 0.24 * table["model"].n_unique()), layout="constrained")
    hues = style.ramp(table["batch"])
    sns.scatterplot(_pandas(table), x="ratio", y="model", hue="batch", palette=hues, s=40, legend="full", ax=ax)
    ax.axvline(words.PAPER_RATIO, color=style.INK, linestyle=":", linewidth=1)
    ax.set(xscale="log", xlabel="worst / best energy per output token", ylabel="")
    style.amounts(ax.xaxis)
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1))
    caption = (
        f"Energy per output token of the worst measured cell over that of the best, for one model and batch; "
        f"{results.means.height} cells. Dotted: {words.PAPER_RATIO}, the largest ratio in the paper, whose batch is "
        "not known to us."
    )
    return "ratios", "How much the lengths matter", caption, fig, table


def _predicted(results: Results, of: _Models) -> Drawn | None:
    table = results.held_out
    if not table.height:
        return None
    tokens = pl.col("batch") * pl.col("output_tokens")
    frame = of.frame(table, x=pl.col("energy_j") / tokens, y=pl.col("predicted_j") / tokens)
    raster = table.height > _RASTER_ABOVE
    grid = sns.relplot(frame, x="x", y="y", height=4.2, s=16, linewidth=0, rasterized=raster, **of.look(frame))
    ends = [frame["x"].min(), frame["x"].max()]
    grid.ax.plot(ends, ends, color=style.INK, linewidth=0.8)
    grid.ax.set(xscale="log", yscale="log", xlabel=f"measured {_PER_TOKEN}", ylabel=f"predicted {_PER_TOKEN}")
    style.amounts(grid.ax.xaxis)
    style.amounts(grid.ax.yaxis)
    grid.legend.set_title("")
    caption = (
        f"{table.height} cells, each predicted by its model's chosen law ({words.law_words(results.groups)}) fitted "
        f"without it (held-out, 5-fold). MAPE: {words.percent(table['ape_percent'].to_numpy().mean())}."
    )
    return "predicted", "Predicted against measured, held-out cells", caption, grid.figure, table


def _accuracy(results: Results, of: _Models) -> Drawn | None:
    errors = results.validation.filter(pl.col("mape_percent").is_not_null())
    if not errors.height:
        return None
    said = (
        pl.when(pl.col("scheme") == "in-sample").then(pl.lit("IN-SAMPLE")).otherwise("held-out:\n" + pl.col("scheme"))
    )
    frame = of.frame(errors, scheme=said)
    look = {"hue": "name", "palette": of.palette, "jitter": False, "s": 4, "alpha": 0.8}
    size = {"height": 0.8 + 0.22 * frame["law"].nunique(), "aspect": 3 / (0.8 + 0.22 * frame["law"].nunique()) / 1.6}
    grid = sns.catplot(frame, x="mape_percent", y="law", col="scheme", kind="strip", **look, **size)
    for scheme, ax in grid.axes_dict.items():
        means = frame[frame["scheme"] == scheme].groupby("law")["mape_percent"].mean()
        ax.plot(means.to_numpy(), means.index.to_list(), "|", color=style.INK, markersize=11, markeredgewidth=2)
        ax.axvline(words.PAPER_MAPE_PERCENT, color=style.INK, linestyle="--", linewidth=0.8)
        ax.set(xscale="log")
        style.amounts(ax.xaxis)
    grid.set_titles("{col_name}").set_axis_labels("MAPE, %", "")
    if grid.legend:
        grid.legend.set_title("")
    caption = (
        f"MAPE over cell means: one dot per model ({frame['name'].nunique()}), bar: their mean. In-sample: cells that "
        "the fit has seen. Held-out: cells that it has not. Dashed: 1.79 %, the paper's mean over its 13 models; its "
        "scheme is unknown to us."
    )
    return "accuracy", "Accuracy by law, in-sample and held-out", caption, grid.figure, errors


def _residuals(results: Results, of: _Models) -> Drawn | None:
    rows = results.rows.filter("valid")
    axes = {name: words_ or name.replace("_", " ") for name, words_ in _AXES.items() if name in rows.columns}
    predicted = results.held_out.select(*GROUP, *CELL, "predicted_j")
    error = 100 * (pl.col("predicted_j") / pl.col("energy_j") - 1)
    table = rows.join(predicted, on=[*GROUP, *CELL], maintain_order="left").with_columns(residual_percent=error)
    if not table.height:
        return None
    kept = [*GROUP, *CELL, *(name for name in axes if name not in CELL), "energy_j", "predicted_j", "residual_percent"]
    table = table.select(*kept, *(name for name in ("repetition", "session", "raw") if name in table.columns))
    long = of.frame(table).melt(id_vars=["name", "residual_percent"], value_vars=list(axes)).dropna()
    panels = {"col": "variable", "col_wrap": 3, "height": 2.2, "aspect": 1.1, "facet_kws": {"sharex": False}}
    look = {**of.look(long), "s": 9, "linewidth": 0, "alpha": 0.6, "rasterized": long.shape[0] > _RASTER_ABOVE}
    grid = sns.relplot(long, x="value", y="residual_percent", **look, **panels)
    for name, ax in grid.axes_dict.items():
        ax.set(title="", xlabel=axes[name])
        if name in CELL:
            ax.set_xscale("log")
            style.lengths(ax.xaxis, table[name])
    grid.set_ylabels("predicted / measured − 1, %").legend.set_title("")
    caption = (
        f"{table.height} valid repetitions, each against the prediction of its cell by its model's chosen law fitted "
        "without it (held-out, 5-fold)."
    )
    return "residuals", "Residuals: where the chosen law errs", caption, grid.figure, table


def _sensors(results: Results) -> Drawn | None:
    rows = results.rows
    there = [name for name in _SENSORS if name in rows.columns and rows[name].null_count() < rows.height]
    table = rows.drop_nulls(["energy_j", "duration_s"]).select(
        *(*GROUP, *CELL, "valid", "reasons", *(name for name in ("repetition", "raw") if name in rows.columns)),
        power_w=pl.col("energy_j") / pl.col("duration_s"),
        **{_SENSORS[name]: 100 * (pl.col(name) / pl.col("energy_j") - 1) for name in there},
    )
    if not there or not table.height:
        return None
    columns = [_SENSORS[name] for name in there]
    long = _pandas(table).melt(id_vars=["power_w", "valid"], value_vars=columns).dropna()
    dots = {"hue": "valid", "style": "valid", "hue_order": [True, False], "style_order": [True, False], "s": 14}
    look = {"palette": {True: "#0072b2", False: style.ALARM}, "linewidth": 0.1, "col": "variable", "height": 2.7}
    grid = sns.relplot(long, x="power_w", y="value", **dots, **look, rasterized=long.shape[0] > _RASTER_ABOVE)
    grid.set_titles("{col_name}").set_axis_labels("mean power of the row, W", "integrated / counter − 1, %")
    caption = f"{table.height} repetitions: power integrated over the window against the energy counter."
    return "sensors", "Energy counter against integrated power", caption, grid.figure, table
