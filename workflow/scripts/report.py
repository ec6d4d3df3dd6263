from pathlib import Path

from sweetspot.errors import logged
from sweetspot.report import page
from sweetspot.report.results import Results

with logged(snakemake.log[0]):
    page.write(Results.read(snakemake.input), Path(snakemake.output[0]))
