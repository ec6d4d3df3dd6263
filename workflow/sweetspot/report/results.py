"""What figures and report both need to know about a set of results: cells, ratios, sources, names, numbers."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from sweetspot.predict.laws import LAWS, per_token
from sweetspot.predict.predictor import chosen, waves
from sweetspot.table.cells import cell_means
from sweetspot.table.schema import GROUP, UNSPECIFIED

PAPER_MAPE_PERCENT = 1.79  # arXiv 2602.05695, abstract: mean over 13 models; how it was validated is not known to us
PAPER_RATIO = 33.41  # arXiv 2602.05695, abstract: worst over best cell

Group = Mapping[str, Any]


def complete(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with every column that figures and report use: unspecified, valid, unflagged or null where one lacks."""
    defaults: dict[str, tuple[Any, Any]] = {
        **{name: (UNSPECIFIED, pl.String) for name in (*GROUP, "source")},
        **{name: ("", pl.String) for name in ("reasons", "flags")},
        "valid": (True, pl.Boolean),
        **{name: (None, pl.Float64) for name in ("duration_s", "idle_w")},
        "waves": (1.0, pl.Float64),
        **{name: (None, pl.Int64) for name in ("in_flight", "experts", "experts_per_token")},
    }
    rows = rows.with_columns(
        pl.lit(value, dtype=kind).alias(name) for name, (value, kind) in defaults.items() if name not in rows.columns
    )
    return rows.with_columns(
        pl.col(name).cast(kind).fill_null(pl.lit(value)) for name, (value, kind) in defaults.items()
    )


def cells(rows: pl.DataFrame) -> pl.DataFrame:
    """`cell_means` of the valid rows, with `j_per_token` (J per output token) and its `sd` (null for one row)."""
    tokens = pl.col("batch") * pl.col("output_tokens")
    means = cell_means(complete(rows))
    return means.with_columns(j_per_token=pl.col("energy_j") / tokens, sd=pl.col("energy_sd_j") / tokens)


def ratios(means: pl.DataFrame) -> pl.DataFrame:
    """Best and worst cell of each group and batch of `cells(...)`, and the ratio of their J per output token."""
    order = pl.col("j_per_token")
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


def headline(means: pl.DataFrame) -> dict[str, Any] | None:
    """The group and batch whose best and worst cell lie farthest apart, as a row of `ratios`."""
    table = ratios(means).sort("ratio", descending=True, maintain_order=True)
    return table.row(0, named=True) if table.height else None


def is_of(row: Mapping[str, Any], group: Group) -> bool:
    """Whether a row belongs to `group`."""
    return all(row[name] == group[name] for name in GROUP)


def of(frame: pl.DataFrame, group: Group) -> pl.DataFrame:
    """The rows of `frame` that belong to `group`."""
    return frame.filter(*(pl.col(name) == group[name] for name in GROUP))


def group_names(groups: Sequence[Group]) -> list[str]:
    """A name for each group: the model, and what else tells it from other groups of that model."""
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


def representative(values: Iterable[int], most: int = 4) -> list[int]:
    """At most `most` of the distinct `values`: smallest, largest, and evenly (by rank) between."""
    distinct = sorted(set(values))
    if len(distinct) <= most:
        return distinct
    step = (len(distinct) - 1) / (most - 1)
    return [distinct[round(index * step)] for index in range(most)]


def source_label(sources: Iterable[str]) -> str:
    """The word that must stand on whatever shows rows of these sources; "" when all rows were measured."""
    kinds = {kind for source in sources for kind in source.split(",")}
    if "simulated" in kinds:
        return "SIMULATED"
    if "published" in kinds:
        return "PUBLISHED"
    return "" if kinds == {"measured"} else "SOURCE NOT STATED"


def chosen_fits(group: Group) -> list[Mapping[str, Any]]:
    """The usable fits of the group's chosen law: one in all, or one for each batch."""
    return [fit for fit in group.get("laws", {}).get(group.get("law"), []) if not fit.get("skipped")]


def fitted(group: Group, batch: int, n: float, m: float) -> float | None:
    """J per output token by the group's chosen law; None where it was not fitted for this batch."""
    for fit in chosen_fits(group):
        if fit["batch"] in (None, batch):
            values = {name: term["value"] for name, term in fit["terms"].items()}
            together = batch / waves(group["kv_capacity"], round(n + m), batch)
            return per_token(LAWS[fit["law"]], values, n, m, together, chosen(group))
    return None


def of_chosen_law(frame: pl.DataFrame, groups: Sequence[Group]) -> pl.DataFrame:
    """The rows of validation or predictions that belong to each group's chosen law."""
    keys = [[*(group[name] for name in GROUP), group["law"]] for group in groups if group.get("law")]
    schema = dict.fromkeys((*GROUP, "law"), pl.String)
    chosen = pl.DataFrame(keys, schema=schema, orient="row")
    return frame.join(chosen, on=list(schema), how="semi", maintain_order="left")


def coverage(validation: pl.DataFrame) -> pl.DataFrame:
    """The rows of a validation that say how often its intervals held, as `coverage_percent`; none where none says."""
    return validation.filter(pl.col("coverage_percent").is_not_null())


def law_words(groups: Sequence[Group]) -> str:
    """The chosen laws for a sentence: "paper-6", or "paper-6 for 10 models, batch-8 for 3"."""
    laws = [str(group["law"]) for group in groups if group.get("law")]
    counts = {law: laws.count(law) for law in dict.fromkeys(laws)}
    if len(counts) == 1:
        return next(iter(counts))
    words = [f"{law} for {count}" for law, count in counts.items()]
    return ", ".join([f"{words[0]} models", *words[1:]]) if words else "none"


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without an exponent where that stays short; "–" for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < 6:
        return f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    mantissa = f"{value / 10.0**exponent:.{digits - 1}f}"
    return f"{mantissa} × 10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def tokens(value: float) -> str:
    """A length that a law gives, in whole tokens."""
    return f"{value:,.0f}"


def percent(value: float | None) -> str:
    """An error in percent, three significant digits; what rounding alone would leave is below 0.001 %."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001 %" if value < 0.001 else f"{number(value)} %"


def listed(values: Iterable[Any], most: int = 12) -> str:
    """Values for a sentence: "1, 8, 32"; a long list keeps its ends."""
    items = [str(value) for value in values]
    if len(items) > most:
        items = [*items[: most - 2], "…", items[-1]]
    return ", ".join(items)
