"""Stand-ins for torch: modules and parameters that have shapes and compute nothing, and what is not known."""

# ruff: noqa: D102, D105, D107 (they mean what they mean in torch)

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any


class Unknown:
    """What is not known: false, empty, and so is all that is made of it. As a decorator it changes nothing."""

    def __init__(self, result: Any = None) -> None:
        self._result = result  # of a call, if that is known

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unknown()

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        if self._result is None and len(arguments) == 1 and not settings and callable(arguments[0]):
            return arguments[0]
        return Unknown() if self._result is None else self._result

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (_Base,)

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, key: object) -> "Unknown":
        return Unknown()


class _Base:
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        pass


class Tensor:
    """A shape. Whatever is computed element by element keeps it."""

    def __init__(self, *shape: Any) -> None:
        self.shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unknown(self)  # false, or a method that keeps the shape

    def __getitem__(self, key: Any) -> "Tensor":
        keys, sizes, shape = key if isinstance(key, tuple) else (key,), list(self.shape), []
        for part in keys:
            if part is None:
                shape.append(1)
            elif isinstance(part, slice):
                shape.append(len(range(*part.indices(sizes.pop(0)))))
            elif sizes:
                sizes.pop(0)
        return Tensor(*shape, *sizes)

    def expand(self, *shape: int) -> "Tensor":
        return Tensor(*(old if new == -1 else new for new, old in zip(shape, self.shape, strict=True)))

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "or"):
    for _operator in (f"__{_name}__", f"__r{_name}__"):
        setattr(Unknown, _operator, lambda self, other: Unknown())
        setattr(Tensor, _operator, lambda self, other: self)
for _operator in ("__lt__", "__gt__", "__le__", "__ge__", "__neg__", "__invert__", "__setitem__"):
    setattr(Unknown, _operator, lambda self, *other: Unknown())
    setattr(Tensor, _operator, lambda self, *other: self)


class Parameter(Tensor):
    """A parameter."""

    def __init__(self, data: Any = None, requires_grad: bool = True) -> None:
        super().__init__(*(data.shape if isinstance(data, Tensor) else (Unknown(),)))

    @property
    def count(self) -> int:
        """How many elements it has. Raises TypeError if its shape stayed unknown."""
        if not all(isinstance(size, int) for size in self.shape):
            raise TypeError("a parameter's shape depends on what is not known without torch")
        return math.prod(self.shape)


class Module:
    """A module: its parameters and modules are its attributes."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.config = arguments[0] if arguments else settings.get("config")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unknown()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    register_parameter = add_module = register_module = lambda self, name, value: setattr(self, name, value)
    to = float = half = eval = train = requires_grad_ = apply = lambda self, *arguments, **settings: self
    _from_config = from_config = classmethod(lambda cls, config, **settings: cls(config))

    def children(self) -> Iterator[tuple[str, Any]]:
        """Its modules and parameters by name."""
        for name, value in vars(self).items():
            if isinstance(value, (Module, Parameter)):
                yield name, value

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, by name; one with several names comes several times."""
        yield prefix.removesuffix("."), self
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.modules(f"{prefix}{name}.")

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter below, by its first name."""
        seen: set[int] = set()
        for prefix, module in self.modules():
            for name, child in module.children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield f"{prefix}.{name}".removeprefix("."), child


class ModuleList(Module):
    """A list of modules."""

    def __init__(self, modules: Any = ()) -> None:
        self._modules = list(modules)
        self.append, self.extend = self._modules.append, self._modules.extend

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: Any) -> Any:
        return self._modules[index]

    def children(self) -> Iterator[tuple[str, Any]]:
        """Its modules by number."""
        return ((str(index), module) for index, module in enumerate(self._modules) if isinstance(module, Module))


class Sequential(ModuleList):
    """Modules one after another."""

    def __init__(self, *modules: Any) -> None:
        super().__init__(modules)


class ModuleDict(Module):
    """Modules by name."""

    def __init__(self, modules: Any = ()) -> None:
        self.__dict__.update(dict(modules))

    def __setitem__(self, name: Any, module: Any) -> None:
        setattr(self, name, module)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Linear(Module):
    """A matrix product: weight (out, in)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **settings: Any) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(Tensor(out_features, in_features))
        self.bias = Parameter(Tensor(out_features)) if bias else None


class Embedding(Module):
    """A table that is looked up: weight (rows, width)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *arguments: Any, **settings: Any) -> None:
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(Tensor(num_embeddings, embedding_dim))


class Norm(Module):
    """A normalisation with a weight and, but for RMSNorm, a bias. GroupNorm names its groups before its channels."""

    def __init__(self, *sizes: Any, bias: bool = True, **settings: Any) -> None:
        shape = [size for size in sizes if isinstance(size, int | tuple | list) and not isinstance(size, bool)][-1]
        if settings.get("elementwise_affine", True) and settings.get("affine", True):
            self.weight = Parameter(Tensor(shape))
            self.bias = Parameter(Tensor(shape)) if bias else None


class Convolution(Module):
    """A convolution over some axes: weight (out, in / groups, sizes)."""

    axes = 1

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, *arguments: Any, **settings: Any) -> None:
        groups = settings.get("groups", arguments[3] if len(arguments) > 3 else 1)
        bias = settings.get("bias", arguments[4] if len(arguments) > 4 else True)
        sizes = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * self.axes
        self.weight = Parameter(Tensor(out_channels, in_channels // groups, *sizes))
        self.bias = Parameter(Tensor(out_channels)) if bias else None


class Names(SimpleNamespace):
    """A namespace; what it does not name is `default`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.default


def _computed(*arguments: Any, **settings: Any) -> Any:
    """What a function of torch returns: of the shape of its first tensor, if it has one."""
    return next((value for value in arguments if isinstance(value, Tensor)), Unknown())


def _shaped(*shape: Any, **settings: Any) -> Tensor:
    return Tensor(*(shape or (settings["size"],)))


def _range(start: int, end: int | None = None, step: int = 1, **settings: Any) -> Tensor:
    return Tensor(len(range(start, end, step) if end is not None else range(0, start, step)))


_SAME = (Module, Parameter, ModuleList, ModuleDict, Sequential, Linear, Embedding)
NN = Names(
    default=Module,
    **{one.__name__: one for one in _SAME},
    **dict.fromkeys(("LayerNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d"), Norm),
    RMSNorm=partial(Norm, bias=False),
    **{f"Conv{axes}d": type(f"Conv{axes}d", (Convolution,), {"axes": axes}) for axes in (1, 2, 3)},
    functional=Unknown(),
    init=Unknown(),
)
TORCH = Names(
    default=Unknown(),
    nn=NN,
    Tensor=Tensor,
    **dict.fromkeys(("zeros", "ones", "empty", "randn", "rand"), _shaped),
    normal=lambda *arguments, size=(), **settings: _shaped(size),
    full=lambda shape, *arguments, **settings: _shaped(shape),
    arange=_range,
    tensor=lambda value, **settings: Tensor(*((len(value),) if isinstance(value, (list, tuple)) else ())),
    **dict.fromkeys(("log", "exp", "sqrt", "clamp", "abs", "ones_like", "zeros_like", "empty_like"), _computed),
)


INSTEAD = {
    "Conv1D": lambda outputs, inputs: Linear(inputs, outputs),  # GPT-2's
    "PreTrainedModel": Module,
    "GradientCheckpointingLayer": Module,
    "ROPE_INIT_FUNCTIONS": defaultdict(lambda: lambda *arguments, **settings: (Tensor(), 1.0)),
    "use_kernelized_func": lambda *functions: lambda decorated: decorated,
}
