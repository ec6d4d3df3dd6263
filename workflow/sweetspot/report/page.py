"""One self-contained HTML page that says what a campaign found, how certain that is, and what it was measured on."""

import base64
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from sweetspot.files import write_atomically
from sweetspot.report import audit, explorer, findings, style, tables
from sweetspot.report.results import Results, slugs
from sweetspot.table.schema import rows_of
from sweetspot.vocabulary import LEVEL, SIMULATED

_HERE = Path(__file__).parent
_BANNERS = {
    "SIMULATED": "no GPU was used; the numbers come from sweetspot's simulator",
    "PUBLISHED": "the numbers were taken from a publication; sweetspot did not measure them",
    "SOURCE NOT STATED": "the table does not say whether its rows were measured or simulated",
    "MEASURED": "the numbers come from the energy counter of the GPU",
}
# Figure colours that change between the light and the dark page; the others keep their meaning and show on both.
_THEMED = {style.INK: "--ink", style.MUTED: "--muted", style.GRID: "--grid", style.ALARM: "--alarm"}


def write(results: Results, figures: Path, output: Path) -> None:
    """Write the page to `output`, atomically. `figures` is the directory that `figures.draw_all` drew into.

    Without a valid row, the page says so.
    """
    rows = results.rows
    drawn = json.loads((figures / "figures.json").read_text())
    label = results.label or "MEASURED"
    context = {
        "results": results,
        "tables": tables,
        "audit": audit,
        "title": results.campaign.get("campaign") or "table of measurements",
        "label": label,
        "banner": _banner(label, rows),
        "simulated": label in SIMULATED.values(),
        "random_weights": any("random_weights" in flags.split(";") for flags in rows["flags"].unique()),
        "valid": results.means.height > 0,
        "findings": findings.sentences(results),
        "explorer": explorer.data(results),
        "figures": {
            item["kind"]: _inline(figures, item) for item in drawn if item["group"] is None or item["kind"] == "hero"
        },
        "models": [
            {
                "name": name,
                "slug": slug,
                "group": group,
                "validation": rows_of(results.validation, group),
                "figures": [
                    _inline(figures, item) for item in drawn if item["group"] == index and item["kind"] != "hero"
                ],
            }
            for index, (group, name, slug) in enumerate(
                zip(results.groups, results.names, slugs(results.names), strict=True)
            )
        ],
        "level": LEVEL,
        "created_by": results.predictor.get("created_by", "sweetspot"),
        "css": Markup((_HERE / "page.css").read_text()),
        "script": Markup(explorer.script()),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomically(output, environment.get_template("page.html").render(context))


def _banner(label: str, rows: pl.DataFrame) -> str:
    said, counts = _BANNERS[label.split(" (")[0]], rows["source"].value_counts(sort=True)
    if counts.height < 2:
        return said
    parts = [f"{count} {source}" for source, count in counts.iter_rows()]
    return f"{said} (in part: of {rows.height} rows {', '.join(parts)})"


def _inline(directory: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """A figure as an <svg> element with ids unique to it and the ink of the page."""
    svg = (directory / f"{item['name']}.svg").read_text()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would apply to the whole page
    used = set(re.findall(r"""(?:url\(|href=["'])#([^)"']+)""", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{item["name"]}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"""(url\(|href=["'])#""", rf"\g<1>#{item['name']}-", svg)
    for colour, variable in _THEMED.items():
        svg = svg.replace(colour, f"var({variable})")
    spoken = html.escape(f"{item['title']}. {item['caption']}")
    opened = r'<svg[^>]*?(viewBox="[^"]*")[^>]*>'
    svg = re.sub(opened, lambda m: f'<svg {m[1]} role="img" aria-label="{spoken}">', svg, count=1)
    csv = base64.b64encode((directory / f"{item['name']}.csv").read_bytes()).decode()
    return {**item, "svg": Markup(re.sub(r"\s*\n\s*", "\n", svg)), "csv": f"data:text/csv;base64,{csv}"}
