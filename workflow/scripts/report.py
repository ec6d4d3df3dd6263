from pathlib import Path

from sweetspot.errors import logged
from sweetspot.report import page
from sweetspot.report.results import Results

with logged(snakemake.log[0]):
    files = {name: file for name, file in snakemake.input.items() if name != "figures"}
    page.write(Results.read(files), Path(snakemake.input.figures), Path(snakemake.output[0]))
