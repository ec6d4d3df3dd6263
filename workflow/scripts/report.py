from pathlib import Path

from sweetspot.errors import logged
from sweetspot.files import write_atomically
from sweetspot.report import findings, page
from sweetspot.report.results import Results

with logged(snakemake.log[0]):
    results = Results.read(snakemake.input)
    page.write(results, Path(snakemake.output.page))
    # The sentences that open the page, for the terminal.
    write_atomically(Path(snakemake.output.findings), "".join(f"{line}\n" for line in findings.sentences(results)))
