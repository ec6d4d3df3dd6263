from pathlib import Path

from sweetspot.errors import logged
from sweetspot.files import write_atomically
from sweetspot.report import findings, page
from sweetspot.report.results import Results

with logged(snakemake.log[0]):
    files = {name: file for name, file in snakemake.input.items() if name != "figures"}
    results = Results.read(files)
    page.write(results, Path(snakemake.input.figures), Path(snakemake.output.page))
    # The sentences that open the page, for the terminal.
    write_atomically(Path(snakemake.output.findings), "".join(f"{line}\n" for line in findings.sentences(results)))
