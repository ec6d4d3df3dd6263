"""How the weights of a checkpoint are stored: the `quantization_config` of its config.json, in the layouts in use.

Sources: quantization_config.py of transformers for AWQ, GPTQ, FP8, FBGEMM, MXFP4, bitsandbytes and compressed-tensors;
gptq.py and auto_round.py of vLLM for `dynamic` and `extra_config`, which give modules bits of their own;
hf_quant_config.json and config.json of NVIDIA's ModelOpt checkpoints.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from sweetspot import precision
from sweetspot.errors import SweetspotError

SIXTEEN = "bfloat16"  # of a part that stays as it is
_ALGORITHMS = {
    **dict.fromkeys(("FP8", "FP8_PB_WO", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_BLOCK_SCALES", "MXFP8"), ("fp8", "fp8")),
    **dict.fromkeys(("NVFP4", "NVFP4_AWQ"), ("nvfp4", "nvfp4")),
    "W4A16_NVFP4": ("nvfp4", SIXTEEN),
    "W4A8_NVFP4_FP8": ("nvfp4", "fp8"),
    "MXFP4": ("mxfp4", SIXTEEN),
    **dict.fromkeys(("W4A16_AWQ", "W4A16"), ("int4", SIXTEEN)),
    "W4A8_AWQ": ("int4", "fp8"),
    "W8A16": ("int8", SIXTEEN),
    **dict.fromkeys(("W8A8_SQ_PER_CHANNEL", "INT8_SQ"), ("int8", "int8")),
}
_METHODS = {"fp8": ("fp8", "fp8"), "fbgemm_fp8": ("fp8", "fp8"), "mxfp4": ("mxfp4", SIXTEEN)}


@dataclass(frozen=True)
class Quantization:
    """The formats (weights, activations) of the parts of a model, by their names, and that of the KV cache.

    `named` has the formats of parts that are listed; all others have `rest`, but those that `ignored` names. Names may
    be patterns, or the beginnings or the ends of the names of modules. `matched` has patterns, of which the first that
    matches the beginning of a module's name decides. `group`: weights of 4 bits that share a scale.
    """

    rest: tuple[str, str]
    cache: str = "auto"
    ignored: tuple[str, ...] = ()
    named: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    matched: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    group: float = 128

    def bits(self, module: str) -> float:
        """Bits of an element of the weight of `module`, with its share of the scales."""
        name = self.format(module)[0]
        return 4 + 20 / self.group if name == "int4" else precision.BITS[name]

    def format(self, module: str) -> tuple[str, str]:
        """Weights and activations of `module`."""
        place = _place(module)
        while self._known and place:  # the module, or the nearest one that it is part of
            if place in self._known:
                return self._known[place]
            place = place.rpartition(".")[0]
        if self._left_alone.match(module) or re.search(r"(^|\.)(router|gate)$", module):
            return SIXTEEN, SIXTEEN
        for pattern, formats in self.matched.items():
            if re.match(pattern, module) or re.match(pattern, "model." + _place(module)):
                return formats
        return self.rest

    @cached_property
    def _left_alone(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_pattern, self.ignored)) or r"(?!)")

    @cached_property
    def _known(self) -> dict[str, tuple[str, str]]:
        return {_place(name): formats for name, formats in self.named.items()}


def read(config: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> Quantization | None:
    """The quantization of a config.json; `beside`: a hf_quant_config.json. Raises SweetspotError for other layouts."""
    found = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    found = found or (beside or {}).get("quantization")
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise SweetspotError(f"key 'quantization_config' is {found!r}, not an object; copy it from the published file")
    ignored = tuple(
        str(name)
        for key in ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers", "llm_int8_skip_modules")
        for name in ([found[key]] if isinstance(found.get(key), str) else found.get(key) or ())
    )
    cache = _cache(found)
    method, algorithm = str(found.get("quant_method", "")).lower(), str(found.get("quant_algo") or "").upper()
    named = {name: _algorithm(part["quant_algo"]) for name, part in (found.get("quantized_layers") or {}).items()}
    if named or algorithm == "MIXED_PRECISION":
        # What no list names stays as it is, but in FP8 checkpoints of which another part was quantized further.
        return Quantization(("fp8", "fp8") if method == "fp8" else (SIXTEEN,) * 2, cache, ignored, named)
    if groups := found.get("config_groups"):
        return _groups(groups, cache, ignored)
    if not algorithm and found.get("lm_head") is not True:
        ignored += ("lm_head",)  # transformers leaves the head alone unless the layout names it
    bits = found.get("bits", found.get("w_bit"))
    if method == "bitsandbytes":
        bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None
    if algorithm:
        return Quantization(_algorithm(algorithm), cache, ignored)
    if method.rpartition("/")[2] in ("awq", "gptq", "auto-round", "gptqmodel", "bitsandbytes") and bits in (4, 8):
        groups = found.get("group_size", found.get("q_group_size")) or 128
        return Quantization(
            _integers(bits), cache, ignored, *_own_bits(found, bits), math.inf if groups < 0 else groups
        )
    if method in _METHODS:
        return Quantization(_METHODS[method], cache, ignored)
    what = ", ".join(f"{key} {found[key]!r}" for key in ("quant_method", "quant_algo", "bits") if found.get(key))
    raise SweetspotError(
        f"key 'quantization_config' ({what or 'without quant_method'}) is not a format that is known here "
        f"({', '.join(precision.NAMES)}); choose another checkpoint of this model"
    )


def _own_bits(found: Mapping[str, Any], bits: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`named` of `extra_config`, and `matched` of `dynamic`: "-:" before a pattern leaves a module as it is."""
    extra, dynamic = found.get("extra_config") or {}, found.get("dynamic") or {}
    named = {name: _integers(part.get("bits", bits)) for name, part in extra.items()}
    matched = {
        pattern.removeprefix("-:").removeprefix("+:"): _integers(
            16 if pattern.startswith("-:") else part.get("bits", bits)
        )
        for pattern, part in dynamic.items()
    }
    return named, matched


