"""The columns of a measured row, and those that define its group and cell."""

from collections.abc import Iterable
from typing import Any

import pandera.polars as pa

from sweetspot.vocabulary import ONE_GPU, SELECTORS, SIMULATED, UNSAID, UNSPECIFIED

GROUP = ["model", *SELECTORS]
CELL = ["batch", "input_tokens", "output_tokens"]
SOURCES = [*SIMULATED, "measured", "published", UNSPECIFIED]

_COUNT: dict[str, Any] = {"gt": 0, "lt": 2**31}
# No run costs as little as a nanojoule, and relative errors of far smaller numbers overflow.
_ENERGY: dict[str, Any] = {"gt": 1e-9, "lt": 1e12}


class Row(pa.DataFrameModel):
    """One measured row: the energy of one run of a whole batch. Other columns pass through unchanged."""

    model: str = pa.Field(description="Name of the model.")
    batch: int = pa.Field(**_COUNT, description="Number of equal requests in the batch.")
    input_tokens: int = pa.Field(**_COUNT, description="Prompt length of each request, in tokens.")
    output_tokens: int = pa.Field(**_COUNT, description="Reply length of each request, in tokens.")
    energy_j: float = pa.Field(**_ENERGY, description="Energy of one run of the whole batch, in joules.")
    gpu: str = pa.Field(description="GPU, by its NVML name.", metadata={"default": UNSPECIFIED})
    engine: str = pa.Field(description="Inference engine.", metadata={"default": UNSPECIFIED})
    precision: str = pa.Field(description="Data type of the weights.", metadata={"default": UNSPECIFIED})
    parallelism: str = pa.Field(
        str_matches=r"^tp[1-9]\d*(-pp[1-9]\d*)?(-ep)?$",
        description="GPUs that share each layer, groups of layers, and `ep` if experts are spread: `tp1`, `tp4`, "
        "`tp2-pp2`, `tp8-ep`.",
        metadata={"default": ONE_GPU},
    )
    source: str = pa.Field(
        isin=SOURCES,
        description="Origin of the row: `simulated`, `simulated-kernels`, `measured` or `published`.",
        metadata={"default": UNSPECIFIED},
    )
    duration_s: float = pa.Field(
        nullable=True, gt=0, lt=1e9, description="Duration of that run, in seconds.", metadata={"default": None}
    )
    idle_w: float = pa.Field(
        nullable=True,
        gt=0,
        lt=1e6,
        description="Board power with the engine loaded and idle, in W.",
        metadata={"default": None},
    )
    in_flight: int = pa.Field(
        nullable=True,
        gt=0,
        lt=2**31,
        description="Largest number of requests of the batch that ran at once.",
        metadata={"default": None},
    )
    waves: float = pa.Field(
        ge=1,
        lt=2**31,
        description="Number of waves in which the batch ran: 1 unless the KV cache was too small for all requests at "
        "once.",
        metadata={"default": 1.0},
    )
    repetition: int = pa.Field(
        nullable=True, ge=0, lt=2**31, description="Number of the repetition.", metadata={"default": None}
    )
    experts: int = pa.Field(
        nullable=True,
        **_COUNT,
        description="Experts per layer of a mixture-of-experts model.",
        metadata={"default": None},
    )
    experts_per_token: int = pa.Field(
        nullable=True, **_COUNT, description="Experts that each token activates.", metadata={"default": None}
    )
    uncertainty_gain: float = pa.Field(
        nullable=True,
        ge=0,
        lt=1,
        description="Bound on the relative gain error of this board's sensors, the same in all its rows.",
        metadata={"default": None},
    )
    valid: bool = pa.Field(
        description="Whether the row passed its checks; `false` rows are kept but not fitted.",
        metadata={"default": True},
    )


def group_name(group: Iterable[str]) -> str:
    """A group (model, gpu, engine, precision, parallelism) for display, without what needs no mention."""
    return ", ".join(part for part in group if part not in UNSAID)
