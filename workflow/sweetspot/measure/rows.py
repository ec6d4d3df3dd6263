"""Turns the journal of a block into rows, and adds what only the whole block shows.

This is how well the repetitions of a cell agree, whether the anchor drifted, and the idle power afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import hypot
from operator import itemgetter
from statistics import fmean, median
from typing import Any

from sweetspot.measure.journal import Cell
from sweetspot.measure.protocol import Protocol, relative_interval

_CAUSES = ("gain", "counter_step", "tail", "replicates", "drift")

Record = Mapping[str, Any]


def place(record: Mapping[str, Any]) -> Cell:
    """The cell of a record or row."""
    return record["input_tokens"], record["output_tokens"]


def of_cells(records: Sequence[Record]) -> dict[Cell, list[dict[str, Any]]]:
    """All rows so far of each cell, sorted by repetition."""
    cells: dict[Cell, list[dict[str, Any]]] = {}
    for row in sorted((row for record in records for row in record.get("rows", ())), key=itemgetter("repetition")):
        cells.setdefault(place(row), []).append(row)
    return cells


def is_finished(records: Sequence[Record], cell: Cell, visit: int, protocol: Protocol) -> bool:
    """Whether a visit has a valid row and was not cut short by a failing sensor, or was tried as often as allowed."""
    tried = [record for record in records if "rows" in record and record["visit"] == visit and place(record) == cell]
    whole = [record for record in tried if not record.get("cut_short")]
    return any(row["valid"] for record in whole for row in record["rows"]) or len(tried) > protocol.retries


def finish(records: Sequence[Record], wanted: Iterable[Cell], protocol: Protocol) -> list[dict[str, Any]]:
    """The rows of the `wanted` cells measured so far, sorted by cell and repetition, with all that is known now.

    Adds uncertainty_replicates (half-width of the 95 % t-interval of the cell's mean), uncertainty_drift (largest
    difference between the anchors before and after the row and the median anchor), uncertainty_total (root sum of
    squares of all parts) and idle_after_w (W; null if the session was cut off). Uncertainties are relative to the row's
    energy, and null if unknown.
    """
    drifts = _drifts(records)
    after_w = {record["session"]: record["idle_after_w"] for record in records if "idle_after_w" in record}
    cells, finished = of_cells(records), []
    for cell in sorted(set(wanted) & cells.keys()):
        replicates = relative_interval([row["energy_j"] for row in cells[cell] if row["valid"]])
        for row in cells[cell]:
            drift = drifts.get((*cell, row["repetition"]))
            parts = {"uncertainty_replicates": replicates, "uncertainty_drift": drift}
            if row["energy_j"] is None:
                parts = dict.fromkeys(parts)
            flags = [flag for flag in row["flags"].split(";") if flag]
            flags += ["drifted"] * (drift is not None and drift > protocol.anchor_drift)
            row = {**row, **parts, "flags": ";".join(flags), "idle_after_w": after_w.get(row["session"])}
            known = [row[f"uncertainty_{cause}"] for cause in _CAUSES]
            total = hypot(*(part for part in known if part is not None)) if row["energy_j"] is not None else None
            finished.append({**row, "uncertainty_total": total})
    return finished


def _drifts(records: Sequence[Record]) -> dict[tuple[int, int, int], float]:
    """Drift around each row, by (input_tokens, output_tokens, repetition); needs at least two anchor visits."""
    anchors: dict[Cell, list[float]] = {}
    for record in records:
        if (energy_j := _anchor_j(record)) is not None:
            anchors.setdefault(place(record), []).append(energy_j)
    usual_j = {cell: median(energies) for cell, energies in anchors.items() if len(energies) > 1}
    found = {}
    for session in {record["session"] for record in records}:
        visits = [record for record in records if record["session"] == session and "rows" in record]
        for index, record in enumerate(visits):
            before = [anchor for anchor in visits[: index + 1] if _anchor_j(anchor) is not None][-1:]
            after = [anchor for anchor in visits[index:] if _anchor_j(anchor) is not None][:1]
            cells = {place(anchor) for anchor in before + after} & usual_j.keys()
            if not cells:
                continue
            usual = usual_j[cells.pop()]  # a session has one anchor
            energies = [usual, *(_anchor_j(anchor) or usual for anchor in before + after)]
            for row in record["rows"]:
                found[(*place(row), row["repetition"])] = (max(energies) - min(energies)) / usual
    return found


def _anchor_j(record: Record) -> float | None:
    """Mean energy of the valid repetitions of an anchor visit, in J; None for any other visit."""
    if "rows" not in record or record["visit"] is not None:
        return None
    energies = [row["energy_j"] for row in record["rows"] if row["valid"]]
    return fmean(energies) if energies else None
