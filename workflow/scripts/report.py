from pathlib import Path

from sweetspot.errors import logged
from sweetspot.report import page as report
from sweetspot.table.files import read_result

READ = ("measurements", "predictor", "validation", "predictions", "plan", "campaign")

with logged(snakemake.log[0]):
    report.write(
        *(read_result(Path(snakemake.input[name])) for name in READ),
        Path(snakemake.input.figures),
        Path(snakemake.output[0]),
    )
