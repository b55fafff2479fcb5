"""`describe`: any value as JSON. It is the identity of a run.

Equal values give equal JSON in every process, different ones different JSON. What cannot be described completely is refused by
name; nothing is abbreviated. (Of a class of one's own the code of its methods counts, and what they close over, not the functions
of its module that they call.)
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Functions of these packages are known by their names: their versions stand in the provenance of a run. Everybody else's are
# described by their code too, so that an edited function is another one.
_LIBRARIES = {"genmod", "jax", "jaxlib", "flax", "optax", "diffrax", "equinox", "lineax", "distrax", "numpy", "scipy"}
_LIBRARIES |= {"math", "operator", "functools", "builtins", "enum", "abc", "typing", "collections", "pathlib"}
_GENERATED = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__")  # by the dataclass decorator
HASH = "_description_hash"  # where a Description remembers its hash
_EMPTY = types.CellType()  # of a name that is not bound yet, or no longer


def describe(value: Any) -> Any:
    """A value as nested JSON: equal for equal values in every process, different for different ones.

    Classes and functions stand by their qualified names; those outside of this library, and of those it stands on, by their code,
    defaults, closures and what functions read from their module, too; arrays by dtype, shape and checksum; other objects by
    their class and attributes.

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
        return {"key": np.asarray(jax.random.key_data(value)).tolist(), "impl": str(jax.random.key_impl(value))}
    if isinstance(value, jax.Array | np.ndarray):
        return _array(np.asarray(value), place)
    if dataclasses.is_dataclass(value):
        return _dataclass(value, part, place)
    if callable(getattr(value, "__wrapped__", None)) and _package(type(value)) in _LIBRARIES:  # jitted, with custom rules
        rules = () if _package(value.__wrapped__) in _LIBRARIES else ("jvp", "fwd", "bwd")
        own = {name: part(getattr(value, name), f".{name}") for name in rules if callable(getattr(value, name, None))}
        return {"by": type(value).__name__, "function": part(value.__wrapped__, ".__wrapped__")} | own
    if callable(value) and hasattr(value, "__name__") and _package(type(value)) in _LIBRARIES:
        return f"{_package(type(value))}.{value.__name__}"  # a ufunc
    return _object(value, part, place)


def _mapping(value: dict, part: Callable, place: str) -> Any:
    if type(value) not in (dict, types.MappingProxyType):
        return _subclass(value, dict(value), part)
    if all(type(name) is str for name in value):
        return {name: part(entry, f"[{name!r}]") for name, entry in value.items()}
    return {"dict": [[part(name, " key"), part(entry, f"[{name!r}]")] for name, entry in value.items()]}


def _sequence(value: tuple | list, part: Callable, place: str) -> Any:
    names = getattr(value, "_fields", None)
    if names is None and type(value) not in (tuple, list):
        return _subclass(value, list(value), part)
    if names is None:
        return [part(entry, f"[{i}]") for i, entry in enumerate(value)]
    return {"class": _kind(type(value), part)} | {name: part(entry, f".{name}") for name, entry in zip(names, value, strict=True)}


def _subclass(value: Any, content: Any, part: Callable) -> Any:
    """A container of a class of its own: what it holds, and its attributes."""
    factory = {"default_factory": getattr(value, "default_factory", None)}
    state = {name: part(entry, f".{name}") for name, entry in (factory | getattr(value, "__dict__", {})).items()}
    return {"class": _kind(type(value), part), "content": part(content, ""), "state": state}


def _unordered(value: set | frozenset, part: Callable, place: str) -> Any:
    return {"set": sorted((part(entry, " entry") for entry in value), key=lambda entry: json.dumps(entry, sort_keys=True))}


def _partial(value: functools.partial, part: Callable, place: str) -> Any:
    return {
        "partial": part(value.func, ".func"),
        "args": part(value.args, ".args"),
        "keywords": part(value.keywords, ".keywords"),
    }


