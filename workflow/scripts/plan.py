from pathlib import Path

from sweetspot.campaign import Campaign
from sweetspot.errors import logged

with logged(snakemake.log[0]):
    Campaign(snakemake.config).write(Path(snakemake.output.cells), Path(snakemake.output.campaign))
