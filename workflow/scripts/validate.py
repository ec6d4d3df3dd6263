from pathlib import Path

from sweetspot import table
from sweetspot.errors import logged
from sweetspot.validation import validate, write

with logged(snakemake.log[0]):
    errors, predictions = validate(table.read([Path(snakemake.input[0])]))
    write(errors, predictions, Path(snakemake.output.errors), Path(snakemake.output.predictions))
