"""The figures for the sceptic: residuals, coverage, the sensors against each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import seaborn as sns

from sweetspot.report import style
from sweetspot.report.charts import RASTER_ABOVE, Chart, model_legend, style_words
from sweetspot.report.results import Results, coverage, of_chosen_law
from sweetspot.report.words import Group, number
from sweetspot.table.schema import CELL, GROUP, rows_of
from sweetspot.vocabulary import LEVEL

_AXES = {
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "batch": "batch",
    "temperature_c": "GPU temperature, °C",
    "time_s": "time in the session, s",
}
_PLACE = ("repetition", "session", "raw")  # columns that lead from a point to its row and its raw samples
_SENSORS = {"energy_instant_j": "instant power, integrated", "energy_average_j": "one-second average, integrated"}


def overall(results: Results) -> Iterator[Chart]:
    """The diagnostics that the results allow."""
    rows, groups, names, campaign = results.rows, results.groups, results.names, results.campaign
    label = results.label
    residuals = _residual_rows(rows, results.held_out)
    if residuals.height:
        yield _residuals(residuals, groups, names, label)
    covered = coverage(of_chosen_law(results.validation, groups))
    if covered.height:
        yield _coverage(covered, names, label)
    compared = _compared(rows)
    if compared.height:
        yield _sensors(compared, campaign, label)


def _residual_rows(rows: pl.DataFrame, held_out: pl.DataFrame) -> pl.DataFrame:
    """One row per valid repetition whose cell was predicted without it, with `residual_percent`."""
    there = [name for name in _AXES if name in rows.columns and rows[name].null_count() < rows.height]
    predicted = held_out.select(*GROUP, *CELL, "predicted_j")
    joined = rows.filter("valid").join(predicted, on=[*GROUP, *CELL], how="inner", maintain_order="left")
    return joined.select(
        *GROUP,
        *there,
        *(name for name in _PLACE if name in rows.columns),
        "energy_j",
        "predicted_j",
        residual_percent=100 * (pl.col("predicted_j") / pl.col("energy_j") - 1),
    )


def _residuals(table: pl.DataFrame, groups: Sequence[Group], names: Sequence[str], label: str) -> Chart:
    axes_there = [name for name in _AXES if name in table.columns]
    title = "Residuals: where the chosen law errs"
    sizes = np.abs(table["residual_percent"].to_numpy())
    band = style.band(sizes)
    edge = 3 * band  # a few rows far off must not flatten the pattern of the others
    caption = (
        f"{table.height} valid repetitions, each against the prediction of its cell by its model's chosen law fitted "
        f"without it (held-out, 5-fold): predicted / measured − 1, %. Line: median. Band: ±{band:g} %, with "
        f"{100 * np.mean(sizes <= band):.3g} % of them inside."
        + (f" Points beyond ±{edge:g} % are drawn at the edge." if sizes.max() > edge else "")
        + style_words(names)
    )
    columns = min(3, len(axes_there))
    fig = style.figure(style.WIDTH, 2.3 * -(-len(axes_there) // columns), title, caption, label)
    axes = style.panels(fig, len(axes_there), columns, "", "predicted / measured − 1, %", sharey=True)
    raster = table.height > RASTER_ABOVE / 3  # each point is drawn in every panel
    alpha = 0.35 if raster else 0.6
    present = [index for index, group in enumerate(groups) if rows_of(table, group).height]
    for ax, name in zip(axes, axes_there, strict=True):
        for index in present:
            part, look = rows_of(table, groups[index]), style.dots(groups[index]["model"], alpha, raster)
            ax.scatter(part[name], part["residual_percent"].clip(-edge, edge), **look)
        _median_line(ax, table.drop_nulls(name), name)
        ax.axhspan(-band, band, color=style.GRID, alpha=0.4, linewidth=0, zorder=0)
        ax.axhline(0, color=style.INK, linewidth=0.8)
        ax.set_xlabel(_AXES[name])
        if name in CELL:
            ax.set_xscale("log")
            style.length_axis(ax.xaxis, table[name], gap=0.2)
    model_legend(fig, groups, names, present)
    sns.despine(fig)
    return "residuals", title, caption, fig, table


def _median_line(ax: Any, table: pl.DataFrame, name: str) -> None:
    """Draw the median residual at each value, or in ten equally full bins of a quantity that was observed, not set."""
    if not table.height:
        return
    if name in CELL:
        binned = table.with_columns(_bin=pl.col(name).cast(pl.Float64))
    else:
        binned = table.with_columns(_bin=(pl.col(name).rank("ordinal") * 10 / (table.height + 1)).floor())
    line = binned.group_by("_bin").agg(pl.col(name).median(), pl.col("residual_percent").median()).sort("_bin")
    ax.plot(line[name], line["residual_percent"], color=style.INK, marker="o", markersize=2.5, linewidth=1)


def _coverage(table: pl.DataFrame, names: Sequence[str], label: str) -> Chart:
    schemes = list(dict.fromkeys(table["scheme"]))
    title = f"Coverage: how often the {LEVEL} interval contains the measured cell"
    caption = (
        f"One dot per model ({table['model'].n_unique()}), for its chosen law under each scheme; bar and number for "
        f"their mean. Dashed: the nominal {LEVEL}." + style_words(names)
    )
    fig = style.figure(style.WIDTH, 0.8 + 0.34 * len(schemes), title, caption, label)
    ax = fig.subplots()
    for row, scheme in enumerate(schemes):
        part = table.filter(pl.col("scheme") == scheme)
        for model, value in part.select("model", "coverage_percent").iter_rows():
            look = style.model_style(model)
            ax.plot(value, row, marker=look.marker, color=look.colour, markersize=4, alpha=0.75, linestyle="")
        mean = part["coverage_percent"].to_numpy().mean()
        ax.plot(mean, row, marker="|", markersize=13, markeredgewidth=2.2, color=style.INK)
        ax.text(1.01, row, f"{number(mean)} %", transform=ax.get_yaxis_transform(), va="center", fontsize=7.5)
    ax.axvline(95, color=style.INK, linestyle="--", linewidth=0.9)
    labels = ["in-sample" if scheme == "in-sample" else f"held-out:\n{scheme}" for scheme in schemes]
    style.rows_axis(ax, labels)
    ax.set(ylim=(len(schemes) - 0.5, -0.5), xlabel=f"cells inside their {LEVEL} interval, %")
    ax.set_xlim(min(80.0, ax.get_xlim()[0]), 101)
    sns.despine(fig, left=True)
    return "coverage", title, caption, fig, table


def _compared(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per repetition: deviations of the secondary sensors from the counter, in percent, and the power."""
    there = [name for name in _SENSORS if name in rows.columns and rows[name].null_count() < rows.height]
    known = rows.drop_nulls(["energy_j", "duration_s"]).filter(pl.any_horizontal(pl.col(there).is_not_null()))
    return known.select(
        *GROUP,
        *CELL,
        *(name for name in _PLACE if name in rows.columns),
        "valid",
        "reasons",
        power_w=pl.col("energy_j") / pl.col("duration_s"),
        **{name.replace("_j", "_percent"): 100 * (pl.col(name) / pl.col("energy_j") - 1) for name in there},
    )


