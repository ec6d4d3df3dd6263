"""The definition of a campaign: its configuration file, table of models and list of cells.

The checks, the JSON schemas in workflow/schemas and docs/configuration.md all come from the classes in this module.
"""

import csv
import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sweetspot import engines, gpus
from sweetspot.engines import server
from sweetspot.errors import SweetspotError
from sweetspot.measure.protocol import Protocol, contradictions
from sweetspot.models import find
from sweetspot.parallelism import Parallelism
from sweetspot.precision import ACTIVATIONS, NAMES, Precision
from sweetspot.table.files import load, shortened, whole_numbers

_NAME, _PLACE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", r"^[^{}\x00-\x1f]+$"
Name = Annotated[str, Field(pattern=_NAME)]
Length = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Number = Annotated[float, Field(strict=True)]
# Snakemake takes braces for wildcards.
Place = Annotated[str, Field(pattern=_PLACE)]
if TYPE_CHECKING:
    from builtins import str as EngineName
    from builtins import str as Format
else:
    EngineName = Literal[tuple(engines.names())]
    Format = Literal[ACTIVATIONS]


_PARALLEL = ("tensor_parallel", "pipeline_parallel", "expert_parallel")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EngineConfig(_Strict):
    """The inference engine and how it is run."""

    name: EngineName = Field(
        description=f"Engine: {'; '.join(f'`{name}` {what}' for name, what in engines.names().items())}."
    )
    kv_cache_fraction: Number = Field(
        0.9, gt=0, le=1, description="Share of the GPU memory left by the weights that the KV cache may use."
    )
    cuda_graphs: bool = Field(True, strict=True, description="Whether decode passes run as CUDA graphs.")
    in_flight_batching: bool = Field(
        True,
        strict=True,
        description="Whether requests join and leave the batch independently (TensorRT-LLM's `GUARANTEED_NO_EVICT`) or "
        "a batch starts and ends as a whole (`STATIC_BATCH`). vLLM supports only the first.",
    )
    python: str | None = Field(
        None, description="Command of the Python in the engine's environment; by default the one that runs Snakemake."
    )

    url: str | None = Field(
        None,
        description="Servers: the address, as `http://localhost:8000`. It must be on this machine, where its GPU's "
        "energy can be read. A key in the environment variable `OPENAI_API_KEY` is sent.",
    )
    command: str | None = Field(
        None,
        description="Servers: the command that starts the server, if a job is to start it and stop it again. It is not "
        "run by a shell. `{port}` becomes a free port (or that of `url`), `{model}` the checkpoint's directory or one "
        "with a config.json for random weights, `{name}` the model's name, `{batch}` the batch, `{tokens}` the length "
        "of the longest request, and `{precision}` the precision. Its output goes to `server.log` in the engine's "
        "directory.",
    )
    pid: Length | None = Field(
        None,
        description="Servers: the id of a process of the server that runs at `url`; by default the one that listens on "
        "its port. It and its descendants may use the GPU; any other process makes rows invalid.",
    )
    container: str | None = Field(
        None,
        description="Servers: instead of `pid`, the name of the Docker or Podman container that the server runs in.",
    )

    @model_validator(mode="after")
    def _server_for_its_settings(self) -> "EngineConfig":
        named = [key for key in ("url", "command", "pid", "container") if getattr(self, key) is not None]
        if not engines.is_server(self.name):
            if named:
                raise ValueError(f"engine {self.name} is no server; leave engine.{named[0]} out")
        elif wrong := server.mistake(self.url, self.command):
            raise ValueError(f"engine {self.name}: {wrong}")
        elif self.pid is not None and self.container is not None:
            raise ValueError("engine.pid and engine.container name the same thing; leave one out")
        elif self.command is not None and {"pid", "container"} & set(named):
            raise ValueError(
                "engine.command starts a server whose process is known; leave engine.pid and container out"
            )
        return self

    @model_validator(mode="after")
    def _settings_that_the_engine_has(self) -> "EngineConfig":
        for key, why in engines.fixed_settings(self.name).items():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"engine {self.name} {why}; leave engine.{key} out")
        return self


