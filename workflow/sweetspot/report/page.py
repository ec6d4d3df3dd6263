"""One self-contained HTML page that says what a campaign found, how certain that is, and what it was measured on."""

from pathlib import Path

import jinja2
import polars as pl
from markupsafe import Markup

from sweetspot.files import write_atomically
from sweetspot.report import audit, explorer, findings, tables
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


def write(results: Results, output: Path) -> None:
    """Write the page to `output`, atomically; without a valid row, it says so."""
    rows = results.rows
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
        "models": [
            {
                "name": name,
                "slug": slug,
                "group": group,
                "validation": rows_of(results.validation, group),
            }
            for group, name, slug in zip(results.groups, results.names, slugs(results.names), strict=True)
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
