from pathlib import Path

from sweetspot.errors import logged
from sweetspot.fit.validation import validate, write
from sweetspot.models import load
from sweetspot.table import read as table

with logged(snakemake.log[0]):
    architectures = {path.stem: load(path) for path in map(Path, snakemake.input.architectures)}
    errors, predictions = validate(table.read([Path(snakemake.input.rows)]), architectures)
    write(errors, predictions, Path(snakemake.output.errors), Path(snakemake.output.predictions))
