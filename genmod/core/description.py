"""Descriptions: frozen values that say what something is; `describe`, which writes any of them as JSON; and `call`.

A **description** is a frozen dataclass of plain values, other descriptions and Flax modules. It holds no array, equals its
equal and is hashable, so it is a static argument of `jax.jit`, a key of a cache and an entry of a config.

`describe` is the identity of a run: equal values give equal JSON in every process, different ones different JSON. What it
cannot describe completely it refuses by name; it never abbreviates.
"""

import dataclasses
import enum
import functools
import hashlib
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.pickling import dumps, restore

# Functions of these packages are known by their names: their versions stand in the provenance of a run. Everybody else's are
# described by their code too, so that an edited function is another one.
_LIBRARIES = {"genmod", "jax", "jaxlib", "flax", "optax", "diffrax", "equinox", "lineax", "distrax", "numpy", "scipy"}
_LIBRARIES |= {"math", "operator", "functools", "builtins"}
_HASH = "_description_hash"
_EMPTY = types.CellType()  # of a name that is not bound yet, or no longer


class Description:
    """A frozen, hashable value that says what something is. Subclasses are `@dataclass(frozen=True)`.

    Raises TypeError for a subclass that is no frozen dataclass (two of different state would be equal), and for a field that
    cannot be hashed.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "__hash__" not in cls.__dict__:
            cls.__hash__ = Description.__hash__  # before the dataclass decorator, which then keeps it

    def __new__(cls, *_: Any, **__: Any):
        frozen = cls.__dict__.get("__dataclass_params__")
        if frozen is None or not (frozen.frozen and frozen.eq):
            raise TypeError(
                f"{cls.__name__} must be a frozen dataclass, so that it equals its equal: "
                "put @dataclasses.dataclass(frozen=True) above the class"
            )
        return super().__new__(cls)

    def __post_init__(self):
        place, value = _unhashable(type(self).__name__, self)
        if place:
            raise TypeError(f"{place} must be hashable (a tuple instead of a list or an array), got {type(value).__name__}")

    def __hash__(self) -> int:
        # Remembered: a model is hashed at every call of a compiled function, and it is a deep tree.
        try:
            return self.__dict__[_HASH]
        except KeyError:
            fields = dataclasses.fields(self)  # type: ignore[arg-type]
            value = hash((type(self), *(getattr(self, field.name) for field in fields)))
            object.__setattr__(self, _HASH, value)
            return value

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it can change; a copied `jnp.tanh` would not equal its original

    def __reduce__(self):
        # The hash of a string differs between processes: it must not travel.
        state = {name: value for name, value in self.__dict__.items() if name != _HASH}
        return restore, (type(self), dumps(state))


def _unhashable(place: str, value: Any) -> tuple[str, Any]:
    """Where in the fields of a dataclass something stands that cannot be hashed, and what; ("", None) if nowhere."""
    for field in dataclasses.fields(value):
        part = getattr(value, field.name, None)
        try:
            hash(part)
        except TypeError:
            name = f"{place}.{field.name}"
            inner = _unhashable(name, part) if dataclasses.is_dataclass(part) else ("", None)
            return inner if inner[0] else (name, part)
    return "", None


@dataclasses.dataclass(frozen=True)
class Call(Description):
    """A function with some of its arguments, equal to its equal; build it with `call`."""

    fn: Callable
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*self.args, *args, **(dict(self.kwargs) | kwargs))


def call(fn: Callable, *args: Any, **kwargs: Any) -> Call:
    """`functools.partial(fn, *args, **kwargs)` that equals its equal and is described by what it holds.

        activation = gm.call(jax.nn.leaky_relu, negative_slope=0.2)
        optimizer  = gm.call(optax.adam, 1e-3)          # `fit` calls it

    Raises TypeError for an fn that cannot be called, and for arguments that cannot be hashed.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {fn!r}")
    return Call(fn, args, tuple(sorted(kwargs.items())))


def describe(value: Any) -> Any:
    """A value as nested JSON: equal for equal values in every process, different for different ones.

    Classes and functions stand by their qualified names; functions outside of this library and those it stands on by their
    code, defaults and closures too; arrays by dtype, shape and checksum; other objects by their class and attributes.

    Raises TypeError for a value that has more to it than can be written down, naming where in `value` it stands.
    """
    return _describe(value, "value", ())


def canonical(value: Any) -> Any:
    """The first value that was described as this one is, so that equal closures are one object; itself where it has no
    description."""
    try:
        key = json.dumps(describe(value), sort_keys=True)
    except TypeError:
        return value
    return _FIRST.setdefault(key, value)


_FIRST: dict[str, Any] = {}


