"""Time and size of figures and report of a finished campaign: `python benchmarks/report_cost.py results/study`.

`snakemake --profile local --configfile config/study.yaml` makes 13 models x 49 cells x 4 batches. Goals for 13 models:
60 s, 15 MB.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from sweetspot.report import page as report
from sweetspot.report.figures import draw_all


def main() -> None:
    """Draw and write into a temporary directory, and print what it took."""
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    start = time.perf_counter()
    results = (
        pl.read_parquet(place / "measurements.parquet"),
        json.loads((place / "predictor.json").read_text()),
        pl.read_csv(place / "validation.csv", schema_overrides={"model": pl.String}),
        pl.read_parquet(place / "predictions.parquet"),
        pl.read_csv(place / "plan.csv", schema_overrides={"model": pl.String}),
        json.loads((place / "campaign.json").read_text()),
    )
    with tempfile.TemporaryDirectory() as directory:
        figures, page = Path(directory) / "figures", Path(directory) / "report.html"
        files = draw_all(*results, figures)
        drawn_s = time.perf_counter() - start
        report.write(*results, figures, page)
        models, cells = results[0]["model"].n_unique(), results[4].height
        print(f"{models} models, {cells} planned cells, {results[0].height} rows")
        written_s = time.perf_counter() - start - drawn_s
        print(f"{len(files)} files of figures in {drawn_s:.1f} s, the page in {written_s:.1f} s")
        print(f"page {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
