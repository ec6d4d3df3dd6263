from pathlib import Path

from sweetspot.errors import logged
from sweetspot.report.figures import draw_all
from sweetspot.table.files import read_result

READ = ("measurements", "predictor", "validation", "predictions", "plan", "campaign")

with logged(snakemake.log[0]):
    draw_all(
        *(read_result(Path(snakemake.input[name])) for name in READ),
        Path(snakemake.output[0]),
    )