class Board(_Strict):
    """What the data sheet of a GPU says, for plans and simulations; where it is measured, the GPU speaks for itself."""

    memory_gb: Number = Field(gt=0, description="Memory, in 10^9 bytes.")
    power_limit_w: Number = Field(gt=0, description="Power limit.")
    bandwidth_gb_per_s: Number = Field(gt=0, description="Memory bandwidth, in 10^9 bytes per second.")
    tflops: dict[Format, Annotated[Number, Field(gt=0)]] = Field(
        min_length=1,
        description=f"Rates of the tensor cores by format ({', '.join(ACTIVATIONS)}), in 10^12 operations per second: "
        "dense, without sparsity. A format that is left out is one that the GPU cannot compute in.",
    )


class Config(_Strict):
    """One campaign."""

    campaign: Name = Field(description="Name of the campaign; its results go to `<results>/<campaign>/`.")
    results: Place = Field("results", description="Directory for results, relative to the working directory.")
    models: Place = Field("config/models.tsv", description="Table of models (tab-separated).")
    select: list[Name] | None = Field(None, min_length=1, description="Names of the models to measure; by default all.")
    rows: Place | None = Field(
        None,
        description="Table of rows (Parquet, CSV, JSON) to analyse instead of measuring, relative to the working "
        "directory: `resources/measurements/NAME/rows.parquet`.",
    )
    input_tokens: list[Length] = Field(min_length=1, description="Prompt lengths, in tokens.")
    output_tokens: list[Length] = Field(min_length=1, description="Reply lengths, in tokens.")
    batches: list[Length] = Field(min_length=1, description="Batch sizes: numbers of equal requests in flight.")
    cells: Place | None = Field(
        None,
        description="List of cells to measure instead of the whole grid, as `sweetspot design` writes it (CSV with "
        "columns model, batch, input_tokens, output_tokens), relative to the working directory.",
    )
    engine: EngineConfig
    gpu: str = Field("NVIDIA H100 80GB HBM3", description="The GPU, by its NVML name.")
    board: Board | None = None
    machine: Place | None = Field(
        None,
        description="Machine record of `sweetspot probe`: its numbers replace the protocol's defaults, but not what "
        "`protocol` sets.",
    )
    positions: Literal["skip", "extend"] = Field(
        "skip",
        description="What to do with cells longer than the model's positions: `skip` lists them as skipped; `extend` "
        "measures them with a longer position table (random weights only) and flags them.",
    )
    cells_per_job: Length | Literal["all"] = Field(
        "all", description="Cells that one job measures with one loaded engine: from 1 to `all` of a (model, batch)."
    )
    seed: int = Field(
        1, ge=0, lt=2**63, strict=True, description="Seed of the order of cells, the random prompts and the simulator."
    )
    protocol: Protocol = Field(default_factory=Protocol, description="The measurement protocol.")

    @model_validator(mode="after")
    def _board_of_another_gpu(self) -> "Config":
        if self.board and self.gpu in gpus.names():
            raise ValueError(f"gpu {self.gpu!r} has a data sheet here; leave board out, or name the GPU it describes")
        return self

    @model_validator(mode="after")
    def _possible_protocol(self) -> "Config":
        if wrong := "; ".join(contradictions(self.protocol)):
            raise ValueError(f"protocol: {wrong}")
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> "Config":
        for name in ("input_tokens", "output_tokens", "batches", "select"):
            counted = Counter(getattr(self, name) or [])
            repeated = sorted(str(value) for value, count in counted.items() if count > 1)
            if repeated:
                raise ValueError(f"{name}: {shortened(repeated, ', ')} listed more than once; remove the duplicates")
        return self


