"""Write the schemas and the reference pages from the code that checks and parses: `python docs/generate.py`."""

import argparse
import json
from dataclasses import MISSING, fields
from pathlib import Path

from pydantic import BaseModel

from sweetspot.campaign.config import Board, Config, EngineConfig, ModelRow
from sweetspot.commands.main import parser
from sweetspot.measure.protocol import Protocol

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made by docs/generate.py from the code; edit there. -->"


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
    return {
        ROOT / "workflow/schemas/config.schema.json": _schema(Config),
        ROOT / "workflow/schemas/models.schema.json": _schema(ModelRow),
        ROOT / "docs/configuration.md": _configuration(),
        ROOT / "docs/command-line.md": _command_line(),
    }


def _schema(model: type[BaseModel]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


def _configuration() -> str:
    parts = [
        "# Configuration",
        NOTE,
        "A campaign is one YAML file (`config/config.yaml`, or another with `--configfile`) and one table of models. "
        "An unknown key is refused with the nearest known one.",
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
        "`resources/architectures/` holds the files of 13 models.",
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


def _command_line() -> str:
    top = parser()
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Command line", NOTE, _help(top)]
    for name, command in commands.choices.items():
        parts += [f"## sweetspot {name}", _help(command)]
    return "\n\n".join(parts) + "\n"


def _help(command: argparse.ArgumentParser) -> str:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)  # whatever the terminal's width
    return f"```\n{command.format_help()}```"


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
