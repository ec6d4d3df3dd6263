import json
from pathlib import Path

from sweetspot.errors import logged
from sweetspot.files import write_atomically
from sweetspot.models import resolved

with logged(snakemake.log[0]):
    record = resolved(Path(snakemake.input[0]))
    write_atomically(Path(snakemake.output[0]), json.dumps(record, indent=2) + "\n")
