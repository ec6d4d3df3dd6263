from pathlib import Path

from sweetspot.errors import logged
from sweetspot.fit.validation import validate, write
from sweetspot.predict.across_models import read_architecture
from sweetspot.table import read as table

with logged(snakemake.log[0]):
    architectures = {path.stem: read_architecture(path) for path in map(Path, snakemake.input.architectures)}
    errors, predictions = validate(table.read([Path(snakemake.input.rows)]), architectures)
    write(errors, predictions, Path(snakemake.output.errors), Path(snakemake.output.predictions))
