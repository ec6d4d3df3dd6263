"""Show how a table is understood (its format, what each column means, units, doubts) and write it as a table of
sweetspot. It reads what `fit` reads: tables of any common shape, and the results of common benchmarks.
"""

import argparse
import sys
from pathlib import Path

from sweetspot.commands.arguments import add_reading, read_tables
from sweetspot.errors import SweetspotError

HELP = "show how a table or a benchmark's result is understood, and write it as our table"
EPILOG = "Example: sweetspot import profile_export_aiperf.json --set batch=8 --out rows.csv"
_SHOWN = ("model", "gpu", "batch", "input_tokens", "output_tokens", "energy_j", "duration_s")
_ROWS = 5


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    add_reading(command)
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="table to write, .csv or .parquet; default: the name with .rows.csv"
    )


def run(options: argparse.Namespace) -> None:
    """Run it."""
    import polars as pl

    from sweetspot.files import write_atomically
    from sweetspot.table.files import write_parquet

    first: Path = options.tables[0]
    out: Path = options.out or Path(f"{first.name.split('.')[0]}.rows.csv")
    if out.suffix not in (".csv", ".parquet"):
        raise SweetspotError(f"--out {out}: name a file that ends in .csv or .parquet")
    if any(out.resolve() == path.resolve() for path in options.tables):
        raise SweetspotError(f"--out {out}: is the table itself; choose another")
    rows = read_tables(options)
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)
    each = (pl.col("energy_j") / (pl.col("batch") * pl.col("output_tokens"))).alias("J per output token")
    shown = rows.frame.filter("valid").select(*_SHOWN, each).head(_ROWS)
    with pl.Config(tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, tbl_width_chars=140):
        print(shown)
    nested = [name for name, kind in rows.frame.schema.items() if kind.is_nested()]
    try:
        if out.suffix == ".parquet":
            write_parquet(rows.frame, out)
        else:
            write_atomically(out, rows.frame.drop(nested).write_csv())
    except OSError as error:
        raise SweetspotError(f"cannot write {out}: {error.strerror}; choose another --out") from None
    print(f"wrote {rows.frame.height} rows to {out}" + (f", without {', '.join(nested)}" if nested else ""))
    if rows.impossible:
        raise SweetspotError("most of these rows cannot be true (see the notes)")