class ModelRow(_Strict):
    """One row of the table of models."""

    model: Name = Field(description="Name of the model in all results.")
    architecture: Place = Field(
        description="The publisher's config.json, or its directory, relative to this table; or the model's name on the "
        "hub (`Qwen/Qwen3-8B`), whose config.json then comes from the local cache or the network."
    )
    precision: str | None = Field(
        None,
        description=f"Format of the weights: {', '.join(NAMES)}; by default what `quantization_config` of the "
        "config.json says, else `bfloat16`. It implies that of the activations: 16 bits for `int4` and `mxfp4`, else "
        "the same; `+a_FORMAT` names another one, `+kv_FORMAT` that of a KV cache of less than 16 bits: `fp8+kv_fp8`.",
    )
    weights: Literal["dummy", "gaussian", "checkpoint"] = Field(
        "dummy",
        description="`dummy`: the engine's own random weights. `gaussian`: random weights as before training, "
        "N(0, 0.02). `checkpoint`: the weights in `checkpoint`. The simulation uses none.",
    )
    checkpoint: str | None = Field(
        None,
        description="Directory of a downloaded model with its weights, relative to this table. Its name identifies "
        "the weights: the directory may move, but other weights need another name.",
    )

    tensor_parallel: int = Field(
        1, gt=0, lt=2**31, description="GPUs of one node that share each layer. It divides the model's attention heads."
    )
    pipeline_parallel: int = Field(
        1,
        gt=0,
        lt=2**31,
        description="Groups of layers, each on `tensor_parallel` GPUs of its own; a job takes the product of both.",
    )
    expert_parallel: bool = Field(
        False,
        description="Whether the experts of a mixture are spread over the `tensor_parallel` GPUs, each whole on one.",
    )

    @field_validator("precision")
    @classmethod
    def _one_name(cls, value: str | None) -> str | None:
        try:
            return None if value is None else Precision.of(value).name
        except SweetspotError as error:
            raise ValueError(str(error)) from None

    @property
    def parallelism(self) -> Parallelism:
        """How the model is spread over GPUs."""
        return Parallelism(self.tensor_parallel, self.pipeline_parallel, self.expert_parallel)

    @property
    def parallel(self) -> dict[str, Any]:
        """The settings of `parallelism` that are not the default."""
        return self.model_dump(include={*_PARALLEL}, exclude_defaults=True)

    @model_validator(mode="after")
    def _checkpoint_for_its_weights(self) -> "ModelRow":
        if (self.weights == "checkpoint") != (self.checkpoint is not None):
            raise ValueError("weights `checkpoint` need a directory in column checkpoint, and only they do")
        return self


