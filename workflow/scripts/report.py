import json
from pathlib import Path

import polars as pl

from sweetspot import report
from sweetspot.errors import logged

with logged(snakemake.log[0]):
    report.write(
        pl.read_parquet(snakemake.input.measurements),
        json.loads(Path(snakemake.input.predictor).read_text()),
        pl.read_csv(snakemake.input.validation, schema_overrides={"model": pl.String}),
        pl.read_parquet(snakemake.input.predictions),
        pl.read_csv(snakemake.input.plan, schema_overrides={"model": pl.String}),
        json.loads(Path(snakemake.input.campaign).read_text()),
        Path(snakemake.input.figures),
        Path(snakemake.output[0]),
    )
