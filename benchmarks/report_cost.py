"""Time and size of figures and report of a finished campaign: `python benchmarks/report_cost.py results/study`.

`snakemake --profile local --configfile config/study.yaml` makes 13 models x 49 cells x 4 batches. Goals for 13 models:
60 s, 15 MB.
"""

import sys
import tempfile
import time
from pathlib import Path

from sweetspot.report import page as report
from sweetspot.report.figures import draw_all
from sweetspot.report.results import Results


def main() -> None:
    """Draw and write into a temporary directory, and print what it took."""
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    start = time.perf_counter()
    names = ("measurements.parquet", "predictor.json", "validation.csv", "predictions.parquet", "plan.csv")
    results = Results.read({Path(name).stem: str(place / name) for name in (*names, "campaign.json")})
    with tempfile.TemporaryDirectory() as directory:
        figures, page = Path(directory) / "figures", Path(directory) / "report.html"
        files = draw_all(results, figures)
        drawn_s = time.perf_counter() - start
        report.write(results, page)
        models, cells = results.rows["model"].n_unique(), results.means.height
        print(f"{models} models, {cells} cells, {results.rows.height} rows")
        written_s = time.perf_counter() - start - drawn_s
        print(f"{len(files)} files of figures in {drawn_s:.1f} s, the page in {written_s:.1f} s")
        print(f"page {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
