"""The energy of a whole batch, from tables that give it per request, per output token or as mean power."""

import re
from pathlib import Path

import polars as pl

from sweetspot.errors import SweetspotError

# Factors that turn each kind of column into energy_j.
_BY = {
    "energy_per_request_j": ("batch",),
    "energy_per_output_token_j": ("batch", "output_tokens"),
    "power_w": ("duration_s",),
}
_HEADERS = {
    r"(energy|joules|j)per(request|req|prompt|query)(j|joules)?": "energy_per_request_j",
    r"(energy|joules|j)per(output|generated|completion)token(j|joules)?": "energy_per_output_token_j",
    r"(avg|average|mean)?(gpu)?power(draw)?(w|watts)": "power_w",
}
_TOKENS = r"(energy|joules|j)(per)?(total)?tokens?(j|joules)?"  # ambiguous: reply only, or prompt and reply


def whole_batch(path: Path, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Add energy_j if another column and the batch, reply lengths or durations determine it; also returns notes.

    A frame that has energy_j, or no such column, is unchanged. Raises SweetspotError if two columns could give it, or
    if a column does not say which tokens it counts.
    """
    if "energy_j" in frame.columns:
        return frame, []
    found = {
        column: kind
        for column in frame.columns
        for header, kind in _HEADERS.items()
        if _matches(header, column) and all(by in frame.columns for by in _BY[kind])
    }
    energies = {column: kind for column, kind in found.items() if kind != "power_w"} or found
    if len(energies) > 1:
        first = next(iter(energies))
        raise SweetspotError(
            f"{path}: {' and '.join(energies)} could all give energy_j; choose one with --map {first}={energies[first]}"
        )
    if not energies:
        if unclear := [column for column in frame.columns if _matches(_TOKENS, column)]:
            raise SweetspotError(
                f"{path}: column {unclear[0]} does not say which tokens it counts; if only output tokens, add "
                f"--map '{unclear[0]}=energy_per_output_token_j', otherwise give energy_j, joules of the whole batch"
            )
        return frame, []
    ((column, kind),) = energies.items()
    number = pl.col(column).cast(pl.Float64, strict=False)
    for by in _BY[kind]:
        number = number * pl.col(by).cast(pl.Float64, strict=False)
    # A value that is not a number stays, so that its row is reported as written.
    energy = pl.coalesce(number.cast(pl.String), pl.col(column).cast(pl.String))
    return frame.with_columns(energy_j=energy), [f"energy_j is {' times '.join((column, *_BY[kind]))}"]


def folded(header: str) -> str:
    """A header without case, spaces and punctuation: "Energy (J)" is "energyj"."""
    return re.sub(r"[^a-z0-9]+", "", header.casefold())


def _matches(header: str, column: str) -> bool:
    return bool(re.fullmatch(header, folded(column.replace("/", "per"))))
