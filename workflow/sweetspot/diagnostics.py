"""The figures for the sceptic: residuals, coverage, the sensors against each other, GQA against MHA."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import seaborn as sns

from sweetspot import style, summary
from sweetspot.charts import RASTER_ABOVE, Chart, model_legend, style_words
from sweetspot.laws import LAWS
from sweetspot.schema import CELL, GROUP
from sweetspot.summary import Group, number

_WIDTH = 7.6
_AXES = {
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
    "batch": "batch",
    "temperature_c": "GPU temperature, °C",
    "time_s": "time in the session, s",
}
_PLACE = ("repetition", "session", "raw")  # what leads from a point to its row and its raw samples
_SENSORS = {"energy_instant_j": "instant power, integrated", "energy_average_j": "one-second average, integrated"}
_ATTENTION = {"MHA": "#d55e00", "GQA": "#0072b2", "MQA": "#009e73"}


def overall(
    rows: pl.DataFrame,
    groups: Sequence[Group],
    names: Sequence[str],
    validation: pl.DataFrame,
    held_out: pl.DataFrame,
    campaign: Mapping[str, Any] | None,
) -> Iterator[Chart]:
    """The diagnostics that the results allow.

    `rows` is `summary.complete(...)`, `held_out` the 5-fold predictions of each group's chosen law.
    """
    label = summary.source_label(rows["source"])
    residuals = _residual_rows(rows, held_out)
    if residuals.height:
        yield _residuals(residuals, groups, names, label)
    covered = summary.coverage(summary.of_chosen_law(validation, groups))
    if covered.height:
        yield _coverage(covered, names, label)
    compared = _compared(rows)
    if compared.height:
        yield _sensors(compared, campaign, label)
    slopes = _context_prices(groups, names, campaign)
    if slopes.height and slopes["attention"].n_unique() > 1:
        yield _attention(slopes, label)


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
    inside = float(np.mean(np.abs(table["residual_percent"].to_numpy()) <= 10))
    caption = (
        f"{table.height} valid repetitions, each against the prediction of its cell by its model's chosen law fitted "
        f"without it (held-out, 5-fold): predicted / measured − 1, %. Line: median. Band: ±10 %, which holds "
        f"{100 * inside:.3g} %." + style_words(names)
    )
    columns = min(3, len(axes_there))
    lines = -(-len(axes_there) // columns)
    fig = style.figure(_WIDTH, 2.3 * lines, title, caption, label)
    axes = fig.subplots(lines, columns, squeeze=False, sharey=True)
    raster = table.height > RASTER_ABOVE / 3  # each point is drawn in every panel
    present = [index for index, group in enumerate(groups) if summary.of(table, group).height]
    for ax, name in zip(axes.flat, axes_there, strict=False):
        for index in present:
            part, look = summary.of(table, groups[index]), style.model_style(groups[index]["model"])
            ax.scatter(
                part[name],
                part["residual_percent"],
                color=look.colour,
                marker=look.marker,
                s=9,
                alpha=0.35 if raster else 0.6,
                linewidths=0,
                rasterized=raster,
            )
        _median_line(ax, table.drop_nulls(name), name)
        ax.axhspan(-10, 10, color=style.GRID, alpha=0.4, linewidth=0, zorder=0)
        ax.axhline(0, color=style.INK, linewidth=0.8)
        ax.set_xlabel(_AXES[name])
        if name in CELL:
            ax.set_xscale("log")
            style.length_axis(ax.xaxis, table[name])
    for ax in axes.flat[len(axes_there) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("predicted / measured − 1, %")
    model_legend(fig, groups, names, present)
    sns.despine(fig)
    return "residuals", title, caption, fig, table


def _median_line(ax: Any, table: pl.DataFrame, name: str) -> None:
    """The median residual at each value, or in ten equally full bins of a quantity that is not set but happens."""
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
    title = "Coverage: how often the 95 % interval holds the measured cell"
    caption = (
        f"One dot for each of {table['model'].n_unique()} models, by the chosen law under each scheme; bar and number: "
        "their mean. Dashed: the nominal 95 %." + style_words(names)
    )
    fig = style.figure(_WIDTH, 0.8 + 0.34 * len(schemes), title, caption, label)
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
    words = ["in-sample" if scheme == "in-sample" else f"held-out: {scheme}" for scheme in schemes]
    ax.set_yticks(range(len(schemes)), words)
    ax.set(ylim=(len(schemes) - 0.5, -0.5), xlabel="cells inside their 95 % interval, %")
    ax.set_xlim(min(80.0, ax.get_xlim()[0]), 101)
    sns.despine(fig, left=True)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    return "coverage", title, caption, fig, table


def _compared(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per repetition and secondary sensor: its deviation from the counter in percent, at what power."""
    power = pl.col("energy_j") / pl.col("duration_s")
    parts = [
        rows.drop_nulls([column, "energy_j", "duration_s"]).select(
            *GROUP,
            *CELL,
            *(name for name in _PLACE if name in rows.columns),
            "valid",
            "reasons",
            sensor=pl.lit(words),
            power_w=power,
            deviation_percent=100 * (pl.col(column) / pl.col("energy_j") - 1),
        )
        for column, words in _SENSORS.items()
        if column in rows.columns
    ]
    return pl.concat(parts) if parts else pl.DataFrame({"sensor": []})


