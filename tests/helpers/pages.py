"""Outcome as a campaign leaves them, the page made of them, and that page taken apart."""

import random
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl

from sweetspot.fit.fit import fit_table
from sweetspot.fit.validation import validate
from sweetspot.report import figures
from sweetspot.report import page as report
from sweetspot.report.results import Results
from sweetspot.table import read as table
from sweetspot.vocabulary import SIMULATED

FOUR = ("opt-6.7b", "llama-3.1-8b", "gemma-2-9b", "qwen2-7b")
LENGTHS = (64, 256, 512, 1024, 2048)
NASTY = r'"><script>alert(1)</script>&amp;$\frac$'


@dataclass
class Outcome:
    """What a campaign leaves behind, by the names and in the order that `Results.of` takes."""

    measurements: pl.DataFrame
    predictor: dict[str, Any]
    validation: pl.DataFrame
    predictions: pl.DataFrame
    plan: pl.DataFrame | None
    campaign: dict[str, Any] | None


def results(
    directory: Path,
    models: tuple[str, ...] = FOUR,
    lengths: tuple[int, ...] = LENGTHS,
    batches: tuple[int, ...] = (1, 64),
    source: str = "simulated",
) -> Outcome:
    """A campaign whose rows obey steps-8 within 1 %: one row invalid, one cell of each model without any valid row."""
    rng = random.Random(1)
    rows, plan = [], []
    for index, model in enumerate(models):
        scale = 0.6 + 0.2 * index
        for batch in batches:
            for n in lengths:
                for m in lengths:
                    fits = n + m <= (2048 if model.startswith(("opt", "falcon")) else 4096 * 4)
                    reason = "" if fits else "positions: input + output tokens exceed the model's 2048 positions"
                    flags = "power_capped" if batch > 32 and n >= 1024 else ""
                    cell = {"model": model, "batch": batch, "input_tokens": n, "output_tokens": m}
                    plan.append({**cell, "status": "run" if fits else "skipped", "reason": reason, "flags": flags})
                    lost = (n, m) == (lengths[1], lengths[1]) and batch == batches[-1]
                    rows += [row(cell, scale, r, rng, source, flags, lost) for r in range(3) if fits]
    rows[4] |= {"valid": False, "reasons": "counter_vs_integral"}
    path = directory / f"{source}-{len(models)}.parquet"
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    read = table.read([path])
    validation, predictions = validate(read)
    protocol = {"window_s": 10.0, "repetitions": 3, "version": 1}
    campaign = {
        "schema_version": 1,
        "campaign": "synthetic",
        "sweetspot_version": "0.1.0",
        "config": {"engine": {"name": "simulated"}, "gpu": "NVIDIA H100 80GB HBM3", "protocol": protocol, "seed": 1},
        "python": "3.13.0",
        "platform": "Linux",
        "models": [
            {
                "name": model,
                "source": f"https://example.org/{model}/config.json",
                "precision": "bfloat16",
                "parameters": 7_000_000_000,
                "family": model.split("-")[0],
                "layers": 32,
                "hidden": 4096,
                "heads": 32,
                "kv_heads": 32 if model.startswith("opt") else 8,
                "attention": "MHA" if model.startswith("opt") else "GQA",
            }
            for model in models
        ],
    }
    return Outcome(read.frame, fit_table(read), validation, predictions, pl.DataFrame(plan), campaign)


def latencies(batch: int, n: int, m: int, rng: random.Random) -> dict[str, float]:
    """Latencies in s with prefill in passes of 8192 tokens, within 1 %; percentiles of the requests of a batch."""
    whole, one_pass = batch * n, 8192
    ttft = {"mean": (whole + min(whole, one_pass)) / 2}
    ttft |= {f"p{q}": min(whole, q / 100 * whole + one_pass / 2) for q in (50, 95, 99)}
    step_s = 6e-3 + 2e-5 * batch + 5e-9 * batch * (n + m / 2) + 1e-5 * whole / m
    found = {f"ttft_{name}_s": (5e-3 + 1.5e-5 * tokens) * rng.gauss(1, 0.01) for name, tokens in ttft.items()}
    return found | {f"tpot_{name}_s": step_s * rng.gauss(1, 0.01) for name in ttft}


def row(
    cell: dict[str, Any], scale: float, repetition: int, rng: random.Random, source: str, flags: str, lost: bool
) -> dict[str, Any]:
    batch, n, m = cell["batch"], cell["input_tokens"], cell["output_tokens"]
    per_token = 0.02 + 6 / batch + 2e-7 * n * n / m + 2e-5 * n + 0.02 * n / m + 1e-5 * m + (0.3 + 5 / batch) / m
    energy = scale * per_token * batch * m * rng.gauss(1, 0.01)
    return {
        "schema_version": 1,
        "campaign": "synthetic",
        **cell,
        "repetition": repetition,
        "energy_j": energy,
        "duration_s": energy / 500,
        **latencies(batch, n, m, rng),
        "temperature_c": 55.0,
        "valid": not lost,
        "reasons": "counter_stuck" if lost else "",
        "flags": flags,
        "gpu": "NVIDIA H100 80GB HBM3",
        "engine": "simulated" if source in SIMULATED else "tensorrt-llm",
        "engine_version": "0.1",
        "driver_version": "580.1",
        "precision": "bfloat16",
        "weights": "dummy",
        "source": source,
    }


def page(results: Outcome, directory: Path) -> str:
    """Draw and write everything as the workflow does; the page as text."""
    prepared = Results.of(**vars(results))
    figures.draw_all(prepared, directory / "figures")
    report.write(prepared, directory / "report.html")
    return (directory / "report.html").read_text(encoding="utf-8")


@dataclass
class Made:
    """A page, the results it shows, and where its figures lie."""

    results: Outcome
    html: str
    directory: Path

    @property
    def path(self) -> Path:
        """The page as a file."""
        return self.directory / "report.html"


class PageText(HTMLParser):
    """What a browser would fetch, the ids, the tables, and the words that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.words = ""
        self._cell: list[str] | None = None
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in ("script", "style")
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            elif name == "href" and tag == "a":
                self.links.append(str(value))
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                self.fetched.append(str(value))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th", "caption"):
            self._cell = []

    def handle_data(self, data: str) -> None:
        data = data.replace("\u00a0", " ")
        if self._cell is not None:
            self._cell.append(data)
        if not self._hidden:
            self.words += data

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        if tag in ("td", "th", "caption") and self._cell is not None:
            text, self._cell = "".join(self._cell), None
            if tag == "caption":
                self.captions.append(text)
            else:
                self.tables[-1][-1].append(text)

    def table(self, caption: str) -> list[list[str]]:
        """The rows, header first, of the table whose caption starts so."""
        return next(rows for rows, said in zip(self.tables, self.captions, strict=True) if said.startswith(caption))
