"""Choose the cells of the grid that are most informative about the energy law for their GPU time.

Writes the list that the configuration names in `cells`: cells measured already and, for each model, more to measure.
Exit status: 0 if every model has reached the accuracy, otherwise 3: measure, then run it again.
"""

import argparse
from pathlib import Path

from sweetspot.errors import SweetspotError

HELP = "choose the cells to measure next"
EPILOG = (
    "Example: until sweetspot design --configfile config/few.yaml --accuracy 3; do snakemake --profile local "
    "--configfile config/few.yaml; done"
)


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("--configfile", type=Path, required=True, metavar="FILE", help="configuration with `cells`")
    command.add_argument(
        "--accuracy",
        type=float,
        default=3.0,
        metavar="PERCENT",
        help="target for the mean half-width of the intervals over the grid (default: 3)",
    )
    command.add_argument("--add", type=int, default=12, metavar="N", help="cells to add per model (default: 12)")


def run(options: argparse.Namespace) -> int:
    """Run it, and return the exit status."""
    import polars as pl

    from sweetspot.campaign import design
    from sweetspot.campaign.campaign import Campaign
    from sweetspot.campaign.configfile import read_configuration
    from sweetspot.files import write_atomically
    from sweetspot.table import read as table

    raw = read_configuration(options.configfile)
    if not raw.get("cells"):
        raise SweetspotError(f"{options.configfile}: name the list of cells to write, for example cells: few-cells.csv")
    path = Path(raw.pop("cells"))
    if not (options.add > 0 and options.accuracy > 0):
        raise SweetspotError("--add and --accuracy must be above 0")
    campaign = Campaign(raw, str(options.configfile))
    measured = campaign.directory / "measurements.parquet"
    rows = table.read([measured]) if measured.is_file() else None
    designs = design.next_cells(campaign, rows, options.add, options.accuracy / 100)
    for found in designs:
        width = "not known yet" if found.half_width is None else f"±{100 * found.half_width:.2g} %"
        more = found.cells["proposed"].sum()
        print(
            f"{found.model}: mean interval {width}; "
            + ("accuracy reached" if found.reached else f"{more} more cells, {found.seconds / 60:.0f} min of GPU time")
            + f" and {found.joules / 1e3:.0f} kJ (whole grid: {found.grid_seconds / 60:.0f} min)" * (more > 0)
        )
    cells = pl.concat(found.cells for found in designs).drop("proposed")
    write_atomically(path, cells.write_csv())
    print(f"wrote {cells.height} cells to {path}")
    done = all(found.reached or not found.cells["proposed"].any() for found in designs)
    return 0 if done else 3
