import json
from dataclasses import asdict
from pathlib import Path

from sweetspot.architecture import load
from sweetspot.errors import logged
from sweetspot.journal import write_atomically

with logged(snakemake.log[0]):
    architecture = load(Path(snakemake.input[0]))
    record = {"schema_version": 1, "parameters": architecture.parameters(), "architecture": asdict(architecture)}
    write_atomically(Path(snakemake.output[0]), json.dumps(record, indent=2) + "\n")
