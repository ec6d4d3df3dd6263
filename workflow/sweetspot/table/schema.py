"""What a row of measured energy is: its columns, and what makes rows a group and a cell."""

from collections.abc import Iterable
from typing import Any

import pandera.polars as pa

GROUP = ["model", "gpu", "engine", "precision"]
CELL = ["batch", "input_tokens", "output_tokens"]
UNSPECIFIED = "unspecified"
SOURCES = ["simulated", "measured", "published", UNSPECIFIED]

_COUNT: dict[str, Any] = {"gt": 0, "lt": 2**31}
# No run costs a nanojoule, and far below it the arithmetic of relative errors breaks down.
_ENERGY: dict[str, Any] = {"gt": 1e-9, "lt": 1e12}


class Row(pa.DataFrameModel):
    """One measured row: the energy of one run of a whole batch. Other columns pass through untouched."""

    model: str = pa.Field(description="Name of the model.")
    batch: int = pa.Field(**_COUNT, description="Equal requests in the batch.")
    input_tokens: int = pa.Field(**_COUNT, description="Prompt length of each request, in tokens.")
    output_tokens: int = pa.Field(**_COUNT, description="Reply length of each request, in tokens.")
    energy_j: float = pa.Field(**_ENERGY, description="Energy of one run of the whole batch, in joules.")
    gpu: str = pa.Field(description="GPU, by the name that NVML reports.", metadata={"default": UNSPECIFIED})
    engine: str = pa.Field(description="Inference engine.", metadata={"default": UNSPECIFIED})
    precision: str = pa.Field(description="Data type of the weights.", metadata={"default": UNSPECIFIED})
    source: str = pa.Field(
        isin=SOURCES,
        description="Where the row comes from: `simulated`, `measured` or `published`.",
        metadata={"default": UNSPECIFIED},
    )
    duration_s: float = pa.Field(
        nullable=True, gt=0, lt=1e9, description="Duration of that run, in seconds.", metadata={"default": None}
    )
    idle_w: float = pa.Field(
        nullable=True,
        gt=0,
        lt=1e6,
        description="Power of the board with the engine loaded and no work, in W.",
        metadata={"default": None},
    )
    in_flight: int = pa.Field(
        nullable=True,
        gt=0,
        lt=2**31,
        description="Most requests of the batch that ran at once.",
        metadata={"default": None},
    )
    waves: float = pa.Field(
        ge=1,
        lt=2**31,
        description="How often the engine had to fill up to run the whole batch: 1 unless its KV cache was too small "
        "for all requests at once.",
        metadata={"default": 1.0},
    )
    repetition: int = pa.Field(
        nullable=True, ge=0, lt=2**31, description="Number of the repetition.", metadata={"default": None}
    )
    experts: int = pa.Field(
        nullable=True,
        **_COUNT,
        description="Experts of a layer, for a mixture of experts.",
        metadata={"default": None},
    )
    experts_per_token: int = pa.Field(
        nullable=True, **_COUNT, description="How many of them a token activates.", metadata={"default": None}
    )
    uncertainty_gain: float = pa.Field(
        nullable=True,
        ge=0,
        lt=1,
        description="Relative systematic error that the sensors of this board may have, the same in all its rows.",
        metadata={"default": None},
    )
    valid: bool = pa.Field(
        description="Whether the row passed its checks; a row that is `false` is kept and not fitted.",
        metadata={"default": True},
    )


def group_name(group: Iterable[str]) -> str:
    """A group (model, gpu, engine, precision) for people; what is unspecified is left out."""
    return ", ".join(part for part in group if part != UNSPECIFIED)
