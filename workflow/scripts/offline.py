import json
from pathlib import Path

from sweetspot.campaign import Campaign
from sweetspot.errors import logged
from sweetspot.journal import write_atomically
from sweetspot.unattended import plan

with logged(snakemake.log[0]):
    architectures = {path.stem: json.loads(path.read_text()) for path in map(Path, snakemake.input)}
    content = plan(Campaign(snakemake.config), architectures)
    write_atomically(Path(snakemake.output[0]), json.dumps(content) + "\n")
