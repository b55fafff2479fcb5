"""Pickles of frozen values that hold functions of JAX.

`jnp.tanh` and most of `jax.nn` are jitted under the name of the plain function, which pickle then refuses. Here what can be found
under its own name travels by that name.
"""

import functools
import importlib
import io
import pickle
from typing import Any


def dumps(value: Any) -> bytes:
    """`pickle.dumps`, for values that hold jitted functions of modules too; raises what pickle raises for closures."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def restore(kind: type, state: bytes) -> Any:
    """An object of class `kind` with the attributes that `dumps` wrote."""
    value = object.__new__(kind)
    value.__dict__.update(pickle.loads(state))
    return value


class _Pickler(pickle.Pickler):
    def reducer_override(self, value):
        if not isinstance(value, type) and callable(getattr(value, "__wrapped__", None)):
            module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
            if module is not None and name is not None and _named(module, name) is value:
                return _named, (module, name)
        return NotImplemented


def _named(module: str, name: str) -> Any:
    return functools.reduce(lambda place, part: getattr(place, part, None), name.split("."), importlib.import_module(module))
