"""The data of the page's explorer: the fitted laws and the measured cells, as JSON inside the page.

`explorer.predict.js` reimplements the library's predictions, sweet spots and savings; `explorer.js` has the controls.
Both are plain JavaScript without a library, so the page needs no network and stays small.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweetspot import gpus
from sweetspot.architecture import Architecture
from sweetspot.parallelism import Parallelism
from sweetspot.precision import element_bytes
from sweetspot.predict import latency
from sweetspot.predict.laws import LAWS
from sweetspot.report import style
from sweetspot.report.results import Results, is_of
from sweetspot.report.words import Group
from sweetspot.table.schema import GROUP, rows_of

_HERE = Path(__file__).parent
_CELL = ("batch", "input_tokens", "output_tokens", "energy_per_output_token_j")


def data(results: Results) -> dict[str, Any]:
    """Everything that the explorer embeds: `groups` as in predictor.json (those with a law), names, looks, cells.

    `asked` is the question the page opens with: the worst cell of the group and batch in which lengths matter most.
    """
    predictor, means, top = results.predictor, results.means, results.top
    usable = [(group, name) for group, name in zip(results.groups, results.names, strict=True) if group.get("law")]
    asked = top and {
        "group": next((i for i, (group, _) in enumerate(usable) if is_of(top, group)), 0),
        "batch": top["batch"],
        "input_tokens": top["worst_input_tokens"],
        "output_tokens": top["worst_output_tokens"],
    }
    return {
        "schema_version": predictor["schema_version"],
        "asked": asked,
        "laws": {law.name: law.as_dict() for law in (*LAWS.values(), *latency.LAWS.values())},
        "groups": [group for group, _ in usable],
        "across": [_across(predictor, group) for group, _ in usable],
        "names": [name for _, name in usable],
        "looks": [asdict(style.model_style(group["model"])) for group, _ in usable],
        "cells": [rows_of(means, group).select(_CELL).rows() for group, _ in usable],
    }


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
    """The code of the explorer."""
    return "\n".join((_HERE / name).read_text() for name in ("explorer.predict.js", "explorer.js"))
