"""Write the schemas and the reference pages from the code that checks and parses: `python docs/generate.py`."""

import argparse
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from pydantic import BaseModel

from sweetspot import engines, gpus
from sweetspot.campaign.config import Board, Config, EngineConfig, ModelRow
from sweetspot.commands.main import parser
from sweetspot.measure.protocol import Protocol
from sweetspot.parallelism import Parallelism
from sweetspot.precision import NAMES, Precision
from sweetspot.table.schema import COLUMNS, REQUIRED

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made by docs/generate.py from the code; edit there. -->"


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
    return {
        ROOT / "workflow/schemas/config.schema.json": _schema(Config),
        ROOT / "workflow/schemas/models.schema.json": _schema(ModelRow),
        ROOT / "docs/configuration.md": _configuration(),
        ROOT / "docs/command-line.md": _command_line(),
        ROOT / "docs/support.md": _support(),
        ROOT / "docs/columns.md": _columns(),
        ROOT / "envs/analysis.yaml": _conda(),
    }


def _conda() -> str:
    """The environment that the rules name, with exactly the packages of the lock file, which the tests use."""
    lock = (ROOT / "envs/requirements.txt").read_text()
    pins = [line.removesuffix("\\").strip() for line in lock.splitlines() if line[:1].isalnum()]
    note = "# Made by docs/generate.py from envs/requirements.txt. Conda brings Python and pip only."
    head = ["channels: [conda-forge, nodefaults]", "dependencies:", "  - python =3.12", "  - pip", "  - pip:"]
    return "\n".join([note, *head, *(f'      - "{pin}"' for pin in pins)]) + "\n"


