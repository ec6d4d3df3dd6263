"""MAPE by law and scheme of a finished campaign: `python benchmarks/demo_accuracy.py [results/demo]`."""

import sys
from pathlib import Path

import polars as pl

from sweetspot.report.words import source_label


def main() -> None:
    """Print one line a law: the mean over models of each scheme's MAPE, and the worst model."""
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    sources = source_label(pl.read_parquet(place / "measurements.parquet")["source"]) or "MEASURED"
    table = pl.read_csv(place / "validation.csv", schema_overrides={"model": pl.String})
    shown = (
        table.group_by("law", "scheme", maintain_order=True)
        .agg(
            mean=pl.col("mape_percent").mean().round(2),
            worst_model=pl.col("mape_percent").max().round(2),
            worst_cell=pl.col("worst_ape_percent").max().round(1),
        )
        .filter(pl.col("mean").is_not_null())
    )
    print(
        f"{sources}: MAPE in percent over {table['model'].n_unique()} models; the paper reports 1.79, scheme not known"
    )
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        print(shown)


if __name__ == "__main__":
    main()
