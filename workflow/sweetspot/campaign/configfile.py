"""Reads a configuration file as YAML 1.2 (core schema), in which a value is what it looks like: 0100 is a hundred."""

import re
from pathlib import Path
from typing import Any

import yaml

from sweetspot.errors import SweetspotError, first_line

_MOST_BYTES = 1 << 17
_DEEPEST, _MOST_DIGITS = 50, 30

# https://yaml.org/spec/1.2.2/#1032-tag-resolution. Everything else is text: 1:30, yes, 2026-01-01, <<.
_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.CSafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own are those of YAML 1.1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        known = set[Any]()
        for key, _ in node.value if len(found) < len(node.value) else ():
            name = self.construct_object(key)
            if name in known:
                raise yaml.MarkedYAMLError(problem=f"{name!r} is set twice; remove one", problem_mark=key.start_mark)
            known.add(name)
        return found

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _MOST_DIGITS:
            raise yaml.MarkedYAMLError(problem=f"a number of {len(text)} digits", problem_mark=node.start_mark)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


for _tag, _pattern in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def read_configuration(path: Path) -> dict[str, Any]:
    """A campaign's configuration file. Raises SweetspotError, naming file and line, if it is not one."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        return _parsed(data)
    except OSError as error:
        raise SweetspotError(
            f"{path}: cannot be read ({error.strerror}); name a configuration with --configfile"
        ) from None
    except yaml.MarkedYAMLError as error:
        number = error.problem_mark.line if error.problem_mark else 0
        line = data.splitlines()[number] if number < len(data.splitlines()) else b""
        tab = "; indent with spaces, not with tabs" if line.lstrip(b" ").startswith(b"\t") else ""
        raise SweetspotError(f"{path}, line {number + 1}: {error.problem}{tab}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SweetspotError(f"{path}: {first_line(error)}; see docs/configuration.md") from None


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes, too many for a configuration")
    _check_size(data)
    found = yaml.load(data, _Loader)
    if not isinstance(found, dict):
        raise ValueError("not a configuration, which is lines of `key: value`" if found else "an empty file")
    return found


def _check_size(data: bytes) -> None:
    """Raise ValueError for what is nested deeply, or grows when its aliases are written out."""
    anchors: list[str | None] = []  # of the collections that are open
    for event in yaml.parse(data, _Loader):  # flat, while loading recurses, in C without a bound
        if isinstance(event, yaml.CollectionStartEvent):
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchors.pop()
        elif isinstance(event, yaml.AliasEvent) and any(anchors):
            raise ValueError(f"the alias *{event.anchor} lies in what has an anchor itself; write it out")
        if len(anchors) > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} levels")
