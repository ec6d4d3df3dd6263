from pathlib import Path

from sweetspot.errors import logged
from sweetspot.fit.fit import fit_table
from sweetspot.models import load
from sweetspot.predict import predictor
from sweetspot.table import read as table

with logged(snakemake.log[0]):
    architectures = {path.stem: load(path) for path in map(Path, snakemake.input.architectures)}
    predictor.write(fit_table(table.read([Path(snakemake.input.rows)]), architectures), Path(snakemake.output[0]))
