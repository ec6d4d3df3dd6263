from pathlib import Path

from sweetspot import predictor, table
from sweetspot.errors import logged
from sweetspot.fit import fit_table

with logged(snakemake.log[0]):
    predictor.write(fit_table(table.read([Path(snakemake.input[0])])), Path(snakemake.output[0]))
