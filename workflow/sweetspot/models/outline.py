"""The modules of a model with the shapes of their parameters, from its definition in transformers, without torch.

transformers describes a model twice: by a class for its config.json, which needs no torch, and by modules, which do.
Here the constructors of these modules run with stand-ins for torch that note shapes and compute nothing, so that every
family that transformers knows is read by its own definition. Only code of the installed transformers runs, never a
model's own.
"""

import __future__

import builtins
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import transformers

from sweetspot.models.stand_ins import INSTEAD, NN, TORCH, Module, Names, Unknown

_PLACES: dict[str, str] = transformers._class_to_module  # type: ignore[attr-defined]
"""The module of transformers that defines each class."""


class _Auto(Module):
    """Builds the module of a part by its config, as transformers' AutoModel does."""

    @classmethod
    def _from_config(cls, config: Any, **settings: Any) -> Module:
        name = _auto().MODEL_MAPPING_NAMES.get(config.model_type)
        return _class(name[0] if isinstance(name, tuple) else name)(config)

    from_config = _from_config


def generates(architecture: str) -> bool | None:
    """Whether a class of transformers generates text; None if transformers has no such class."""
    if architecture in _PLACES:
        return any(architecture in names for names in _generators().values())
    return None


def model_type(architecture: str) -> str:
    """The model type that a class was written for, of those that use it."""
    kinds = [kind for kind, names in _generators().items() if architecture in names]
    package = _PLACES[architecture].split(".")[1]
    return next((kind for kind in kinds if kind.replace("-", "_") == package), kinds[0])


def class_of(model_type: str) -> str | None:
    """The class that generates text for a model type, or None."""
    return next(iter(_generators().get(model_type, ())), None)


def fills_masks(model_type: str) -> bool:
    """Whether a model type is of encoders that fill in masked tokens, which transformers can also run as decoders."""
    return model_type in _auto().MODEL_FOR_MASKED_LM_MAPPING_NAMES


def outline(config: Any, architecture: str) -> Module:
    """The modules that transformers builds as `architecture` for its config. Raises what a constructor raises."""
    config._attn_implementation = "eager"
    return _class(architecture)(config)


@cache
def _generators() -> dict[str, tuple[str, ...]]:
    """The classes that generate text from a prompt of text, by model type."""
    found: dict[str, tuple[str, ...]] = {}
    for mapping in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
        for kind, names in getattr(_auto(), f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            found[kind] = found.get(kind, ()) + (names if isinstance(names, tuple) else (names,))
    return found


def _auto() -> SimpleNamespace:
    return _definitions("models.auto.modeling_auto")


def _class(name: str | None) -> Callable[[Any], Module]:
    return getattr(_definitions(_PLACES[name or ""]), name or "")  # type: ignore[no-any-return]


@cache
def _definitions(module: str) -> SimpleNamespace:
    """What a module of transformers defines, over the stand-ins."""
    path = Path(transformers.__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    # Annotations name parts of torch that have no stand-in; they are not evaluated.
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec", __future__.annotations.compiler_flag, True)
    names = {
        "__name__": __name__,
        "__package__": f"transformers.{module}".rpartition(".")[0],
        "__builtins__": {**vars(builtins), "__import__": _import},
    }
    exec(code, names)
    return SimpleNamespace(**names)


_AS_THEY_ARE = ("collections", "copy", "dataclasses", "enum", "functools", "itertools", "math", "numpy", "re", "typing")


def _import(name: str, names: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
    """Import for a definition: other definitions over the stand-ins, config classes and the standard library as are."""
    if level == 0:
        if name in ("torch.nn", "torch") or name.startswith("torch."):
            return TORCH if not wanted or name == "torch" else NN if name == "torch.nn" else Unknown()
        known = name.split(".")[0] in _AS_THEY_ARE
        return builtins.__import__(name, names, local, wanted, level) if known else Unknown()
    package = names["__package__"].split(".")
    module = ".".join([*package[: len(package) - level + 1], *filter(None, [name])])
    kind = module.rpartition(".")[2].partition("_")[0]
    if kind == "modeling" and module.startswith("transformers.models.") and "AutoModel" not in (wanted or ()):
        return _definitions(module.removeprefix("transformers."))
    if kind == "configuration":
        return importlib.import_module(module)
    return Names(default=Unknown(), **INSTEAD, **dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), _Auto))
