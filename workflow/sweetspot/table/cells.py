"""Averages rows into cells: the mean of all repetitions of a (batch, input length, output length)."""

import polars as pl

from sweetspot.table.schema import CELL, GROUP
from sweetspot.vocabulary import LATENCIES


def cell_means(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per group and cell from the valid rows: groups in order of appearance, sorted by cell within each.

    Columns: those of a group, source, batch, input_tokens, output_tokens; energy_j, duration_s, idle_w, waves and the
    latencies (means over repetitions; null if the table lacks them); in_flight (minimum); experts and
    experts_per_token (maxima); energy_sd_j (null for a single repetition); repetitions.
    """
    order = frame.select(GROUP).unique(maintain_order=True).with_row_index("_group")
    averaged = (
        frame.filter("valid")
        .with_columns(pl.lit(None, pl.Float64).alias(name) for name in LATENCIES if name not in frame.columns)
        .group_by(*GROUP, "source", *CELL)
        .agg(
            pl.col("energy_j", "duration_s", "idle_w", "waves", *LATENCIES).mean(),
            pl.col("in_flight").min(),
            pl.col("experts", "experts_per_token").max(),
            energy_sd_j=pl.col("energy_j").std(),
            repetitions=pl.len(),
        )
    )
    return averaged.join(order, on=GROUP).sort("_group", *CELL).drop("_group")