def _schema(model: type[BaseModel]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def _configuration() -> str:
    parts = [
        "# Configuration",
        NOTE,
        "A campaign is one YAML file (`config/config.yaml`, or another with `--configfile`) and one table of models. "
        "An unknown key is refused with the nearest known one. The file is read as YAML 1.2: `0100` is a hundred, "
        "`yes` and `1:30` are text, and no key may be set twice. Settings that exclude each other are refused.",
        "## The campaign",
        _table(Config),
        "## `board`",
        "Plans and simulations of a GPU use its data sheet. `workflow/sweetspot/gpus.py` holds those of common GPUs; "
        "describe another here. A GPU without a data sheet can be measured all the same, since it tells its memory and "
        "power limit itself, but its plan names neither time nor energy.",
        _table(Board),
        "## `engine`",
        _table(EngineConfig),
        "## `protocol`",
        "How a cell is measured. `workflow/sweetspot/measure/protocol.py` gives the source of every number. If a "
        "number changes, its cells are measured again; raise `version` if the meaning of the procedure changes.",
        _protocol(),
        "## The table of models",
        "Tab-separated, one line per model. `architecture` points at the publisher's `config.json`; "
        "`resources/architectures/` holds some.",
        _table(ModelRow),
        "To add a model, download its `config.json`, add a line to the table and run the same command again. Only that "
        "model is measured.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if field.is_required():
            default = "required"
        elif field.default_factory:
            default = "see below"
        else:
            default = f"`{json.dumps(field.default)}`"
        meaning = field.description or f"See [`{name}`](#{name}) below."
        rows.append(f"| `{name}` | {default} | {meaning} |")
    return "\n".join(rows)


def _protocol() -> str:
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for field in fields(Protocol):
        assert field.default is not MISSING, field.name
        rows.append(f"| `{field.name}` | `{field.default}` | {field.metadata['description']} |")
    return "\n".join(rows)


def _columns() -> str:
    rows = ["| column | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, column in COLUMNS.items():
        default = (column.metadata or {}).get("default")
        given = "required" if name in REQUIRED else "" if default is None else f"`{json.dumps(default)}`"
        rows.append(f"| `{name}` | {str(column.dtype).lower()} | {given} | {column.description} |")
    parts = [
        "# Columns of a table of measurements",
        NOTE,
        "What `sweetspot fit` reads, and what a campaign writes to `measurements.parquet`. Without a default, a column "
        "may be missing or hold gaps. Other columns pass through unchanged; [other names and "
        "formats](how-to.md#bring-your-own-table) are understood, too.",
        "\n".join(rows),
        "Latencies have names of their own: `ttft_mean_s`, `ttft_p50_s`, `ttft_p95_s`, `ttft_p99_s` for the time to "
        "the first token, and the same with `tpot` for the time per further token, in s, over the requests of a batch.",
    ]
    return "\n\n".join(parts) + "\n"


def _command_line() -> str:
    top = parser()
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Command line", NOTE, _help(top)]
    for name, command in commands.choices.items():
        parts += [f"## sweetspot {name}", _help(command)]
    return "\n\n".join(parts) + "\n"


# What tests run on the real vLLM, on a CPU: tests/engines/test_real_engine.py.
_FAMILIES_RUN = (
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "opt",
    "phi3",
    "qwen2",
)
_FAMILIES_RUN += ("qwen3", "qwen3_moe")
_PRECISIONS_RUN = ("bfloat16", "fp8+kv_fp8", "int8", "int4")
_PRECISIONS = (*NAMES[1:], "fp8+kv_fp8", "bfloat16+kv_fp8", "int8+a_bfloat16", "fp8+a_bfloat16", "nvfp4+kv_fp8")
_PARALLEL = ("tp1", "tp4", "tp1-pp2", "tp8-ep")
_ENGINES = ("vllm", "trt-engine", "trt-pytorch", "simulated")


def _support() -> str:
    """Families, precisions, parallelism and boards by engine."""
    read = json.loads(lzma.decompress((ROOT / "tests/data/published-models.json.xz").read_bytes()))["models"]
    published: dict[str, int] = {}
    for model in read.values():
        if model["parameters"]:
            kind = model["config"]["model_type"]
            published[kind] = published.get(kind, 0) + 1
    families = ["| model type | published config.json whose parameters are checked | run on the real vLLM |"]
    families += ["| --- | --- | --- |"]
    for kind in sorted(published.keys() | {*_FAMILIES_RUN}):
        run = "two layers, on a CPU; not run on a GPU" if kind in _FAMILIES_RUN else "not run"
        families.append(f"| `{kind}` | {published.get(kind, '')} | {run} |")
    parts = [
        "# What runs where",
        NOTE,
        "Nothing on this page has been run on a GPU yet. Servers run what they were started with; the columns are "
        "the engines that sweetspot starts itself.",
        "## Models",
        "A `config.json` is read by the model's own definition in transformers, so any decoder that the installed "
        "transformers knows can be planned and simulated, and predicted by the law across models; `sweetspot model` "
        "shows what was read, and what is not modelled. Whether an engine runs a model, its own registry says when the "
        "engine is built. Parameters were compared with those that torch counts for the same class.",
        "\n".join(families),
        "## Precisions",
        "`yes`: asked for by the engine's own arguments, checked against its published sources and stand-ins; not run "
        "on a GPU. `no`: refused in the plan, with the reason.",
        _by_engine("precision", _PRECISIONS, lambda name: (name, Parallelism())),
        "## Several GPUs",
        "`yes`: tested with stand-ins of engine and driver. GPUs of one node.",
        _by_engine("parallelism", _PARALLEL, lambda name: ("bfloat16", Parallelism.parse(name))),
        "## Boards",
        "Any NVIDIA board can be measured: it tells its memory and power limit itself. Plans and simulations know the "
        "data sheets below; `board` in a configuration describes another.",
        _boards(),
    ]
    return "\n\n".join(parts) + "\n"


def _by_engine(what: str, names: Sequence[str], of: Callable[[str], tuple[str, Parallelism]]) -> str:
    rows = [f"| {what} | {' | '.join(f'`{name}`' for name in _ENGINES)} |", "| --- " * (len(_ENGINES) + 1) + "|"]
    for name in names:
        cells = []
        for engine in _ENGINES:
            precision, parallelism = of(name)
            if engine == "simulated":
                cells.append("yes, simulated")
            elif engines.refusal(engine, Precision.of(precision).name, "dummy", parallelism):
                cells.append("no")
            else:
                real = engine == "vllm" and what == "precision" and name in _PRECISIONS_RUN
                cells.append("yes; real tokens on a CPU" if real else "yes")
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _boards() -> str:
    rows = ["| board | memory, GB | power limit, W | computes in |", "| --- | --- | --- | --- |"]
    for name in gpus.names():
        gpu = gpus.find(name)
        assert gpu is not None
        rows.append(f"| {name} | {gpu.memory_bytes / 1e9:.0f} | {gpu.tdp_w:.0f} | {', '.join(gpu.peak_flops)} |")
    return "\n".join(rows)


def _help(command: argparse.ArgumentParser) -> str:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)  # whatever the terminal's width
    return f"```\n{command.format_help()}```"


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