def _integers(bits: int) -> tuple[str, str]:
    if bits not in (4, 8, 16, 32):
        raise SweetspotError(
            f"key 'quantization_config' has layers with bits {bits}, which are not known here "
            f"({', '.join(precision.NAMES)}); choose another checkpoint of this model"
        )
    return (SIXTEEN if bits >= 16 else f"int{bits}"), SIXTEEN


def stored(config: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> str:
    """The format of most of the weights that `read` finds; "" if they are not quantised. Raises SweetspotError too."""
    found = read(config, beside)
    formats = [found.rest, *found.named.values()] if found else []
    quantised = [weights for weights, _ in formats if precision.BITS[weights] < 16]
    return max(quantised, key=quantised.count, default="")


def _groups(groups: Mapping[str, Any], cache: str, ignored: tuple[str, ...]) -> Quantization:
    """The layout of compressed-tensors: groups of modules with the same formats, named or all "Linear" ones."""
    rest, named, group_size = (SIXTEEN, SIXTEEN), dict[str, tuple[str, str]](), 128.0
    for group in groups.values():
        formats = _numbers(group.get("weights")), _numbers(group.get("input_activations"))
        if formats[1] == "mxfp4":
            formats = formats[0], "nvfp4" if formats[0] == "nvfp4" else "mxfp4"
        targets = group.get("targets") or ["Linear"]
        if "Linear" in targets:
            rest = formats
        if formats[0] == "int4":
            group_size = group["weights"].get("group_size") or math.inf
        named |= dict.fromkeys((name for name in targets if name != "Linear"), formats)
    matched = {name.removeprefix("re:"): named.pop(name) for name in list(named) if name.startswith("re:")}
    return Quantization(rest, cache, ignored, named, matched, group_size)


def _numbers(layout: Mapping[str, Any] | None) -> str:
    """The format of elements that compressed-tensors describes by number of bits, type and group."""
    if not layout:
        return SIXTEEN
    bits, kind = layout.get("num_bits"), layout.get("type")
    known = {(8, "float"): "fp8", (8, "int"): "int8", (4, "int"): "int4"}
    if (bits, kind) == (4, "float"):
        return "mxfp4" if layout.get("group_size") == 32 else "nvfp4"
    if (bits, kind) not in known:
        raise SweetspotError(
            f"key 'quantization_config' has elements of {bits} bits ({kind}), which are not known here "
            f"({', '.join(precision.NAMES)}); choose another checkpoint of this model"
        )
    return known[bits, kind]  # type: ignore[index]


def _algorithm(name: str) -> tuple[str, str]:
    if name.upper() not in _ALGORITHMS:
        raise SweetspotError(
            f"key 'quantization_config' has quant_algo {name!r}, which is not known here; known: "
            f"{', '.join(_ALGORITHMS)}; choose another checkpoint of this model"
        )
    return _ALGORITHMS[name.upper()]


def _cache(found: Mapping[str, Any]) -> str:
    scheme = found.get("kv_cache_scheme") or found.get("kv_cache_quant_algo")
    if not scheme:
        return "auto"
    return _numbers(scheme) if isinstance(scheme, Mapping) else _algorithm(str(scheme))[0]


@cache
def _place(name: str) -> str:
    """A module's name from its layer on, since checkpoints and versions differ before it, and all experts as one."""
    layer = re.search(r"(^|\.)(layers\.\d+\..*)", name)
    place = layer[2] if layer else name.split(".")[-1]
    routed = re.match(r"(layers\.\d+)\.(?!.*shared).*\bexperts\b", place)
    return f"{routed[1]}.experts" if routed else place


def _pattern(name: str) -> str:
    """A regular expression for the modules that a name or pattern of a checkpoint means, and for their parts."""
    if name.startswith("re:"):
        return f"(?:{name[3:]})"
    if "*" in name:
        short = name.removeprefix("model.").removeprefix("language_model.")
        return "(?:.*" + ".*".join(map(re.escape, short.split("*"))) + r"(?:\..*)?$)"
    return r"(?:(?:.*\.)?" + re.escape(_place(name)) + r"(?:\..*)?$)"