def parse(raw: Mapping[str, Any], source: str = "config") -> Config:
    """Check a configuration. Raises SweetspotError naming every wrong key and its remedy."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise SweetspotError(_readable(error, source, Config)) from None


def read_models(path: Path) -> dict[str, tuple[ModelRow, Path]]:
    """The models of a table, in its order, each with the path of its config.json.

    Raises SweetspotError naming the file, the row (the first model is row 1) and the remedy.
    """
    if not path.is_file():
        raise SweetspotError(f"{path}: no such table of models; set `models` in the configuration")
    try:
        frame = load(path, exact=True)
    except (SweetspotError, csv.Error) as error:
        raise SweetspotError(f"{error}; separate the columns of a table of models by single tabs") from None
    if not frame.height:
        raise SweetspotError(
            f"{path}: no model in the table; add a line under the header `model<tab>architecture<tab>precision`"
        )
    rows: dict[str, tuple[ModelRow, Path]] = {}
    for line in frame.iter_rows(named=True):
        place = f"{path}, row {line.pop('_row')}"
        try:
            row = ModelRow.model_validate({name: value for name, value in line.items() if value is not None})
        except ValidationError as error:
            raise SweetspotError(_readable(error, place, ModelRow)) from None
        if row.model in rows:
            raise SweetspotError(f"{place}: {row.model} is already in the table; give each model its own name")
        rows[row.model] = row, find(row.architecture, path.parent)
    return rows


def selected(config: Config) -> tuple[list[tuple[ModelRow, Path]], list[str]]:
    """The models that a campaign measures, in the order of its table, and the names of the models not selected.

    Raises SweetspotError as `read_models` does, and for a name in `select` that is not in the table.
    """
    rows = read_models(Path(config.models))
    for name in config.select or ():
        if name not in rows:
            raise SweetspotError(f"select: {name!r} is not in {config.models}{_suggest(name, rows)}")
    wanted = rows.keys() if config.select is None else set(config.select)
    return [row for name, row in rows.items() if name in wanted], [name for name in rows if name not in wanted]


def read_cells(path: Path) -> list[tuple[str, int, int, int]]:
    """The cells of a list (model, batch, input tokens, output tokens) in its order, without duplicates.

    Raises SweetspotError naming the file, the row (the first cell is row 1), the column, the value and the remedy.
    """
    columns = ("model", "batch", "input_tokens", "output_tokens")
    if not path.is_file():
        raise SweetspotError(f"{path}: no such list of cells; make it with `sweetspot design`, or remove `cells`")
    frame = load(path)
    if missing := [name for name in columns if name not in frame.columns]:
        raise SweetspotError(f"{path}: column {', '.join(missing)} missing; a list of cells has {', '.join(columns)}")
    frame = whole_numbers(path, frame, dict.fromkeys(columns[1:], 1))
    named = frame.select(pl.col("model").cast(pl.String).fill_null(""), *columns[1:])
    return named.unique(maintain_order=True).rows()


# What a value must be, by the kind of pydantic's error; `{}`: fields of its context.
_MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text; put it in quotes if it looks like something else",
    "list": "a list, as [1, 2]",
    **dict.fromkeys(("dict", "model", "dataclass"), "keys with values, as {{key: value}}"),
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} value",
    "invalid_key": "a key that is text",
    _NAME: "letters, digits, dots, hyphens and underscores, first a letter or digit, and no more than 100",
    _PLACE: "the path of a file or directory, in one line and without braces",
}


_MOST_ERRORS = 100  # that are put into words


def _readable(error: ValidationError, source: str, model: type[BaseModel]) -> str:
    said: dict[str, list[str]] = {}  # by what is wrong: what it must be; a union has several answers
    for item in error.errors(include_url=False)[:_MOST_ERRORS]:
        extra = item["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        # A union adds a tag such as `constrained-int`, which is not a key of the user's.
        parts = [part for part in item["loc"] if extra or isinstance(part, int) or part.isidentifier()]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        place, context = _short(place), item.get("ctx", {})
        if extra:
            known = _keys(model, item["loc"][:-1])
            said[f"{place} is not a setting{_suggest(str(item['loc'][-1]), known)}"] = []
        elif item["type"] == "missing":
            said[f"{place} is missing; add it"] = []
        elif item["type"] == "value_error":
            said[item["msg"].removeprefix("Value error, ")] = []
        else:
            kind = re.sub("_(type|parsing|from_float|attributes_type)$", "", item["type"])
            must = _MUST_BE.get(context.get("pattern", kind), item["msg"]).format(**context)
            said.setdefault(f"{place} is {_short(repr(item['input']))}: must be ", []).append(must)
    return shortened([f"{source}: {what}{' or '.join(musts)}" for what, musts in said.items()])


def _short(text: str) -> str:
    """A text of the user's, in one line of bounded length."""
    line = text if text.isprintable() else repr(text)
    return line if len(line) <= 60 else f"{line[:40]}... ({len(line)} characters)"


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterable[str]:
    if not location:
        return model.model_fields
    kind = model.model_fields[str(location[0])].annotation
    kind = next(iter(get_args(kind)), kind)  # of one that may be left out
    return getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