def _sensors(table: pl.DataFrame, campaign: Mapping[str, Any], label: str) -> Chart:
    tolerance = 100 * float(campaign.get("config", {}).get("protocol", {}).get("energy_tolerance", 0.05))
    sensors = {name.replace("_j", "_percent"): sensor for name, sensor in _SENSORS.items()}
    sensors = {name: sensor for name, sensor in sensors.items() if name in table.columns}
    edge = 4 * tolerance
    title = "Energy counter against integrated power"
    caption = (
        f"{table.height} repetitions: integrated power / counter − 1, %. Band: ±{tolerance:g} %, beyond which a row "
        f"is invalid. Crosses: the {table.height - int(table['valid'].sum())} invalid rows. Points beyond "
        f"±{edge:g} % are drawn at the edge."
    )
    fig = style.figure(style.WIDTH, 2.7, title, caption, label)
    axes = fig.subplots(1, len(sensors), squeeze=False, sharey=True)
    for ax, (name, sensor) in zip(axes.flat, sensors.items(), strict=True):
        ax.axhspan(-tolerance, tolerance, color=style.GRID, alpha=0.5, linewidth=0)
        ax.axhline(0, color=style.INK, linewidth=0.8)
        dots = {"s": 8, "alpha": 0.5, "color": "#0072b2", "linewidths": 0, "rasterized": table.height > RASTER_ABOVE}
        crosses = {"s": 26, "color": style.ALARM, "marker": "x", "linewidths": 1.2}
        for part, look in ((table.filter("valid"), dots), (table.filter(~pl.col("valid")), crosses)):
            ax.scatter(part["power_w"], part[name].clip(-edge, edge), **look)
        ax.set(xlabel="mean power of the row, W", title=sensor)
    farthest = max(float(table[name].abs().to_numpy().max()) for name in sensors)
    reach = 1.08 * min(max(1.4 * tolerance, farthest), edge)
    axes[0, 0].set(ylabel="integrated / counter − 1, %", ylim=(-reach, reach))
    sns.despine(fig)
    return "sensors", title, caption, fig, table