def _sensors(table: pl.DataFrame, campaign: Mapping[str, Any] | None, label: str) -> Chart:
    tolerance = 100 * float((campaign or {}).get("config", {}).get("protocol", {}).get("energy_tolerance", 0.05))
    title = "Energy counter against integrated power"
    bad = table.filter(~pl.col("valid"))
    caption = (
        f"{table.height} comparisons, one per repetition and secondary sensor: integrated power over counter, %. Band: "
        f"the ±{tolerance:g} % beyond which a row is invalid. Crosses: the {bad.height} of invalid rows."
    )
    sensors = list(dict.fromkeys(table["sensor"]))
    fig = style.figure(_WIDTH, 2.7, title, caption, label)
    axes = fig.subplots(1, len(sensors), squeeze=False, sharey=True)
    for ax, sensor in zip(axes.flat, sensors, strict=True):
        part = table.filter(pl.col("sensor") == sensor)
        good, crossed = part.filter("valid"), part.filter(~pl.col("valid"))
        ax.axhspan(-tolerance, tolerance, color=style.GRID, alpha=0.5, linewidth=0)
        ax.axhline(0, color=style.INK, linewidth=0.8)
        raster = part.height > RASTER_ABOVE
        dots = {"s": 8, "alpha": 0.5, "color": "#0072b2", "linewidths": 0, "rasterized": raster}
        ax.scatter(good["power_w"], good["deviation_percent"], **dots)
        ax.scatter(
            crossed["power_w"], crossed["deviation_percent"], s=26, color=style.ALARM, marker="x", linewidths=1.2
        )
        ax.set(xlabel="mean power of the row, W", title=sensor)
    reach = max(1.4 * tolerance, 1.05 * float(np.abs(table["deviation_percent"].to_numpy()).max()))
    axes[0, 0].set(ylabel="integrated / counter − 1, %", ylim=(-reach, reach))
    sns.despine(fig)
    return "sensors", title, caption, fig, table


def _context_prices(groups: Sequence[Group], names: Sequence[str], campaign: Mapping[str, Any] | None) -> pl.DataFrame:
    """What a token of context adds to an output token, J, by the chosen law, for models whose attention is known."""
    models = {model["name"]: model for model in (campaign or {}).get("models", [])}
    found = []
    for group, name in zip(groups, names, strict=True):
        model, fits = models.get(group["model"], {}), summary.chosen_fits(group)
        if not fits or not model.get("attention") or not model.get("parameters"):
            continue
        fit = max(fits, key=lambda fit: fit["batch"] or 0)
        for term in LAWS[fit["law"]].terms:
            if term.form in ("n", "n + m/2") and not term.per_batch and term.name in fit["terms"]:
                value = fit["terms"][term.name]
                found.append(
                    {
                        "model": name,
                        "attention": model["attention"],
                        "parameters": model["parameters"],
                        "law": fit["law"],
                        "batch": fit["batch"],
                        "j_per_1000_context_tokens": 1000 * value["value"],
                        "standard_error": 1000 * (value["standard_error"] or 0.0),
                    }
                )
    return pl.DataFrame(found)


def _attention(table: pl.DataFrame, label: str) -> Chart:
    title = "GQA against MHA: what context costs"
    caption = (
        f"{table.height} models: what 1,000 tokens of context add to each output token, by the term of the chosen law "
        "that grows with the prompt, against the size of the model; bars: 95 % interval of the coefficient. Laws "
        "without batch terms: that of the largest batch."
    )
    fig = style.figure(_WIDTH, 3.0, title, caption, label)
    ax = fig.subplots()
    for kind, part in sorted((key[0], frame) for key, frame in table.group_by("attention")):
        size, price = part["parameters"] / 1e9, part["j_per_1000_context_tokens"]
        colour = _ATTENTION.get(kind, style.OTHER_FAMILIES[0])
        ax.errorbar(
            size, price, yerr=1.96 * part["standard_error"], fmt="o", color=colour, markersize=5, capsize=2, label=kind
        )
        for x, y, name in zip(size, price, part["model"], strict=True):
            ax.annotate(
                style.shortened(name), (x, y), xytext=(6, 3), textcoords="offset points", fontsize=7, color=style.MUTED
            )
    ax.set(xscale="log", xlabel="parameters, 10⁹", ylabel="J per output token\nper 1,000 tokens of context")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * 1.35)
    style.value_axis(ax.xaxis)
    fig.legend(title="attention", loc="outside right center", handlelength=0.9)
    sns.despine(fig)
    return "attention", title, caption, fig, table
