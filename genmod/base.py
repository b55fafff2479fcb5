"""What every layer stands on: descriptions and the Bijector protocol.

A **description** is a frozen dataclass of plain values, other descriptions and Flax modules. It holds no array, equals
its equal and is hashable, so it is a static argument of `jax.jit`. **Parameters** are a pytree of arrays made by `init`
and passed first. Arrays under a key `"fixed"` belong to the parameters (they are saved and loaded) but are not trained:
`trainable_mask` is the one place that says so.

A **bijector** maps one latent event z to one data event x. `forward` is base to data, `inverse` data to base, and the
log-determinant is always that of the map just applied:

    x = f(z),  log_det = log |det df/dz|        z = f^-1(x),  log_det = log |det df^-1/dx| = -log |det df/dz|

Public classes are abstract or final: a bijector implements `_init`, `_forward`, `_inverse`; nobody calls those but the
base class, which checks shapes, dtypes and the context once for all. (Those that are solved or estimated numerically
implement the two hooks of `InfoBijector` instead.)

Batches come from `vmap_events`, a `jax.vmap` whose axis has a name. By that name an adaptive ODE solve finds the other
events of its batch and takes one step size for all; under a plain `jax.vmap` each event is solved by itself.
"""

import abc
import dataclasses
import enum
import functools
import re
import types
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.checks import Shape as Shape, check_context, check_event

Array = jax.Array
Key = jax.Array
Params = Any
Context = Array | None
Info = dict[str, Array]
FIXED = "fixed"
EVENTS = "genmod_events"


class Likelihood(enum.IntEnum):
    """What a model's `log_prob` is, from strongest to weakest; a composition keeps the weakest of its parts."""

    EXACT = 0
    ESTIMATE = 1
    LOWER_BOUND = 2
    UNNORMALIZED = 3
    NONE = 4

    @property
    def nll_key(self) -> str:
        """The metric key under which the negative log-likelihood of such a model is reported, in nats."""
        return _NLL_KEYS.get(self, "energy_nats")


_NLL_KEYS = {
    Likelihood.EXACT: "nll_nats",
    Likelihood.ESTIMATE: "nll_estimate_nats",
    Likelihood.LOWER_BOUND: "nll_upper_bound_nats",
}


class Description:
    """A frozen, hashable value that says what something is. Subclasses are `@dataclass(frozen=True)`."""

    def __post_init__(self):
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{type(self).__name__}.{field.name} must be hashable (a tuple instead of a list or an array), "
                    f"got {type(value).__name__}"
                ) from None


