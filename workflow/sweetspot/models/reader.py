"""From the modules of a model to an architecture: what its layers multiply, keep and attend to.

Shapes come from the model's own definition (`outline`). What shapes do not say (windows, experts per token, recurrent
state) comes from the attributes that transformers gives to the layers and configs of every family.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeGuard

from sweetspot import precision
from sweetspot.architecture import NO_LIMIT, Architecture, Layers
from sweetspot.errors import SweetspotError
from sweetspot.models.quantization import Quantization
from sweetspot.models.stand_ins import Convolution, Embedding, Linear, Module, ModuleList, Norm, Parameter

# The engines run these as one product: same input, outputs side by side.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("gate", "up"))
_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo", "attn_out", "resid_proj")
_DOWN = ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "w2", "down", "output_linear")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k", "moe_k")
_PREDICTION = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
_SIZES = ("heads", "kv_heads", "head_size", "value_size", "cached", "latent")
_QKV = re.compile("qkv|query_key_value|c_attn", re.IGNORECASE)
_OTHER_MIXERS = re.compile(r"Rwkv|Recurrent|RgLru|Retention|LSTM|Hyena")
UNKNOWN_STATE = "layers that mix tokens in a way that is not known here"
# FLOPs per element of recurrent state and token: Mamba decays it, adds an outer product, and reads it out; a delta
# rule also reads it before it writes.
_SCAN_FLOPS, _DELTA_FLOPS = 6, 8


class Weight(NamedTuple):
    """A weight below a layer: its module's name, its own name there, the module, and its shape."""

    module: str
    leaf: str
    owner: Module
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """What a quantization calls it."""
        return self.module if self.leaf == "weight" else f"{self.module}.{self.leaf}"

    @property
    def elements(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


def architecture(root: Module, config: Any, quantization: Quantization | None) -> Architecture:
    """The architecture of the modules `root` of `config`. Raises SweetspotError if they have no layers to count."""
    text = config.get_text_config(decoder=True)
    prefix, layers = _decoder(root, text)
    within = prefix.rpartition(".")[0] + "."
    tied = _tied(root, config)
    parameters = {name: each.count for name, each in root.parameters() if name not in tied}

    main = precision.BITS[most_used(root, quantization)[0]] if quantization else 16
    read = [_layer(f"{prefix}.{index}", layer, index, text, quantization, main) for index, layer in enumerate(layers)]
    ends, head, other = [], [], Counter[str]()
    for place, module in root.modules():
        if place.startswith(f"{prefix}.") or place == prefix:
            continue
        inside = f"{place}.".startswith(within)
        linear, outside = isinstance(module, Linear), not inside or within == "."
        is_head = linear and outside and module.out_features >= text.vocab_size
        for leaf, each in module.children():
            if not isinstance(each, Parameter):
                continue
            if is_head and leaf == "weight":
                head.append((module.in_features, module.out_features))
            elif inside and linear and leaf == "weight":
                ends.append((module.in_features, module.out_features))
            elif not inside and not is_head and not isinstance(module, (Norm, Embedding)):
                other[_part(place, within)] += parameters.get(f"{place}.{leaf}", 0)
    if not head:
        head.append((text.hidden_size, text.vocab_size))
    unknown = sum(_unknown(block, layer) for block, layer in zip(read, layers, strict=True))
    notes = [(f"{name} (not run for prompts of text)", count) for name, count in other.items() if count]
    if unknown:
        notes.append((UNKNOWN_STATE, unknown))
    notes += _notes(text)
    positions = getattr(text, "max_position_embeddings", None)
    return Architecture(
        name="",
        model_type=config.model_type,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        max_positions=positions if _is_size(positions) else NO_LIMIT,
        blocks=tuple(replace(layer, count=count) for layer, count in Counter(read).items()),
        parameters=sum(parameters.values()),
        ends=tuple(ends),
        head=tuple(head),
        plain_head=quantization is None or quantization.bits("lm_head") >= 16,
        not_modelled=tuple(notes),
    )


def most_used(root: Module, quantization: Quantization) -> tuple[str, str]:
    """The formats (weights, activations) of most of the quantised weights; those of 16 bits if none is quantised."""
    amounts = Counter[tuple[str, str]]()
    for weight in _weights("", root):
        if len(weight.shape) > 1 and not isinstance(weight.owner, (Embedding, Convolution)):
            amounts[quantization.format(weight.name)] += weight.elements
    quantised = {formats: amount for formats, amount in amounts.items() if precision.BITS[formats[0]] < 16}
    return max(quantised or amounts, key=lambda formats: amounts[formats])


def _decoder(root: Module, text: Any) -> tuple[str, ModuleList]:
    """The list of the layers that generate text, and its name."""
    count = getattr(text, "num_hidden_layers", None)
    for name, module in root.modules():
        other = re.search(r"(^|\.)(vision|visual|audio|encoder|vision_\w+|audio_\w+)(\.|$)", name)
        if isinstance(module, ModuleList) and not other and count and len(module) == count:
            return name, module
    raise SweetspotError(f"no list of {count} layers is found in the definition of {type(root).__name__}")


def _layer(place: str, layer: Module, index: int, text: Any, quantization: Quantization | None, main: float) -> Layers:
    """What one layer costs."""
    weights = list(_weights(place, layer))
    routed = [one for one in weights if _routed(one)]
    dense = [one for one in weights if not _routed(one)]
    matrices = [one for one in dense if _is_matrix(one)]
    short = [one for one in dense if len(one.shape) > 2]  # convolutions, and matrices made of blocks
    vectors = sum(one.elements for one in dense if one not in matrices and one not in short)
    experts = max((len(one.owner) if isinstance(one.owner, ModuleList) else one.shape[0] for one in routed), default=0)
    of_experts = [one for one in routed if len(one.shape) == 3]
    vectors += sum(one.elements for one in routed if len(one.shape) < 3)
    inner, gated = _feed_forward(layer)
    found = Layers(
        count=1,
        matrices=tuple(_products(matrices)),
        convolution=sum(one.elements for one in short),
        vectors=vectors,
        norms=sum("Norm" in type(one).__name__ and _width(one) == text.hidden_size for _, one in layer.modules()),
        ffn=inner,
        gated=gated,
        experts=experts,
        experts_per_token=_experts_per_token(layer, text) if experts else 0,
        expert_weights=sum(one.elements for one in of_experts) // experts if experts else 0,
        plain_weights=_plain([*matrices, *short], quantization, main),
        plain_expert_weights=_plain(of_experts, quantization, main) / experts if experts else 0,
    )
    linear = "linear" in str(_kind(text, index))
    more: dict[str, Any] = ({} if linear else _attention(layer, index, text)) | _state(layer, linear, text)
    return replace(found, **more)


def _weights(place: str, module: Module) -> Iterator[Weight]:
    """Every parameter below a module; experts in a list of modules as if they were one stack of matrices."""
    for name, child in module.children():
        below = f"{place}.{name}".removeprefix(".")
        if isinstance(child, Parameter):
            yield Weight(place, name, module, child.shape)
        elif name == "experts" and isinstance(child, ModuleList) and len(child):
            for one in _weights(below, child[0]):
                yield one._replace(owner=child, shape=(len(child), *one.shape))
        else:
            yield from _weights(below, child)


def _routed(weight: Weight) -> bool:
    """Whether a weight is that of routed experts, stacked in one parameter or in a list of modules."""
    named = "experts" in f"{weight.module.rpartition('.')[2]} {type(weight.owner).__name__}".lower()
    of_experts = (named or isinstance(weight.owner, ModuleList)) and "shared" not in weight.module
    return of_experts and len(weight.shape) in (2, 3)


def _is_matrix(weight: Weight) -> bool:
    known = isinstance(weight.owner, (Embedding, Convolution)) or "bias" in weight.leaf
    return len(weight.shape) == 2 and not known and min(weight.shape) > 1


def _products(matrices: list[Weight]) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of each product, those that engines fuse as one."""
    left = list(matrices)
    while left:
        first = left.pop(0)
        outputs, inputs = first.shape
        parent, _, name = first.module.rpartition(".")
        names = next((names for names in _FUSED if name in names), ())
        for other in [one for one in left if one.module.rpartition(".")[0] == parent]:
            if other.module.rpartition(".")[2] in names and other.shape[1] == inputs:
                outputs += other.shape[0]
                left.remove(other)
        yield inputs, outputs


def _plain(weights: list[Weight], quantization: Quantization | None, main: float) -> float:
    """How many elements stay in 16 bits if the rest has `main`; a third format counts as a mixture of the two."""
    if quantization is None:  # an engine that quantises what it loads leaves routers and convolutions as they are
        router = re.compile(r"(^|\.)(\w*router|gate)(\.|$)")
        return sum(one.elements for one in weights if isinstance(one.owner, Convolution) or router.search(one.name))
    if main >= 16:
        return 0
    return sum(one.elements * (quantization.bits(one.name) - main) / (16 - main) for one in weights)


def _attention(layer: Module, index: int, text: Any) -> dict[str, Any]:
    """The sizes of a layer's attention; none if it has none, or one that keeps no positions."""
    for _, module in layer.modules():
        linears = _linears(module)
        if "Attention" not in type(module).__name__ or not linears or _OTHER_MIXERS.search(type(module).__name__):
            continue
        if isinstance(rank := getattr(module, "kv_lora_rank", None), int) and "kv_b_proj" in linears:
            heads, rope = text.num_attention_heads, text.qk_rope_head_dim
            sizes: tuple[int, ...] = heads, heads, text.qk_nope_head_dim + rope, text.v_head_dim, rank + rope, rank
        else:
            sizes = _heads(module, linears, text)
        shares = not sizes[-1] and getattr(module, "is_kv_shared_layer", False) is True
        return {**dict(zip(_SIZES, sizes, strict=True)), "shares_cache": shares, **_window(module, index, text)}
    return {}


def _heads(module: Module, linears: dict[str, Linear], text: Any) -> tuple[int, ...]:
    """The `_SIZES` of an attention that is not of DeepSeek's kind."""
    out, key = _named(linears, *_OUTPUTS), _named(linears, "k_proj", "key", "wk", "k")
    value = _named(linears, "v_proj", "value", "wv", "v") or key
    fused = _named(linears, *filter(_QKV.search, linears))
    stated = getattr(module, "head_dim", None), _of(text, "head_dim")
    size = next(filter(_is_size, stated), None) or text.hidden_size // text.num_attention_heads
    if "kv_proj" in linears and linears["kv_proj"].out_features == size:  # one vector is key and value of all heads
        return text.num_attention_heads, 1, size, size, size, size
    if key and value:
        widths = key.out_features, value.out_features
    elif fused and out:
        widths = ((fused.out_features - out.in_features) // 2,) * 2
    else:
        widths = ((_of(text, "num_key_value_heads") or text.num_attention_heads) * size,) * 2
    kv_heads = widths[0] // size
    value_size = widths[1] // kv_heads
    heads = (out.in_features if out else text.num_attention_heads * size) // value_size
    return heads, kv_heads, size, value_size, sum(widths), 0


def _linears(module: Module) -> dict[str, Linear]:
    return {name: child for name, child in module.children() if isinstance(child, Linear)}


def _named(linears: dict[str, Linear], *names: str) -> Linear | None:
    return next((linears[name] for name in names if name in linears), None)


def _kind(text: Any, index: int) -> Any:
    """What the config calls a layer; None if it does not name layers."""
    kinds = _of(text, "layer_types")
    return kinds[index] if kinds else None


def _window(module: Module, index: int, text: Any) -> dict[str, Any]:
    kind = _kind(text, index)
    if kind == "chunked_attention":
        return {"window": text.attention_chunk_size, "chunked": True}
    own, general = getattr(module, "sliding_window", None), _of(text, "sliding_window")
    if kind is None or "sliding" in kind:
        return {"window": own if _is_size(own) else general if _is_size(general) else None}
    return {}


def _state(layer: Module, linear: bool, text: Any) -> dict[str, int]:
    """The recurrent state of a layer, in bytes per request, and the FLOPs of its update, per token."""
    elements = flops = short = 0
    for _, module in layer.modules():
        size: dict[str, int] = {name: value for name, value in vars(module).items() if _is_size(value)}
        if isinstance(module, Convolution):
            short += module.weight.count
        own, each = 0, _SCAN_FLOPS
        if "ssm_state_size" in size:
            width = size["num_heads"] * size["head_dim"] if "num_heads" in size else size.get("intermediate_size", 0)
            own = width * size["ssm_state_size"]
        elif {"num_v_heads", "head_k_dim", "head_v_dim"} <= size.keys():
            own, each = size["num_v_heads"] * size["head_k_dim"] * size["head_v_dim"], _DELTA_FLOPS
        elif linear and "Attention" in type(module).__name__ and "head_dim" in size:
            own, each = size.get("num_heads", text.num_attention_heads) * size["head_dim"] ** 2, _DELTA_FLOPS
        elements, flops = elements + own, flops + each * own
    types = (getattr(text, name, None) for name in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype"))
    wide = 4 if "float32" in map(str, types) else 2
    return {"state_bytes": elements * wide + short * 2, "state_flops": flops}


def _unknown(block: Layers, layer: Module) -> int:
    """How many parameters are of a kind of mixing that is not known here."""
    known = block.heads or (block.state_bytes > 0 and block.state_flops)
    mixers = (module for _, module in layer.modules() if _OTHER_MIXERS.search(type(module).__name__))
    mixer = None if known else next(mixers, None)
    return sum(each.count for _, each in mixer.parameters()) if mixer else 0


def _feed_forward(layer: Module) -> tuple[int, bool]:
    """The inner width of what every token passes, shared experts included, and whether it is gated."""
    width, gated = 0, False
    for place, module in layer.modules():
        if "Attention" in type(module).__name__ or ("experts" in place.split(".")[-2:] and place[-1:].isdigit()):
            continue
        linears = _linears(module)
        down = _named(linears, *_DOWN)
        if down is not None:
            width += down.in_features
            into = sum(one.out_features for one in linears.values() if one is not down)
            gated = gated or into >= 2 * down.in_features
    return width, gated


def _experts_per_token(layer: Module, text: Any) -> int:
    values = [_of(text, name) for name in _TOP_K]
    values += [getattr(module, "top_k", None) for _, module in layer.modules()]
    found = next(filter(_is_size, values), None)
    if found is None:
        raise SweetspotError("how many experts a token passes is in no key that is known here (num_experts_per_tok)")
    return int(found)


def _tied(root: Module, config: Any) -> set[str]:
    """Names of parameters that are the same as others: the head if the config ties it, and what layers share."""
    every, found = {name for name, _ in root.parameters()}, set[str]()
    for place, module in root.modules():
        keys = getattr(module, "_tied_weights_keys", None)
        for pattern, source in keys.items() if isinstance(keys, dict) else ():
            of_layers = f".{pattern}".startswith(".layers.")
            if of_layers or getattr(config, "tie_word_embeddings", None):
                alike = re.compile(re.escape(f"{place}." if place else "") + pattern + r"(\..*)?")
                found |= {name for name in every if alike.fullmatch(name) and not name.startswith(source)}
    return found


def _notes(text: Any) -> list[tuple[str, int]]:
    """What the checkpoint holds that its class in transformers leaves out, or that is counted as something simpler."""
    notes = []
    for name in _PREDICTION:
        if _is_size(count := getattr(text, name, None)):
            notes.append((f"{count} layers that predict further tokens ({name}): engines leave them out by default", 0))
    if _is_size(chosen := getattr(text, "index_topk", None)):
        notes.append((f"attention to {chosen} chosen positions (index_topk): counted as attention to all", 0))
    if getattr(text, "compress_ratios", None):
        notes.append(("attention to compressed positions (compress_ratios): counted as attention to all", 0))
    return notes


def _part(place: str, within: str) -> str:
    """The name of a part beside the text model."""
    shared, parts = within.split("."), place.split(".")
    same = next((index for index, part in enumerate(parts) if index >= len(shared) or part != shared[index]), 0)
    return ".".join(parts[: same + 1])


def _width(module: Module) -> int | None:
    weight = vars(module).get("weight")
    return weight.shape[-1] if isinstance(weight, Parameter) and weight.shape else None


def _of(config: Any, name: str) -> Any:
    """An attribute of a config; None if it has none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers raises errors of its own for attributes that differ between layers
        return None


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
