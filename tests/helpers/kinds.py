"""One table, which costs 0.5 J per output token at 350 W on an H100, written in the ways that people write tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweetspot.errors import SweetspotError
from sweetspot.table import read as table

MODEL, GPU, BATCH = "llama-3.1-8b", "NVIDIA H100 80GB HBM3", 8
J_PER_TOKEN, WATTS = 0.5, 350.0
HEADER = ("model", "batch", "input_tokens", "output_tokens", "energy_j", "duration_s", "gpu")


class Cell:
    """Lengths, and the energy (J) and time (s) of one run of the batch."""

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.e = BATCH * m * J_PER_TOKEN
        self.t = self.e / WATTS


CELLS = [Cell(n, m) for n in (64, 512, 2048) for m in (64, 256, 1024, 2048)]


def plain(cell: Cell) -> list[Any]:
    return [MODEL, BATCH, cell.n, cell.m, cell.e, cell.t, GPU]


def text(header: str | Sequence[str], row: Callable[[Cell], Sequence[Any]] = plain, separator: str = ",") -> str:
    """A table with these columns; a header given as text is split at its commas."""
    names = header.split(",") if isinstance(header, str) else header
    lines = [names, *(row(cell) for cell in CELLS)]
    return "".join(separator.join(map(str, line)) + "\n" for line in lines)


def german(number: float, digits: int = 3) -> str:
    """1234.5 as "1.234,500"."""
    return f"{number:,.{digits}f}".replace(",", "_").replace(".", ",").replace("_", ".")


def per_token(rows: table.Table) -> float:
    valid = rows.frame.filter("valid")
    return float((valid["energy_j"] / (valid["batch"] * valid["output_tokens"])).median())  # type: ignore[arg-type]


def joules(path: Path, content: str | bytes, *maps: str) -> float:
    """Joules per output token of the table, which must have the lengths and times of `CELLS`."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    rows = table.read([path], dict(each.split("=") for each in maps))
    assert not rows.impossible
    cells = {(cell.n, cell.m): cell for cell in CELLS}
    for row in rows.frame.filter("valid").iter_rows(named=True):
        assert (row["model"], row["batch"]) == (MODEL, BATCH)
        assert row["duration_s"] is None or row["duration_s"] == pytest.approx(
            cells[row["input_tokens"], row["output_tokens"]].t, rel=1e-3
        )
    return per_token(rows)


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SweetspotError) as caught:
        table.read([path])
    return str(caught.value)
