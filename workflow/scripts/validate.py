from pathlib import Path

from sweetspot import table
from sweetspot.errors import logged
from sweetspot.prices import read_architecture
from sweetspot.validation import validate, write

with logged(snakemake.log[0]):
    architectures = {path.stem: read_architecture(path) for path in map(Path, snakemake.input.architectures)}
    errors, predictions = validate(table.read([Path(snakemake.input.rows)]), architectures)
    write(errors, predictions, Path(snakemake.output.errors), Path(snakemake.output.predictions))
