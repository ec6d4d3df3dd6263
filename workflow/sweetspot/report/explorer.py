"""The data of the page: fitted laws, measured cells and errors, as JSON inside it, and the scripts that show them.

`predict.js` reimplements the library's predictions, sweet spots and savings; `charts.js` and `views.js` draw with
Vega-Lite, which is part of the page, so that it needs no network; `page.js` has the controls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import vl_convert

from sweetspot import gpus
from sweetspot.architecture import Architecture
from sweetspot.parallelism import Parallelism
from sweetspot.precision import element_bytes
from sweetspot.predict import latency
from sweetspot.predict.laws import LAWS
from sweetspot.report import style
from sweetspot.report.results import Results, is_of, ratios
from sweetspot.report.words import Group
from sweetspot.table.schema import CELL, GROUP, rows_of

_HERE = Path(__file__).parent
_SCRIPTS = ("predict.js", "charts.js", "views.js", "page.js")
_SENSORS = {"energy_instant_j": "instant power, integrated", "energy_average_j": "one-second average, integrated"}
_BINS = 41


def data(results: Results) -> dict[str, Any]:
    """Everything that the page embeds: `groups` as in predictor.json (those with a law), names, looks, cells, errors.

    `cells` holds a list per quantity, with the place of each cell's group in `groups`. `asked` is the question the page
    opens with: the worst cell of the group and batch in which lengths matter most.
    """
    predictor, top = results.predictor, results.top
    every = zip(results.groups, results.names, style.looks(results.groups), strict=True)
    usable = [one for one in every if one[0].get("law")]
    groups = [group for group, _, _ in usable]
    asked = top and {
        "group": next((i for i, group in enumerate(groups) if is_of(top, group)), 0),
        "batch": top["batch"],
        "input_tokens": top["worst_input_tokens"],
        "output_tokens": top["worst_output_tokens"],
    }
    cells = _of(_cells(results), groups)
    errors = results.validation.filter(pl.col("mape_percent").is_not_null())
    tolerance = results.campaign.get("config", {}).get("protocol", {}).get("energy_tolerance", 0.05)
    return {
        "schema_version": predictor["schema_version"],
        "asked": asked,
        "laws": {law.name: law.as_dict() for law in (*LAWS.values(), *latency.LAWS.values())},
        "groups": groups,
        "across": [_across(predictor, group) for group in groups],
        "names": [name for _, name, _ in usable],
        "looks": [asdict(look) for _, _, look in usable],
        "cells": cells.drop(GROUP).to_dict(as_series=False),
        "missing": _missing(results, groups, cells),
        "ratios": _of(ratios(results.means), groups).drop(GROUP).rows(named=True),
        "errors": _of(errors, groups).select("group", "law", "scheme", mape="mape_percent").rows(named=True),
        "sensors": _sensors(results.rows),
        "tolerance_percent": 100 * float(tolerance),
    }


def _of(frame: pl.DataFrame, groups: Sequence[Group]) -> pl.DataFrame:
    """The rows of these groups, with the place of their group as column `group`."""
    parts = [rows_of(frame, group).with_columns(group=pl.lit(i)) for i, group in enumerate(groups)]
    return pl.concat(parts) if parts else frame.head(0).with_columns(group=pl.lit(0))


def _cells(results: Results) -> pl.DataFrame:
    """A row per measured cell: J per output token with its SD, its held-out prediction, and where it was measured."""
    tokens = pl.col("batch") * pl.col("output_tokens")
    predicted = results.held_out.select(*GROUP, *CELL, predicted=pl.col("predicted_j") / tokens)
    observed = [name for name in ("temperature_c", "time_s") if name in results.rows.columns]
    places = results.rows.filter("valid").group_by(*GROUP, *CELL).agg(pl.col(observed).cast(pl.Float64).mean())
    joined = results.means.join(predicted, on=[*GROUP, *CELL], how="left", maintain_order="left")
    joined = joined.join(places, on=[*GROUP, *CELL], how="left", maintain_order="left")
    joined = joined.rename({"energy_per_output_token_j": "j"})
    numbers = [pl.col(name).cast(pl.Float64).round_sig_figs(6) for name in ("j", "sd", "predicted", *observed)]
    return joined.select(*GROUP, "batch", "repetitions", *numbers, n="input_tokens", m="output_tokens")


def _missing(results: Results, groups: Sequence[Group], cells: pl.DataFrame) -> list[list[Any]]:
    """Cells of the grid without a value: [place of the group, batch, input tokens, output tokens, why]."""
    if results.plan is None:
        return []
    there = set(cells.select("group", "batch", "n", "m").rows())
    found = []
    for index, group in enumerate(groups):
        for row in results.plan.filter(pl.col("model") == group["model"]).iter_rows(named=True):
            place = (index, row["batch"], row["input_tokens"], row["output_tokens"])
            if place not in there:
                found.append([*place, row["reason"] if row["status"] == "skipped" else "no valid row"])
    return found


def _sensors(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """How many rows differ by how much, in percent, between integrated power and the energy counter."""
    found: dict[str, Any] = {}
    for name, words in _SENSORS.items():
        if name in rows.columns and rows[name].null_count() < rows.height:
            apart = 100 * (rows[name] / rows["energy_j"] - 1)
            found[words] = apart.filter(apart.is_finite()).to_numpy()
    if not any(len(values) for values in found.values()):
        return []
    edges = np.histogram_bin_edges(np.concatenate(list(found.values())), bins=_BINS)
    bins = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    return [
        {"sensor": words, "low": low, "high": high, "middle": (low + high) / 2, "rows": int(count)}
        for words, values in found.items()
        for (low, high), count in zip(bins, np.histogram(values, bins=edges)[0], strict=True)
        if count
    ]


def _across(predictor: Mapping[str, Any], group: Group) -> dict[str, Any] | None:
    """What the law across models needs to predict the model of a group; None if it was not fitted to that model."""
    for entry in predictor.get("across_models", []):
        own = entry["models"].get(group["model"])
        alike = all(entry[name] == group[name] for name in ("gpu", "engine", "parallelism", "source"))
        if not (alike and own and not entry["reason"] and group["precision"] in entry["precisions"]):
            continue
        if "blocks" not in own.get("architecture", {}):  # a file of an earlier version
            continue
        architecture, board = Architecture.of(own["architecture"]), gpus.find(entry["gpu"])
        spread = Parallelism.parse(group["parallelism"])
        memory = spread.memory(architecture, board, group["precision"]) if board else None
        return {
            **{name: group[name] for name in (*GROUP, "source")},
            **{name: entry[name] for name in ("measured_range", "idle_w", "power_cap_w")},
            "cells": own["cells"],
            "architecture": own["architecture"],
            "memory": {
                **element_bytes(group["precision"])._asdict(),
                "kv_cache_bytes": memory and memory.kv_cache_bytes,
                "weights_gb": memory and f"{memory.weights_bytes / 1e9:.1f}",
                "board": board and spread.on(board),
            },
            **{target: _law(entry[target]) for target in ("energy", "duration")},
            "own": {target: _prices(own[target] or entry[target]) for target in ("energy", "duration")},
        }
    return None


def _law(law: Mapping[str, Any] | None) -> dict[str, float] | None:
    return {"quantile": law["quantile"], "cell": law["relative_sd"]["cell"]} if law else None


def _prices(known: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {"prices": list(known["prices"].values()), "covariance": known["covariance"]} if known else None


def script() -> str:
    """The code of the page: Vega and Vega-Lite (BSD 3-Clause, by the Vega project), then ours."""
    own = "\n".join((_HERE / name).read_text() for name in _SCRIPTS)
    return f"{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n{own}"
