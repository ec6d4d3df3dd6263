"""The columns of a measured row, and those that define its group and cell."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandera.polars as pa
import polars as pl

from sweetspot.vocabulary import ONE_GPU, SELECTORS, SIMULATED, UNSAID, UNSPECIFIED

GROUP = ["model", *SELECTORS]
CELL = ["batch", "input_tokens", "output_tokens"]
SOURCES = [*SIMULATED, "measured", "published", UNSPECIFIED]

_COUNT: dict[str, Any] = {"gt": 0, "lt": 2**31}
# No run costs as little as a nanojoule, and relative errors of far smaller numbers overflow.
_ENERGY: dict[str, Any] = {"gt": 1e-9, "lt": 1e12}


def _optional(description: str, default: Any = None, **checks: Any) -> Any:
    """A column that a table may lack; without a default, values may be missing."""
    return pa.Field(nullable=default is None, description=description, metadata={"default": default}, **checks)


class Row(pa.DataFrameModel):
    """One measured row: the energy of one run of a whole batch. Other columns pass through unchanged."""

    model: str = pa.Field(description="Name of the model.")
    batch: float = pa.Field(
        ge=1,
        lt=2**31,
        description="Number of equal requests in the batch; of a served run the mean number in flight, such as 3.7.",
    )
    input_tokens: int = pa.Field(**_COUNT, description="Prompt length of each request, in tokens.")
    output_tokens: int = pa.Field(**_COUNT, description="Reply length of each request, in tokens.")
    energy_j: float = pa.Field(**_ENERGY, description="Energy of one run of the whole batch, in joules.")
    gpu: str = _optional("GPU, by its NVML name.", UNSPECIFIED)
    engine: str = _optional("Inference engine.", UNSPECIFIED)
    precision: str = _optional("Formats of weights, activations (`+a_`) and KV cache (`+kv_`).", UNSPECIFIED)
    parallelism: str = _optional(
        "GPUs that share each layer, groups of layers, and `ep` if experts are spread: `tp1`, `tp4`, `tp2-pp2`, "
        "`tp8-ep`.",
        ONE_GPU,
        str_matches=r"^tp[1-9]\d*(-pp[1-9]\d*)?(-ep)?$",
    )
    source: str = _optional(
        "Origin of the row: `simulated`, `simulated-kernels`, `measured` or `published`.", UNSPECIFIED, isin=SOURCES
    )
    duration_s: float = _optional("Duration of that run, in seconds.", gt=0, lt=1e9)
    idle_w: float = _optional("Board power with the engine loaded and idle, in W.", gt=0, lt=1e6)
    in_flight: int = _optional("Largest number of requests of the batch that ran at once.", **_COUNT)
    waves: float = _optional(
        "Number of waves in which the batch ran: 1 unless the KV cache was too small for all requests at once.",
        1.0,
        ge=1,
        lt=2**31,
    )
    repetition: int = _optional("Number of the repetition.", ge=0, lt=2**31)
    experts: int = _optional("Experts per layer of a mixture-of-experts model.", **_COUNT)
    experts_per_token: int = _optional("Experts that each token activates.", **_COUNT)
    uncertainty_gain: float = _optional(
        "Bound on the relative gain error of this board's sensors, the same in all its rows.", ge=0, lt=1
    )
    valid: bool = _optional("Whether the row passed its checks; `false` rows are kept but not fitted.", True)


COLUMNS = Row.to_schema().columns
REQUIRED = [name for name, column in COLUMNS.items() if "default" not in (column.metadata or {})]


def rows_of(frame: pl.DataFrame, group: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of `frame` that belong to `group`."""
    return frame.filter(*(pl.col(name) == group[name] for name in GROUP))


def group_name(group: Iterable[str]) -> str:
    """A group (model, gpu, engine, precision, parallelism) for display, without what needs no mention."""
    return ", ".join(part for part in group if part not in UNSAID)
