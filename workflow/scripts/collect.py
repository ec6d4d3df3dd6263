from pathlib import Path

from sweetspot.errors import logged
from sweetspot.table import collect

with logged(snakemake.log[0]):
    collect([Path(path) for path in snakemake.input], Path(snakemake.output[0]))
