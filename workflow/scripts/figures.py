import json
from pathlib import Path

import polars as pl

from sweetspot.errors import logged
from sweetspot.figures import draw_all

with logged(snakemake.log[0]):
    draw_all(
        pl.read_parquet(snakemake.input.measurements),
        json.loads(Path(snakemake.input.predictor).read_text()),
        pl.read_csv(snakemake.input.validation, schema_overrides={"model": pl.String}),
        pl.read_parquet(snakemake.input.predictions),
        pl.read_csv(snakemake.input.plan, schema_overrides={"model": pl.String}),
        json.loads(Path(snakemake.input.campaign).read_text()),
        Path(snakemake.output[0]),
    )
