"""Reads models: from a publisher's config.json to the matrices, caches and states that the arithmetic counts.

`load` gives the architecture; `resolved` adds what jobs need. The config classes of transformers read the file, so a
family that transformers knows needs no code here.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sweetspot.architecture import Architecture
from sweetspot.errors import SweetspotError, first_line
from sweetspot.files import key, read_object, write_atomically
from sweetspot.models import earlier, quantization
from sweetspot.precision import Precision

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing: it is not needed

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SIZES = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"),
    *("intermediate_size", "ffn_dim"),
)
_SYNONYMS = {"hidden_size": ("n_embed", "d_model"), "intermediate_size": ("block_ff_dim", "ffn_hidden_size")}
_COUNTS = ("_size", "_dim", "_rank", "_heads", "_layers", "_experts", "_tok", "_embeddings", "_window")
_LARGEST, _MOST_LAYERS = 10**9, 10_000
_TEXT = ("text_config", "llm_config")
_LAYERS = ("layer_types", "layers_block_type", "hybrid_override_pattern", "num_layers")  # instead of num_hidden_layers
_MOST_UNKNOWN = 0.05  # share of active parameters whose work may be unknown


def find(place: str, base: Path = Path()) -> Path:
    """The config.json of a file, directory or name on the hub (its cache, else the network). Raises SweetspotError."""
    path = base / place
    if path.exists() or not _HUB_NAME.fullmatch(place):
        return path / "config.json" if path.is_dir() else path
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(place, "config.json", local_files_only=True))
        except LocalEntryNotFoundError:
            get_session().head(hf_hub_url(place, "config.json"), timeout=10)  # fails at once if there is no network
            return Path(hf_hub_download(place, "config.json"))
    except Exception as error:  # errors of the HTTP library, of the hub, and of the cache's file system
        raise SweetspotError(
            f"{place}: neither a file here nor a model whose config.json the hub's cache holds, and the hub does not "
            f"give it ({first_line(error)}); download the config.json and name the file"
        ) from None


def load(path: Path) -> Architecture:
    """Read a config.json, that of a directory, or what `resolved` made. Raises SweetspotError with the remedy."""
    file, config = _read(path)
    if isinstance(config.get("architecture"), Mapping) and isinstance(config.get("config"), Mapping):
        return of_record(config)
    return _architecture(config, _name(file), file)


def precision(architecture: Architecture, asked: Precision | None) -> Precision:
    """What is `asked`, or that of the published weights. Raises SweetspotError if these are quantised otherwise."""
    published = Precision.of(architecture.precision)
    if not architecture.quantised:
        return asked or Precision.of("bfloat16")
    plain = {asked.activations, published.activations} <= {"bfloat16", "float16"} if asked else False
    alike = not asked or (asked.weights == published.weights and (plain or asked.activations == published.activations))
    if published.cache != published.plain and asked and asked.cache != published.cache:
        alike = False  # an engine takes the cache's format from the checkpoint too
    if not alike and asked:
        raise SweetspotError(
            f"{architecture.name}: precision {asked.name} is asked for, but its quantization_config says "
            f"{published.name}; leave the precision out, or give the config.json of other weights"
        )
    if asked and plain and asked.cache == asked.plain:
        return published  # the name leaves the 16-bit format to the checkpoint
    return asked or published


def of_record(record: Mapping[str, Any]) -> Architecture:
    """The architecture in what `resolved` returned. A record of release 0.1 is read again, which takes transformers."""
    if "blocks" in record["architecture"]:
        return Architecture.of(record["architecture"])
    return from_config(record["config"], record["architecture"]["name"])


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that measured rows depend on."""
    known = record.get("known_by", record)
    return {"architecture": known.get("architecture", {}), "config": known.get("config", {})}


def resolved(path: Path) -> dict[str, Any]:
    """What jobs must know of a model, with the publisher's keys and what rows know it by. Raises as `load` does."""
    architecture, config = load(path), _read(path)[1]
    published = {name: value for name, value in config.items() if not name.startswith("_")}
    return {
        "schema_version": 2,
        "parameters": architecture.parameters,
        "architecture": architecture.as_dict(),
        "config": published,
        "known_by": earlier.known_by(architecture, published) or {"config": published},
    }


