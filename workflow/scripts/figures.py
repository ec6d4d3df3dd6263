from pathlib import Path

from sweetspot.errors import logged
from sweetspot.report.figures import draw_all
from sweetspot.report.results import Results

with logged(snakemake.log[0]):
    draw_all(Results.read(snakemake.input), Path(snakemake.output[0]))
