from pathlib import Path

from sweetspot import predictor, table
from sweetspot.errors import logged
from sweetspot.fit import fit_table
from sweetspot.prices import read_architecture

with logged(snakemake.log[0]):
    architectures = {path.stem: read_architecture(path) for path in map(Path, snakemake.input.architectures)}
    predictor.write(fit_table(table.read([Path(snakemake.input.rows)]), architectures), Path(snakemake.output[0]))
