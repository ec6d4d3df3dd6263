from pathlib import Path

from sweetspot.campaign.collect import check_blocks, collect
from sweetspot.errors import logged

with logged(snakemake.log[0]):
    blocks = [Path(path) for path in snakemake.input.blocks]
    if snakemake.params.cells:
        check_blocks(blocks, snakemake.params.cells)
    collect(blocks, Path(snakemake.output[0]))
