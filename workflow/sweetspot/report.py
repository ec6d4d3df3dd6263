"""One self-contained HTML page that says what a campaign found, how sure that is, and what it was measured on."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from sweetspot import style, summary, tables
from sweetspot.figures import headline
from sweetspot.journal import write_atomically
from sweetspot.schema import GROUP
from sweetspot.summary import Group, number, percent

_HERE = Path(__file__).parent
_BANNERS = {
    "SIMULATED": "no GPU was used; the numbers come from sweetspot's simulator",
    "PUBLISHED": "the numbers were taken from a publication; sweetspot did not measure them",
    "SOURCE NOT STATED": "the table does not say whether its rows were measured or simulated",
    "MEASURED": "the numbers come from the energy counter of the GPU",
}
# Colours of the figures that follow the page from light to dark; the others keep their meaning, and contrast on both.
_THEMED = {style.INK: "--ink", style.MUTED: "--muted", style.GRID: "--grid", style.ALARM: "--alarm"}


def write(
    measurements: pl.DataFrame,
    predictor: Mapping[str, Any],
    validation: pl.DataFrame,
    predictions: pl.DataFrame,
    plan: pl.DataFrame | None,
    campaign: Mapping[str, Any] | None,
    figures: Path,
    output: Path,
) -> None:
    """Write the page to `output`, whole or not at all.

    The inputs are those of `figures.draw_all`, `figures` is the directory it drew into, `campaign` the record of the
    campaign (None: a table that belongs to none, as `plan`). Results without a valid row make a page that says so.
    """
    rows = summary.complete(measurements)
    means = summary.cells(rows)
    groups = [group for group in predictor["groups"] if summary.of(means, group).height]
    drawn = json.loads((figures / "figures.json").read_text())
    names = summary.group_names(groups)
    slugs = summary.slugs(names)
    label = summary.source_label(rows["source"]) or "MEASURED"
    held_out = summary.of_chosen_law(predictions, groups).filter(pl.col("scheme") == "5-fold")
    context = {
        "title": (campaign or {}).get("campaign") or "table of measurements",
        "label": label,
        "banner": _banner(label, rows),
        "simulated": label == "SIMULATED",
        "random_weights": any("random_weights" in flags.split(";") for flags in rows["flags"].unique()),
        "valid": means.height > 0,
        "findings": _findings(means, groups, names, validation),
        "figures": {
            item["kind"]: _inline(figures, item) for item in drawn if item["group"] is None or item["kind"] == "hero"
        },
        "models": [
            {
                "name": name,
                "slug": slug,
                "law": group.get("law"),
                "because": group.get("chosen_because"),
                "cells": group["cells"],
                "rows": group["rows"],
                "figures": [
                    _inline(figures, item)
                    for item in drawn
                    if item["group"] == predictor["groups"].index(group) and item["kind"] != "hero"
                ],
                "coefficients": tables.coefficients(group),
                "sweet_spots": tables.sweet_spots(group),
                "notes": tables.accuracy_notes(summary.of(validation, group)),
                "accuracy": tables.accuracy_of(summary.of(validation, group), group.get("law")),
            }
            for group, name, slug in zip(groups, names, slugs, strict=True)
        ],
        "provenance": tables.provenance(rows, means, predictor, campaign),
        "architectures": tables.architectures(campaign),
        "protocol": tables.protocol(campaign),
        "spot_ranges": tables.sweet_spot_ranges(groups, names),
        "ratios": tables.best_and_worst(means, groups, names),
        "accuracy": tables.accuracy(validation, groups),
        "worst_predicted": tables.worst_predicted(held_out, groups, names),
        "skipped": tables.skipped(plan),
        "invalid": tables.invalid_by_reason(rows),
        "invalid_rows": tables.invalid_rows(rows),
        "flags": tables.flags(rows),
        "created_by": predictor.get("created_by", "sweetspot"),
        "css": Markup((_HERE / "report.css").read_text()),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomically(output, environment.get_template("report.html").render(context))


def _banner(label: str, rows: pl.DataFrame) -> str:
    counts = rows["source"].value_counts(sort=True)
    if counts.height < 2:
        return _BANNERS[label]
    parts = [f"{count} {source}" for source, count in counts.iter_rows()]
    return f"{_BANNERS[label]} (in part: of {rows.height} rows {', '.join(parts)})"


def _findings(
    means: pl.DataFrame, groups: Sequence[Group], names: Sequence[str], validation: pl.DataFrame
) -> list[str]:
    """Three sentences: what the lengths decide, where the sweet spot lies, how well a law predicts."""
    top = headline(means)
    if top is None:
        return []
    name, group = next(
        ((name, group) for name, group in zip(names, groups, strict=True) if all(group[k] == top[k] for k in GROUP)),
        (top["model"], {}),
    )
    return [
        f"{name} at batch {top['batch']} needs {number(top['best'])} J per output token at best "
        f"({_lengths(top, 'best')}) and {number(top['worst'])} J at worst ({_lengths(top, 'worst')}): the lengths "
        f"alone make a factor of {number(top['ratio'])}"
        + (f", the largest of {len(groups)} models." if len(groups) > 1 else "."),
        _spot_sentence(group, top["batch"], groups),
        _accuracy_sentence(groups, validation),
    ]


def _lengths(top: Mapping[str, Any], which: str) -> str:
    return f"{top[f'{which}_input_tokens']:,} tokens in, {top[f'{which}_output_tokens']:,} out"


def _spot_sentence(group: Group, batch: int, groups: Sequence[Group]) -> str:
    inside = [spot for spot in group.get("sweet_spots", []) if spot["status"] == "interior"]
    here = sorted((s["input_tokens"], s["output_tokens"]) for s in inside if s["batch"] == batch)
    everywhere = [s["output_tokens"] for g in groups for s in g.get("sweet_spots", []) if s["status"] == "interior"]
    if not everywhere:
        return "No fitted law has a sweet spot, a reply length of least energy per token, inside the measured lengths."
    over = "models and batches" if len(groups) > 1 else "batches and prompts"
    span = f"over all {over} it lies between {number(min(everywhere))} and {number(max(everywhere))} tokens."
    if not here:
        return f"At that batch no sweet spot lies inside the measured lengths; {span}"
    (first, low), (last, high) = here[0], here[-1]
    ends = f"{number(low)} tokens after a prompt of {first:,}"
    if last != first:
        ends += f" and {number(high)} after one of {last:,}"
    meaning = "the reply length of least energy per token"
    return f"Its sweet spot by the fitted law {group['law']}, {meaning}, is {ends}; {span}"


def _accuracy_sentence(groups: Sequence[Group], validation: pl.DataFrame) -> str:
    chosen = summary.of_chosen_law(validation, groups).filter(pl.col("mape_percent").is_not_null())
    seen, unseen = (
        chosen.filter(pl.col("scheme") == scheme)["mape_percent"].to_list() for scheme in ("in-sample", "5-fold")
    )
    if not unseen:
        return "How well a law predicts is not known: too few cells to hold any out."
    of = f"mean of {len(unseen)} models, worst {percent(max(unseen))}" if len(unseen) > 1 else "one model"
    in_sample = (
        f"in-sample, on the cells it was fitted to, {percent(sum(seen) / len(seen))}" if seen else "in-sample not known"
    )
    return (
        f"The chosen law ({summary.law_words(groups)}) predicts cells that its fit has not seen with a MAPE of "
        f"{percent(sum(unseen) / len(unseen))} (held-out, 5-fold; {of}); {in_sample}."
    )


def _inline(directory: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """A figure as an <svg> element: ids made its own, its ink that of the page."""
    svg = (directory / f"{item['name']}.svg").read_text()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    used = set(re.findall(r"""(?:url\(|href=["'])#([^)"']+)""", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{item["name"]}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"""(url\(|href=["'])#""", rf"\g<1>#{item['name']}-", svg)
    for colour, variable in _THEMED.items():
        svg = svg.replace(colour, f"var({variable})")
    spoken = html.escape(f"{item['title']}. {item['caption']}", quote=True)
    svg = re.sub(
        r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{_literal(spoken)}">', svg, count=1
    )
    return {**item, "svg": Markup(re.sub(r"\s*\n\s*", "\n", svg))}


def _literal(text: str) -> str:
    """`text` as a replacement of re.sub that means itself."""
    return text.replace("\\", r"\\")
