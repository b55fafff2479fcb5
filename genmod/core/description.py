"""Descriptions: frozen values that say what something is; and `call`, which makes one of a function and its arguments.

A **description** is a frozen dataclass of plain values, other descriptions and Flax modules. It holds no array, equals its
equal and is hashable, so it is a static argument of `jax.jit`, a key of a cache and an entry of a config.

`describe` (core/identity.py) writes any of them as JSON.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from genmod.core.identity import HASH, canonical as canonical, describe as describe
from genmod.core.pickling import dumps, restore


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
            return self.__dict__[HASH]
        except KeyError:
            fields = dataclasses.fields(self)  # type: ignore[arg-type]
            value = hash((type(self), *(getattr(self, field.name) for field in fields)))
            object.__setattr__(self, HASH, value)
            return value

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it can change; a copied `jnp.tanh` would not equal its original

    def __reduce__(self):
        # The hash of a string differs between processes: it must not travel.
        state = {name: value for name, value in self.__dict__.items() if name != HASH}
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


def made(value: Any) -> Any:
    """What a `Call` makes, such as an optimizer or a schedule; anything else as it is."""
    return value() if isinstance(value, Call) else value


def call(fn: Callable, *args: Any, **kwargs: Any) -> Call:
    """`functools.partial(fn, *args, **kwargs)` that equals its equal and is described by what it holds.

        activation = gm.call(jax.nn.leaky_relu, negative_slope=0.2)
        optimizer  = gm.call(optax.adam, 1e-3)          # `fit` calls it

    Raises TypeError for an fn that cannot be called, and for arguments that cannot be hashed.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {fn!r}")
    return Call(fn, args, tuple(sorted(kwargs.items())))
