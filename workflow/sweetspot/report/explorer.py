"""What the page's explorer computes with: the fitted laws and the measured cells, as JSON inside the page.

`explorer.predict.js` is `predictor.predict` once more, in the language of the page; `explorer.js` is its controls. Both
are plain JavaScript without a library, so that the page needs no network and stays small.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.predict.laws import LAWS
from sweetspot.report import results as summary
from sweetspot.report import style
from sweetspot.report.results import Group

_HERE = Path(__file__).parent
_CELL = ("batch", "input_tokens", "output_tokens", "j_per_token")


def data(
    predictor: Mapping[str, Any], means: pl.DataFrame, groups: Sequence[Group], names: Sequence[str]
) -> dict[str, Any]:
    """Everything that the explorer embeds: `groups` as in predictor.json (those with a law), names, looks, cells.

    `means` is `summary.cells(...)`. `asked` is the question that the page opens with: the worst cell of the group and
    batch whose lengths matter most.
    """
    usable = [(group, name) for group, name in zip(groups, names, strict=True) if group.get("law")]
    top = summary.headline(means)
    asked = top and {
        "group": next((i for i, (group, _) in enumerate(usable) if summary.is_of(top, group)), 0),
        "batch": top["batch"],
        "input_tokens": top["worst_input_tokens"],
        "output_tokens": top["worst_output_tokens"],
    }
    return {
        "schema_version": predictor["schema_version"],
        "asked": asked,
        "laws": {law.name: law.as_dict() for law in LAWS.values()},
        "across_models": [entry for entry in predictor.get("across_models", []) if not entry["reason"]],
        "groups": [group for group, _ in usable],
        "names": [name for _, name in usable],
        "looks": [asdict(style.model_style(group["model"])) for group, _ in usable],
        "cells": [summary.of(means, group).select(_CELL).rows() for group, _ in usable],
    }


def script() -> str:
    """The code of the explorer."""
    return "\n".join((_HERE / name).read_text() for name in ("explorer.predict.js", "explorer.js"))
