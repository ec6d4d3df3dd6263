import json
from pathlib import Path

from sweetspot.campaign.campaign import Campaign
from sweetspot.campaign.offline import plan
from sweetspot.errors import logged
from sweetspot.files import write_atomically

with logged(snakemake.log[0]):
    architectures = {path.stem: json.loads(path.read_text()) for path in map(Path, snakemake.input)}
    content = plan(Campaign(snakemake.config), architectures)
    write_atomically(Path(snakemake.output[0]), json.dumps(content) + "\n")
