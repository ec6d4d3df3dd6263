"""The results of a campaign or of a table, prepared once for figures and page."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.predict.laws import CHOSEN, LAWS, per_token
from sweetspot.predict.predictor import chosen, waves
from sweetspot.report.words import Group, source_label
from sweetspot.table.cells import cell_means
from sweetspot.table.files import read_result
from sweetspot.table.schema import GROUP, Row, rows_of


@dataclass(frozen=True)
class Results:
    """What a fit wrote, and the rows behind it.

    `rows`: one per repetition, with every column that figures and page use. `means`: its cells, with
    `energy_per_output_token_j` and its `sd` (null for a single repetition). `groups`: those of the predictor that have
    a valid row, and `names` a name for each. `held_out`: the 5-fold predictions of each group's chosen law. A
    table that belongs to no campaign has no `plan` and an empty `campaign`.
    """

    rows: pl.DataFrame
    means: pl.DataFrame
    predictor: Mapping[str, Any]
    groups: Sequence[Group]
    names: Sequence[str]
    validation: pl.DataFrame
    held_out: pl.DataFrame
    plan: pl.DataFrame | None
    campaign: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        measurements: pl.DataFrame,
        predictor: Mapping[str, Any],
        validation: pl.DataFrame,
        predictions: pl.DataFrame,
        plan: pl.DataFrame | None = None,
        campaign: Mapping[str, Any] | None = None,
    ) -> "Results":
        """From the table of measurements, its fit and its validation."""
        rows = complete(measurements)
        means = cells(rows)
        groups = [group for group in predictor["groups"] if rows_of(means, group).height]
        held_out = of_chosen_law(predictions, groups).filter(pl.col("scheme") == "5-fold")
        return cls(rows, means, predictor, groups, group_names(groups), validation, held_out, plan, campaign or {})

    @classmethod
    def read(cls, files: Mapping[str, str]) -> "Results":
        """From files, by the names of the arguments of `of`. Raises SweetspotError if one is incomplete."""
        return cls.of(**{name: read_result(Path(file)) for name, file in files.items()})

    @cached_property
    def label(self) -> str:
        """The label required on everything that shows these rows; "" if all were measured."""
        return source_label(self.rows["source"])

    @cached_property
    def top(self) -> dict[str, Any] | None:
        """The row of `ratios` with the largest ratio of worst to best cell; None without cells."""
        table = ratios(self.means).sort("ratio", descending=True, maintain_order=True)
        return table.row(0, named=True) if table.height else None


def complete(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with every column that figures and report use; missing ones have their default, and no reason or flag."""
    columns = {name: column for name, column in Row.to_schema().columns.items() if name != "batch"}  # of either type
    defaults = {name: ((column.metadata or {}).get("default"), column.dtype.type) for name, column in columns.items()}
    defaults |= dict.fromkeys(("reasons", "flags"), ("", pl.String()))
    rows = rows.with_columns(
        pl.lit(value, dtype=kind).alias(name) for name, (value, kind) in defaults.items() if name not in rows.columns
    )
    return rows.with_columns(
        pl.col(name).cast(kind).fill_null(pl.lit(value)) for name, (value, kind) in defaults.items()
    )


def cells(rows: pl.DataFrame) -> pl.DataFrame:
    """`cell_means` of the valid rows with `energy_per_output_token_j` and its `sd` (null for a single repetition)."""
    tokens = pl.col("batch") * pl.col("output_tokens")
    means = cell_means(rows)
    return means.with_columns(energy_per_output_token_j=pl.col("energy_j") / tokens, sd=pl.col("energy_sd_j") / tokens)


def ratios(means: pl.DataFrame) -> pl.DataFrame:
    """Best and worst cell of each group and batch of `cells(...)`, and the ratio of their J per output token."""
    order = pl.col("energy_per_output_token_j")
    places = ("input_tokens", "output_tokens")
    return (
        means.group_by(*GROUP, "batch", maintain_order=True)
        .agg(
            order.min().alias("best"),
            order.max().alias("worst"),
            *(pl.col(name).sort_by(order).first().alias(f"best_{name}") for name in places),
            *(pl.col(name).sort_by(order).last().alias(f"worst_{name}") for name in places),
            pl.len().alias("cells"),
        )
        .with_columns((pl.col("worst") / pl.col("best")).alias("ratio"))
    )


def is_of(row: Mapping[str, Any], group: Group) -> bool:
    """Whether a row belongs to `group`."""
    return all(row[name] == group[name] for name in GROUP)


def group_names(groups: Sequence[Group]) -> list[str]:
    """A name for each group: the model, and what else distinguishes it from other groups of that model."""
    names = []
    for group in groups:
        same = [other for other in groups if other["model"] == group["model"]]
        apart = [str(group[key]) for key in GROUP[1:] if len({other[key] for other in same}) > 1]
        names.append(" · ".join([str(group["model"]), *apart]))
    return names


def slugs(names: Iterable[str]) -> list[str]:
    """A distinct file name, of letters, digits, dots and dashes only, for each of `names`."""
    taken: list[str] = []
    for name in names:
        slug = base = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"
        number = 1
        while slug in taken:
            number += 1
            slug = f"{base}-{number}"
        taken.append(slug)
    return taken


def chosen_fits(group: Group) -> list[Mapping[str, Any]]:
    """The usable fits of the group's chosen law: one overall, or one per batch."""
    return [fit for fit in group.get("laws", {}).get(group.get("law"), []) if not fit.get("skipped")]


def fitted(group: Group, batch: int, n: float, m: float) -> float | None:
    """J per output token by the group's chosen law; None if it was not fitted for this batch."""
    for fit in chosen_fits(group):
        if fit["batch"] in (None, batch):
            values = {name: term["value"] for name, term in fit["terms"].items()}
            together = batch / waves(group["kv_capacity"], round(n + m), batch)
            return per_token(LAWS[fit["law"]], values, n, m, together, chosen(group))
    return None


def of_chosen_law(frame: pl.DataFrame, groups: Sequence[Group]) -> pl.DataFrame:
    """The rows of validation or predictions that belong to each group's chosen law.

    Those of 5-fold are nested where they are there: the choice was made again without the cells held out.
    """
    keys = [[*(group[name] for name in GROUP), group["law"]] for group in groups if group.get("law")]
    schema = dict.fromkeys((*GROUP, "law"), pl.String)
    chosen = pl.DataFrame(keys, schema=schema, orient="row")
    told = "mape_percent" if "mape_percent" in frame.columns else "ape_percent"
    nested = frame.filter(pl.col("law") == CHOSEN, pl.col(told).is_not_null())
    nested = nested.join(chosen, on=GROUP, how="semi", maintain_order="left")
    own = frame.join(chosen, on=list(schema), how="semi", maintain_order="left")
    return pl.concat([own.join(nested, on=[*GROUP, "scheme"], how="anti", maintain_order="left"), nested])


def coverage(validation: pl.DataFrame) -> pl.DataFrame:
    """The rows of a validation that have `coverage_percent`, the share of cells inside their intervals."""
    return validation.filter(pl.col("coverage_percent").is_not_null())
