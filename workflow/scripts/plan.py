from pathlib import Path

from sweetspot.campaign.campaign import Campaign
from sweetspot.errors import logged
from sweetspot.files import write_atomically

with logged(snakemake.log[0]):
    campaign = Campaign(snakemake.config)
    campaign.write(Path(snakemake.output.cells), Path(snakemake.output.campaign))
    blocks = Path(snakemake.output.blocks)
    for earlier in blocks.parent.iterdir():
        earlier.unlink()
    write_atomically(blocks, "".join(f"{model}\t{batch}\t{block}\n" for model, batch, block in campaign.jobs))