def _describe(value: Any, place: str, inside: tuple[int, ...]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if id(value) in inside:  # a function or object that holds itself
        return {"again": len(inside) - inside.index(id(value))}
    inside = (*inside, id(value))

    def part(value: Any, name: str) -> Any:
        return _describe(value, f"{place}{name}", inside)

    for kinds, to_json in _KINDS:
        if isinstance(value, kinds):
            return to_json(value, part, place)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": np.asarray(jax.random.key_data(value)).tolist()}
    if isinstance(value, jax.Array | np.ndarray):
        return _array(np.asarray(value), place)
    if dataclasses.is_dataclass(value):
        return _dataclass(value, part, place)
    if callable(getattr(value, "__wrapped__", None)) and _package(type(value)) in _LIBRARIES:  # jitted, with custom rules
        return {"by": type(value).__name__, "function": part(value.__wrapped__, ".__wrapped__")}
    if callable(value) and hasattr(value, "__name__") and _package(type(value)) in _LIBRARIES:
        return f"{_package(type(value))}.{value.__name__}"  # a ufunc
    return _object(value, part, place)


def _mapping(value: dict, part: Callable, place: str) -> Any:
    if all(type(name) is str for name in value):
        return {name: part(entry, f"[{name!r}]") for name, entry in value.items()}
    return {"dict": [[part(name, " key"), part(entry, f"[{name!r}]")] for name, entry in value.items()]}


def _sequence(value: tuple | list, part: Callable, place: str) -> Any:
    names = getattr(value, "_fields", None)
    if names is None:
        return [part(entry, f"[{i}]") for i, entry in enumerate(value)]
    return {"class": _name(type(value))} | {name: part(entry, f".{name}") for name, entry in zip(names, value, strict=True)}


def _unordered(value: set | frozenset, part: Callable, place: str) -> Any:
    return {"set": sorted((part(entry, " entry") for entry in value), key=lambda entry: json.dumps(entry, sort_keys=True))}


def _partial(value: functools.partial, part: Callable, place: str) -> Any:
    return {
        "partial": part(value.func, ".func"),
        "args": part(value.args, ".args"),
        "keywords": part(value.keywords, ".keywords"),
    }


def _method(value: types.MethodType, part: Callable, place: str) -> Any:
    return {"method": _name(value.__func__), "of": part(value.__self__, ".__self__")}


def _function(value: types.FunctionType, part: Callable, place: str) -> Any:
    described: dict[str, Any] = {"function": _name(value)}
    if _package(value) not in _LIBRARIES or value.__name__ == "<lambda>":  # all lambdas of a place share one name
        described["code"] = _digest(_code(value.__code__))
        described["defaults"] = part([value.__defaults__, value.__kwdefaults__], " default")
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    held = {name: part(cell.cell_contents, f" closure {name!r}") if cell != _EMPTY else {"empty": True} for name, cell in cells}
    if held:
        described["holds"] = held
    return described if len(described) > 1 else _name(value)


def _builtin(value: Any, part: Callable, place: str) -> Any:
    owner = getattr(value, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        return _name(value)
    return {"method": value.__name__, "of": part(owner, ".__self__")}


def _structure(value: Any, part: Callable, place: str) -> Any:
    text = str(value)
    if " at 0x" in text:
        raise _refusal(value, place)
    return {"structure": text}


_KINDS: tuple[tuple[Any, Callable[[Any, Callable, str], Any]], ...] = (
    (enum.Enum, lambda value, part, place: f"{_name(type(value))}.{value.name}"),
    (np.generic, lambda value, part, place: value.item() if type(value.item()) in (bool, int, float) else _array(value, place)),
    ((bool, int, float, str), lambda value, part, place: {"class": _name(type(value)), "value": type(value).__mro__[-2](value)}),
    (tuple | list, _sequence),
    (dict | types.MappingProxyType, _mapping),
    (set | frozenset, _unordered),
    (bytes, lambda value, part, place: {"bytes": value.hex()}),
    (pathlib.PurePath, lambda value, part, place: {"path": str(value)}),
    (np.dtype, lambda value, part, place: {"dtype": value.name}),
    (type, lambda value, part, place: _name(value)),
    (functools.partial, _partial),
    (types.MethodType, _method),
    (types.FunctionType, _function),
    (types.BuiltinFunctionType, _builtin),
    (type(jax.tree.structure(None)), _structure),
)


def _array(value: Any, place: str) -> Any:
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise _refusal(value, place)
    return {"array": array.dtype.name, "shape": list(array.shape), "sha256": _digest(np.ascontiguousarray(array).tobytes())}


def _dataclass(value: Any, part: Callable, place: str) -> Any:
    names = [field.name for field in dataclasses.fields(value) if field.compare]
    flax = any(cls.__module__.startswith("flax.") for cls in type(value).__mro__)
    if flax:  # a module's scope in another, of which this one knows nothing
        names.remove("parent")
    else:
        cached = {n for cls in type(value).__mro__ for n, v in vars(cls).items() if isinstance(v, functools.cached_property)}
        hidden = set(getattr(value, "__dict__", {})) - {field.name for field in dataclasses.fields(value)} - cached - {_HASH}
        if hidden:
            raise _refusal(value, place, f"it has attributes that are no fields, {sorted(hidden)}")
    return {"class": _name(type(value))} | {name: part(getattr(value, name), f".{name}") for name in names}


def _object(value: Any, part: Callable, place: str) -> Any:
    """A plain object by its class and attributes; refused where a part of it is not in Python's reach."""
    slots = [n for cls in type(value).__mro__ for n in getattr(cls, "__slots__", ()) if n not in ("__dict__", "__weakref__")]
    builtin = not (type(value).__flags__ & (1 << 9))  # of a class written in C
    if builtin or (not hasattr(value, "__dict__") and not slots):
        raise _refusal(value, place)
    state = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {"class": _name(type(value)), "state": {name: part(entry, f".{name}") for name, entry in state.items()}}


def _refusal(value: Any, place: str, why: str = "its state cannot be read") -> TypeError:
    return TypeError(
        f"{place} is a {_name(type(value))}, which cannot be described completely ({why}), so that two different ones could be "
        "taken for equal; use plain values, frozen dataclasses, named functions or gm.call(fn, ...)"
    )


def _code(code: types.CodeType) -> str:
    """What a function does, without where it stands."""
    constants = [
        _code(c) if isinstance(c, types.CodeType) else repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
        for c in code.co_consts
    ]
    return repr((code.co_code.hex(), code.co_names, code.co_varnames, constants))


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def _package(value: Any) -> str:
    return (getattr(value, "__module__", None) or "").split(".")[0]


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', value))}"
