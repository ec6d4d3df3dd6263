"""Precisions of weights, activations and KV cache: their names and sizes.

A name says what is not implied: "bfloat16"; "fp8" (weights and activations); "int4" (weights; activations in 16 bits);
"int4+a_float16"; "fp8+kv_fp8" (the cache as well). Standard library only.
"""

import re
from typing import NamedTuple

from sweetspot.errors import SweetspotError

# Bits of an element with its share of the scales: int4 in groups of 128 has a 16-bit scale and a 4-bit zero point
# each (AWQ, GPTQ), NVFP4 an 8-bit scale for 16 elements, MXFP4 one for 32.
BITS = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "float16": 16.0,
    "fp8": 8.0,
    "int8": 8.0,
    "int4": 4 + 20 / 128,
    "nvfp4": 4 + 8 / 16,
    "mxfp4": 4 + 8 / 32,
}
NAMES = tuple(BITS)
"""The formats of weights."""

_PLAIN = ("float32", "bfloat16", "float16")
ACTIVATIONS = (*_PLAIN, "fp8", "int8", "nvfp4", "mxfp4")
CACHES = ("auto", *_PLAIN, "fp8", "int8", "nvfp4")
"""The formats of activations, and those of a KV cache; "auto" is that of 16-bit activations, as in the engines."""

_WEIGHTS_ONLY = ("int4", "mxfp4")
_ALIASES = {
    "float32": ("fp32", "f32", "float"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "f16", "half"),
    "fp8": ("f8", "float8", "e4m3", "fp8e4m3", "float8e4m3fn", "fp8e5m2"),
    "int8": ("i8",),
    "int4": ("i4", "w4a16", "awq", "gptq"),
}
_NAMED = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}


class ElementBytes(NamedTuple):
    """Bytes of a quantised weight, of a cached key or value, and of a weight that is never quantised."""

    weight: float
    cached: float
    plain: float = 2.0


class Precision(NamedTuple):
    """The formats of weights, activations and KV cache, by their names in this module."""

    weights: str
    activations: str
    cache: str

    @classmethod
    def of(cls, text: str, activations: str | None = None, cache: str | None = None) -> "Precision":
        """Read a name as people write it: "FP8", "w4a16"; the others override it. Raises SweetspotError if unclear."""
        first, *rest = text.split("+")
        found = re.fullmatch(r"w(\d+)a16", _bare(first))
        if found and found[1] == "8":
            first, activations = "int8", activations or "bfloat16"
        weights = _known(first, NAMES)
        for part in rest:
            kind, _, name = part.partition("_")
            if kind.strip().lower() == "a":
                activations = activations or name
            elif kind.strip().lower() == "kv":
                if cache and cache != name:
                    raise SweetspotError(f"precision {text!r} names two formats of the KV cache; leave one out")
                cache = name
            else:
                raise SweetspotError(f"precision {text!r}: {part!r} is not understood; write +a_FORMAT or +kv_FORMAT")
        implied = "bfloat16" if weights in _WEIGHTS_ONLY else weights
        computed = _known(activations, ACTIVATIONS) if activations else implied
        plain = computed if computed in _PLAIN else "bfloat16"
        kept = _known(cache, CACHES) if cache else "auto"
        return cls(weights, computed, plain if kept == "auto" else kept)

    @property
    def plain(self) -> str:
        """The format of what is not quantised: norms, embeddings, a 16-bit cache."""
        return self.activations if self.activations in _PLAIN else "bfloat16"

    @property
    def name(self) -> str:
        """The shortest name that `of` reads as this."""
        implied = Precision.of(self.weights)
        activations = "" if self.activations == implied.activations else f"+a_{self.activations}"
        return self.weights + activations + ("" if self.cache == self.plain else f"+kv_{self.cache}")

    @property
    def sizes(self) -> ElementBytes:
        """Bytes of its elements, the share of their scales included."""
        return ElementBytes(*(BITS[name] / 8 for name in (self.weights, self.cache, self.plain)))


def element_bytes(label: str) -> ElementBytes:
    """Bytes of the elements of a precision, by its name, or by the first number in what another table calls it.

    A label without such a number counts as 16 bits; if that is wrong, the fitted cost per byte is off by that factor,
    and so is the memory that a model needs.
    """
    try:
        return Precision.of(label).sizes
    except SweetspotError:
        found = re.search(r"\d+", label)
        bits = int(found[0]) if found and int(found[0]) in (4, 8, 16, 32) else 16
        return ElementBytes(bits / 8, max(2.0, bits / 8), max(2.0, bits / 8))


def name_of(label: str) -> str:
    """The name of a precision, by any of its names; another table's own label stays."""
    try:
        return Precision.of(label).name
    except SweetspotError:
        return label


def _bare(text: str) -> str:
    return re.sub(r"[\s_.-]", "", text.lower().removeprefix("torch."))


def _known(text: str, allowed: tuple[str, ...]) -> str:
    name = _NAMED.get(_bare(text), _bare(text))
    if name in allowed:
        return name
    hint = {"fp4": "nvfp4 or mxfp4", "float4": "nvfp4 or mxfp4", "w4a4": "nvfp4 or mxfp4", "w8a8": "fp8 or int8"}
    remedy = f"it may be {hint[name]}: write which" if name in hint else f"known: {', '.join(allowed)}"
    raise SweetspotError(f"precision {text!r} is not known here; {remedy}")