def _method(value: types.MethodType, part: Callable, place: str) -> Any:
    return {"method": part(value.__func__, ".__func__"), "of": part(value.__self__, ".__self__")}


def _function(value: types.FunctionType, part: Callable, place: str) -> Any:
    described: dict[str, Any] = {"function": _name(value)}
    if _package(value) not in _LIBRARIES or value.__name__ == "<lambda>":  # all lambdas of a place share one name
        described["code"] = _digest(_code(value.__code__))
        described["defaults"] = part([value.__defaults__, value.__kwdefaults__], " default")
        described["globals"] = _globals(value, part)
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    held = {name: _content(cell, name, part) for name, cell in cells}
    if held:
        described["holds"] = held
    return described if len(described) > 1 else _name(value)


def _content(cell: types.CellType, name: str, part: Callable) -> Any:
    return part(cell.cell_contents, f" closure {name!r}") if cell != _EMPTY else {"empty": True}


def _globals(function: types.FunctionType, part: Callable) -> Any:
    """What a function reads from its module, which may change and with it what the function does; modules by their names."""
    names = sorted(set(_names(function.__code__)) & function.__globals__.keys())
    found = {name: function.__globals__[name] for name in names}
    return {name: part(v, f" global {name!r}") for name, v in found.items() if not isinstance(v, types.ModuleType)}


def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return (*code.co_names, *(name for c in inner for name in _names(c)))


def _kind(cls: type, part: Callable) -> Any:
    """A class by its name; one of somebody else's with the code of its methods and what they close over."""
    own = [c for c in cls.__mro__ if _package(c) not in _LIBRARIES and c is not object]
    if not own:
        return _name(cls)
    code, held = [], {}
    for c in own:
        generated = _GENERATED if dataclasses.is_dataclass(c) else ()
        for name, entry in sorted(vars(c).items()):
            entry = getattr(entry, "fget", None) or getattr(entry, "func", None) or getattr(entry, "__func__", None) or entry
            function = inspect.unwrap(entry) if isinstance(entry, types.FunctionType) else None
            if isinstance(function, types.FunctionType) and name not in generated and _package(function) not in _LIBRARIES:
                code.append((name, _code(function.__code__)))
                cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
                held |= {f"{name}.{n}": _content(cell, n, part) for n, cell in cells if n != "__class__"}
    return {"name": _name(cls), "code": _digest(repr(code)), "holds": held}


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
    (
        (bool, int, float, str),
        lambda value, part, place: {"class": _kind(type(value), part), "value": type(value).__mro__[-2](value)},
    ),
    (tuple | list, _sequence),
    (dict | types.MappingProxyType, _mapping),
    (set | frozenset, _unordered),
    (bytes, lambda value, part, place: {"bytes": value.hex()}),
    (pathlib.PurePath, lambda value, part, place: {"path": str(value)}),
    (np.dtype, lambda value, part, place: {"dtype": value.name}),
    (type, lambda value, part, place: _kind(value, part)),
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
        hidden = set(getattr(value, "__dict__", {})) - {field.name for field in dataclasses.fields(value)} - cached - {HASH}
        if hidden:
            raise _refusal(value, place, f"it has attributes that are no fields, {sorted(hidden)}")
    return {"class": _kind(type(value), part)} | {name: part(getattr(value, name), f".{name}") for name in names}


def _object(value: Any, part: Callable, place: str) -> Any:
    """A plain object by its class and attributes; refused where a part of it is not in Python's reach."""
    slots = [n for cls in type(value).__mro__ for n in getattr(cls, "__slots__", ()) if n not in ("__dict__", "__weakref__")]
    builtin = not (type(value).__flags__ & (1 << 9))  # of a class written in C
    if builtin or (not hasattr(value, "__dict__") and not slots):
        raise _refusal(value, place)
    state = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {"class": _kind(type(value), part), "state": {name: part(entry, f".{name}") for name, entry in state.items()}}


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
