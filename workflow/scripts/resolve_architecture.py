import json
from dataclasses import asdict
from pathlib import Path

from sweetspot.architecture import load, published_config
from sweetspot.errors import logged
from sweetspot.journal import write_atomically

with logged(snakemake.log[0]):
    path = Path(snakemake.input[0])
    architecture = load(path)
    record = {
        "schema_version": 1,
        "parameters": architecture.parameters(),
        "architecture": asdict(architecture),
        "config": published_config(path),
    }
    write_atomically(Path(snakemake.output[0]), json.dumps(record, indent=2) + "\n")