class Bijector(Description, abc.ABC):
    """An invertible map of one event, with parameters outside.

    `event_shape` (of x) and `context_shape` are None where any shape will do, respectively where no context is taken.
    `likelihood` is EXACT unless the log-determinant is an estimate. z and x have equally many entries; a bijector that
    changes their shape says so in `data_shape` and `latent_shape`.
    """

    event_shape: Shape | None = None
    context_shape: Shape | None = None
    likelihood: Likelihood = Likelihood.EXACT

    def init(self, key: Key, x: ArrayLike, context: ArrayLike | None = None) -> Params:
        """Parameters from an example batch x, (n,) + event shape, and context, (n,) + context_shape.

        Most bijectors read only the shape of x; those that initialise from data (ActNorm) read its statistics.
        Raises ValueError or TypeError where x or context does not fit.
        """
        x = check_event("x", x, self.event_shape, batched=True)
        context = check_context(type(self).__name__, context, self.context_shape, batch=x.shape[:1])
        return self._init(key, x, _same_precision(context, x))

    def data_shape(self, latent_shape: Shape) -> Shape:
        """The shape of x for a z of shape `latent_shape`: the same, unless the bijector says otherwise."""
        return latent_shape

    def latent_shape(self, data_shape: Shape) -> Shape:
        """The shape of z for an x of shape `data_shape`."""
        return data_shape

    def forward_and_log_det(
        self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> tuple[Array, Array]:
        """(x, log |det dx/dz|) for one latent event z; base to data. `key` where the log_det is an estimate."""
        return _marked(*self.forward_with_info(params, z, context, key=key))

    def inverse_and_log_det(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> tuple[Array, Array]:
        """(z, log |det dz/dx|) for one data event x; data to base. `key` where the log_det is an estimate."""
        return _marked(*self.inverse_with_info(params, x, context, key=key))

    def forward(self, params: Params, z: ArrayLike, context: ArrayLike | None = None) -> Array:
        """x = f(z) for one event."""
        return _marked(*self.forward_with_info(params, z, context, log_det=False))[0]

    def inverse(self, params: Params, x: ArrayLike, context: ArrayLike | None = None) -> Array:
        """z = f^-1(x) for one event."""
        return _marked(*self.inverse_with_info(params, x, context, log_det=False))[0]

    def forward_with_info(
        self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None, log_det: bool = True
    ) -> tuple[Array, Array, Info]:
        """(x, log |det dx/dz|, info): how a numerical map went, as scalars that add up along a chain ({} for closed maps).

        With `log_det=False` nothing is spent on the second entry, which then means nothing. Where a solve fails, the event
        is its last state and `info["failed_solves"]` counts it; the functions without info give NaN there.
        """
        z = check_event("z", z, None if self.event_shape is None else self.latent_shape(self.event_shape))
        wanted = self.data_shape(z.shape)
        context = _same_precision(check_context(type(self).__name__, context, self.context_shape), z)
        return _checked_output(self, z, wanted, *self._forward_with_info(params, z, context, key, log_det))

    def inverse_with_info(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None, log_det: bool = True
    ) -> tuple[Array, Array, Info]:
        """(z, log |det dz/dx|, info), as `forward_with_info`."""
        x = check_event("x", x, self.event_shape)
        wanted = self.latent_shape(x.shape)
        context = _same_precision(check_context(type(self).__name__, context, self.context_shape), x)
        return _checked_output(self, x, wanted, *self._inverse_with_info(params, x, context, key, log_det))

    @abc.abstractmethod
    def _init(self, key: Key, x: Array, context: Context) -> Params: ...

    @abc.abstractmethod
    def _forward(self, params: Params, z: Array, context: Context) -> tuple[Array, ArrayLike]: ...

    @abc.abstractmethod
    def _inverse(self, params: Params, x: Array, context: Context) -> tuple[Array, ArrayLike]: ...

    def _forward_with_info(
        self, params: Params, z: Array, context: Context, key: Key | None, log_det: bool
    ) -> tuple[Array, ArrayLike, Info]:
        return *self._forward(params, z, context), {}

    def _inverse_with_info(
        self, params: Params, x: Array, context: Context, key: Key | None, log_det: bool
    ) -> tuple[Array, ArrayLike, Info]:
        return *self._inverse(params, x, context), {}


class InfoBijector(Bijector, abc.ABC):
    """A bijector that needs a key or reports how it went, or that is made of others, which may.

    It implements `_forward_with_info` and `_inverse_with_info`: (params, event, context, key, log_det) -> (event, log_det,
    info). `log_det=False` says that nobody will read the log-determinant; info holds scalars that add up along a chain.
    """

    def _forward(self, params, z, context):
        return self._forward_with_info(params, z, context, None, True)[:2]

    def _inverse(self, params, x, context):
        return self._inverse_with_info(params, x, context, None, True)[:2]


FAILED = "failed_solves"


def add_info(*infos: Info) -> Info:
    """The sum of several infos, entry by entry; what one has not counts as 0."""
    total: Info = {}
    for info in infos:
        for name, value in info.items():
            total[name] = total[name] + value if name in total else value
    return total


def mark_failed(value: Array, info: Info) -> Array:
    """`value`, NaN where a solve failed."""
    return jnp.where(info[FAILED] > 0, jnp.nan, value) if FAILED in info else value


def _marked(event: Array, log_det: Array, info: Info) -> tuple[Array, Array]:
    return mark_failed(event, info), mark_failed(log_det, info)


def _same_precision(context: Context, event: Array) -> Context:
    """The context in the dtype of the event, which decides."""
    if context is None or not jnp.issubdtype(context.dtype, jnp.floating):
        return context
    return context.astype(event.dtype)


def _checked_output(
    bijector: Bijector, given: Array, wanted: Shape, event: Array, log_det: ArrayLike, info: Info
) -> tuple[Array, Array, Info]:
    # Accumulated in at least float32, whatever the event is stored in.
    log_det = jnp.asarray(log_det, jnp.promote_types(given.dtype, jnp.float32))
    if log_det.shape:
        raise ValueError(
            f"{type(bijector).__name__} returned a log_det of shape {log_det.shape}; "
            "a bijector maps one event and must sum to a scalar"
        )
    if event.shape != wanted:
        raise ValueError(
            f"{type(bijector).__name__} made an event of shape {event.shape} from one of shape {given.shape}, wanted {wanted}; "
            "its parameters are of another event shape, or it broadcasts"
        )
    return event, log_det, info


def describe(value: Any) -> Any:
    """A description as nested JSON values: classes and functions by their qualified names, closures with what they hold.

    Equal descriptions give equal results in every process, so this is what configs and checkpoints store and compare.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, enum.Enum):
        return f"{_qualified_name(type(value))}.{value.name}"
    if isinstance(value, tuple | list):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, jax.Array | np.ndarray):
        return {"array": str(value.dtype), "shape": list(value.shape), "crc32": zlib.crc32(np.asarray(value).tobytes())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name")]  # Flax's own two
        return {"class": _qualified_name(type(value))} | {name: describe(getattr(value, name)) for name in names}
    if isinstance(value, functools.partial):
        return {"partial": describe(value.func), "args": describe(value.args), "keywords": describe(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": _qualified_name(value.__func__), "of": describe(value.__self__)}
    if isinstance(value, types.FunctionType) and (value.__closure__ or value.__name__ == "<lambda>"):
        return _describe_closure(value)
    return _qualified_name(value)


def _describe_closure(function: types.FunctionType) -> dict[str, Any]:
    code = function.__code__
    described: dict[str, Any] = {"function": _qualified_name(function)}
    if function.__name__ == "<lambda>":  # all lambdas of a place share one name
        described["code"] = zlib.crc32(code.co_code + repr((code.co_names, code.co_consts)).encode())
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    # A function that holds itself (recursion) is described by its name alone.
    held = {name: cell.cell_contents for name, cell in cells if cell.cell_contents is not function}
    return described | {"holds": {name: describe(content) for name, content in held.items()}}


def _qualified_name(value: Any) -> str:
    name = getattr(value, "__qualname__", getattr(value, "__name__", None))
    if name is None:
        return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # addresses differ between processes
    return f"{getattr(value, '__module__', '')}.{name}"


def vmap_events(fn: Callable, in_axes: Any = 0) -> Callable:
    """`jax.vmap` over events."""
    return jax.vmap(fn, in_axes, axis_name=EVENTS)


def trainable_mask(params: Params) -> Params:
    """A pytree of bools like `params`: False below any dict key "fixed", True elsewhere."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(getattr(entry, "key", None) == FIXED for entry in path), params
    )


def cast(params: Params, dtype: Any) -> Params:
    """The floating arrays of `params` as `dtype`, the rest untouched."""
    return jax.tree.map(lambda p: p.astype(dtype) if jnp.issubdtype(p.dtype, jnp.floating) else p, params)


def num_params(params: Params) -> int:
    """The number of trainable scalars."""
    sizes = jax.tree.map(lambda p, trained: p.size if trained else 0, params, trainable_mask(params))
    return sum(jax.tree.leaves(sizes))