def from_config(config: Mapping[str, Any], name: str, beside: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture of a config.json; `beside`: a hf_quant_config.json. Raises SweetspotError with the remedy."""
    from sweetspot.models import outline, reader  # transformers takes a second

    if wrong := [name for name in _TEXT if not isinstance(config.get(name) or {}, Mapping)]:
        raise SweetspotError(
            f"key {wrong[0]!r} is {config[wrong[0]]!r}, not an object; copy it from the published file"
        )
    try:
        stored = quantization.read(config, beside)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SweetspotError(
            "key 'quantization_config' has a layout that is not known; copy it from the published file"
        ) from None
    wanted, parsed = _parsed(config)
    try:
        modules = outline.outline(parsed, wanted)
        stands = reader.architecture(modules, parsed, stored)
        formats = reader.most_used(modules, stored) if stored else None
    except SweetspotError:
        raise
    except Exception as error:
        raise SweetspotError(
            f"the sizes in this config.json do not make a {wanted} ({type(error).__name__}: {first_line(error)}); "
            "compare it with the publisher's"
        ) from None
    _check_heads(stands, parsed)
    for block in stands.blocks:
        if block.experts_per_token > block.experts:
            raise SweetspotError(
                f"a token passes {block.experts_per_token} of {block.experts} experts; write both numbers as published"
            )
    weights = computed = plain = _data_type(config)
    if stored and formats:
        weights, computed = formats[0], plain if formats[1] == quantization.SIXTEEN else formats[1]
    cache = stored.cache if stored else "auto"
    found = replace(
        stands,
        name=name,
        model_type=str(config.get("model_type") or parsed.model_type),
        precision=Precision.of(weights, computed, cache).name,
        source=str(config.get("_source", "")),
    )
    mixed = dict(found.not_modelled).get(reader.UNKNOWN_STATE, 0)
    unknown = mixed / (found.active_parameters + mixed)
    if unknown > _MOST_UNKNOWN:
        raise SweetspotError(f"{reader.UNKNOWN_STATE}: {unknown:.0%} of the active parameters; choose another model")
    before = earlier.dimensions(found, config)
    return replace(found, digest=key(before or {**found.as_dict(), "name": "", "source": ""}))


def _parsed(config: Mapping[str, Any]) -> tuple[str, Any]:
    """The class that generates text, and the config as transformers reads it."""
    from transformers import CONFIG_MAPPING

    from sweetspot.models import outline

    kind, named = str(config.get("model_type")), config.get("architectures") or []
    if not isinstance(named, list):
        raise SweetspotError(f"key 'architectures' is {named!r}, not a list; copy it from the publisher's config.json")
    wanted = next((name for name in named if outline.generates(name)), None)
    if wanted is None and (other := next((name for name in named if outline.generates(name) is False), None)):
        raise SweetspotError(
            f"key 'architectures' is {other}, which does not generate text; give the config.json of a decoder-only "
            "language model"
        )
    if kind not in CONFIG_MAPPING and wanted:
        kind = outline.model_type(wanted)  # a name of the publisher's own for a class of transformers
    if kind not in CONFIG_MAPPING:
        problem, installed = f"is {kind!r}" if config.get("model_type") else "is missing", version("transformers")
        raise SweetspotError(
            f"key 'model_type' {problem}, and transformers {installed} knows no such model; its own code, if its "
            "publisher offers any, is not run here. Copy the key from the publisher's config.json, or install a "
            "transformers that knows the model"
        )
    wanted = wanted or outline.class_of(kind)
    if wanted is None:
        raise SweetspotError(
            f"key 'model_type' is {kind!r}, which does not generate text by itself; give the config.json of a "
            "decoder-only language model"
        )
    _check_keys(config, CONFIG_MAPPING[kind])
    try:
        # Quantised weights are stored in other shapes; auto_map would have other code run.
        own = {name: value for name, value in config.items() if name not in ("quantization_config", "auto_map")}
        parsed = CONFIG_MAPPING[kind].from_dict({**own, "model_type": kind})
    except Exception as error:
        raise SweetspotError(
            f"transformers cannot read this config.json as {kind} ({' '.join(str(error).split())}); compare it with "
            "the publisher's"
        ) from None
    encodes = outline.fills_masks(kind) and getattr(parsed, "is_decoder", True) is False
    if encodes or getattr(parsed, "is_encoder_decoder", False):
        raise SweetspotError(f"key 'model_type' is {kind!r}, an encoder; give the config.json of a decoder-only model")
    return wanted, parsed


def _check_keys(config: Mapping[str, Any], defaults: Any) -> None:
    """Raise SweetspotError if a size is missing, or is no positive integer.

    transformers would take the size of the family's first model. Publishers rely on that in a nested text_config only.
    """
    aliases, flat = defaults.attribute_map, not any(isinstance(config.get(name), Mapping) for name in _TEXT)
    text = next((config[key] for key in _TEXT if isinstance(config.get(key), Mapping)), config)
    for name in _SIZES:
        names = (name, aliases.get(name, name), *_SYNONYMS.get(name, ()))
        spelled = [each for each in names if text.get(each) is not None]
        listed = any(text.get(each) for each in _LAYERS) if name == "num_hidden_layers" else not flat
        default = getattr(defaults, aliases.get(name, name), None)
        if not spelled and not listed and (name in _SIZES[:2] or isinstance(default, int)):
            own = aliases.get(name, name)
            raise SweetspotError(f"key {own!r} is missing; copy it from the publisher's config.json")
        for each in spelled:
            value = text[each]
            if isinstance(value, list) and value:  # a size for each layer
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise SweetspotError(f"key {each!r} is {value!r}, not an integer; write it as in the published file")
            if value <= 0:
                raise SweetspotError(f"key {each!r} is {value}; it must be positive, as in the published file")
    for name, value in text.items():
        if name.endswith(_COUNTS) and isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise SweetspotError(f"key {name!r} is {value}; write it as in the published file")
    if (positions := text.get("max_position_embeddings")) is not None and (positions is True or positions == 0):
        raise SweetspotError(f"key 'max_position_embeddings' is {positions}; write it as in the published file")
    if isinstance(layers := text.get("num_hidden_layers"), int) and layers > _MOST_LAYERS:
        raise SweetspotError(f"key 'num_hidden_layers' is {layers}; write it as in the published file")


def _check_heads(found: Architecture, parsed: Any) -> None:
    for block in found.blocks:
        if block.heads and (not block.kv_heads or block.heads % block.kv_heads):
            raise SweetspotError(
                f"key 'num_key_value_heads' gives {block.kv_heads} key/value heads, which do not divide "
                f"{block.heads} query heads (num_attention_heads); correct one of them"
            )
    text = parsed.get_text_config(decoder=True)
    attends, hidden, heads = found.attention_layers, found.hidden, getattr(text, "num_attention_heads", None)
    if not attends or (not attends.latent and attends.head_size != attends.value_size):
        return
    if isinstance(heads, int) and attends.head_size == hidden // heads and hidden % heads:
        raise SweetspotError(
            f"key 'hidden_size' is {hidden}, not divisible by num_attention_heads {heads}; add head_dim or correct one"
        )


def _data_type(config: Mapping[str, Any]) -> str:
    places = config, config.get("text_config") or {}
    named = next((each[name] for each in places for name in ("dtype", "torch_dtype") if each.get(name)), "")
    found = str(named).removeprefix("torch.")
    return found if found in ("float16", "float32") else "bfloat16"


def _architecture(config: Mapping[str, Any], name: str, file: Path) -> Architecture:
    other = file.with_name(file.name.replace("config.json", "hf_quant_config.json"))
    beside = _read(other)[1] if other != file and other.is_file() else None
    kept = _kept(config, name, beside)
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Architecture.of(read_object(kept))
    try:
        found = from_config(config, name, beside)
    except SweetspotError as error:
        raise SweetspotError(f"{file}: {error}") from None
    with suppress(OSError):
        write_atomically(kept, json.dumps(found.as_dict()))
    return found


def _kept(config: Mapping[str, Any], name: str, beside: Mapping[str, Any] | None) -> Path:
    """Where a model that was read is kept: every job of a workflow reads it, and importing transformers takes a second.

    The name depends on all that the content depends on, this code and the version of transformers included.
    """
    base = Path(__file__).parent
    own = [*sorted(base.glob("*.py")), *(base.parent / f"{name}.py" for name in ("architecture", "precision"))]
    code = [path.read_text() for path in own]
    inputs = {"config": config, "name": name, "beside": beside, "code": code, "transformers": version("transformers")}
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sweetspot/models"
    return place / f"{key(inputs)}.json"


def _name(file: Path) -> str:
    if cached := [part for part in file.parts if part.startswith("models--")]:
        return cached[0].split("--")[-1]
    return file.absolute().parent.name if file.name == "config.json" else file.stem


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / "config.json" if path.is_dir() else path
    try:
        return file, read_object(file)
    except FileNotFoundError:
        raise SweetspotError(
            f"{file}: no such file; give an architecture file or a directory that holds the publisher's config.json"
        ) from None
