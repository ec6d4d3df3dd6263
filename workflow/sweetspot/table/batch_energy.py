"""The energy of the whole batch, from tables that give it per request, per output token, or as a mean power."""

import re
from pathlib import Path

import polars as pl

from sweetspot.errors import SweetspotError

# By the column's name, as it must be: what to multiply it with.
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
_TOKENS = r"(energy|joules|j)(per)?(total)?tokens?(j|joules)?"  # of the reply, or of prompt and reply?


def whole_batch(path: Path, frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The frame with energy_j where another column and the batch, replies or durations give it; notes on that.

    A frame that has energy_j, or nothing of the kind, stays as it is. Raises SweetspotError where two columns could
    give it, or where one does not say of which tokens it is.
    """
    if "energy_j" in frame.columns:
        return frame, []
    kinds = {column: _kind(column) for column in frame.columns}
    found = {column: kind for column, kind in kinds.items() if kind and all(by in frame.columns for by in _BY[kind])}
    energies = {column: kind for column, kind in found.items() if kind != "power_w"} or found
    if len(energies) > 1:
        first = next(iter(energies))
        raise SweetspotError(
            f"{path}: {' and '.join(energies)} could all give energy_j; choose one with --map {first}={energies[first]}"
        )
    if not energies:
        if unclear := [column for column in frame.columns if re.fullmatch(_TOKENS, _plain(column))]:
            raise SweetspotError(
                f"{path}: column {unclear[0]} does not say of which tokens; if of those of the reply, add "
                f"--map '{unclear[0]}=energy_per_output_token_j', else give energy_j, joules of the whole batch"
            )
        return frame, []
    ((column, kind),) = energies.items()
    number = pl.col(column).cast(pl.Float64, strict=False)
    for by in _BY[kind]:
        number = number * pl.col(by).cast(pl.Float64, strict=False)
    # What gives no number is refused by its row, as it is written.
    energy = pl.coalesce(number.cast(pl.String), pl.col(column).cast(pl.String))
    return frame.with_columns(energy_j=energy), [f"energy_j is {' times '.join((column, *_BY[kind]))}"]


def _kind(column: str) -> str | None:
    return next((kind for header, kind in _HEADERS.items() if re.fullmatch(header, _plain(column))), None)


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", column.casefold().replace("/", "per"))
