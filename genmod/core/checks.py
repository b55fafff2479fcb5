"""Checks of what users give: each raises an error that names the argument, what was given and what is wanted."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export
from jax.core import Tracer
from jax.typing import ArrayLike

from genmod.core.arrays import to_context
from genmod.core.labels import labels_as_one_hot, takes_labels
from genmod.core.types import Shape


def check_array(name: str, x: Any, *, batched: bool = False) -> Array:
    """x as a floating array, with a leading axis of at least one row if `batched`; TypeError or ValueError where it is not."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {x.dtype}; cast it")
    if batched and (x.ndim < 1 or x.shape[0] < 1):
        raise ValueError(f"{name} must be a batch with a leading axis of at least one event, got shape {x.shape}")
    return x


def check_weighted(x: Any, weight: Any, *, least: int = 1) -> tuple[Array, Array | None]:
    """Rows x, (n, ...), and their weights, (n,) or None, as arrays; the weights in the precision of x, at least float32.

    Raises ValueError for values of x that are not finite, for weights as `check_row_weight`, and for fewer than `least` rows of
    positive weight; values are let through while tracing. TypeError where a weight is no number.
    """
    x = jnp.asarray(x)
    real = jnp.issubdtype(x.dtype, jnp.floating)
    if real and not isinstance(x, Tracer) and not bool(jnp.isfinite(x).all()):
        raise ValueError("x must be finite, got NaN or inf; drop these rows")
    num = x.shape[0]
    if weight is not None:
        weight = check_row_weight("weight", weight, num)
        num = num if isinstance(weight, Tracer) else int((np.asarray(weight) > 0).sum())
        weight = jnp.asarray(weight, jnp.promote_types(x.dtype, jnp.float32) if real else jnp.result_type(float))
    if num < least:
        rows = "row" if least == 1 else "rows"
        raise ValueError(f"x must hold at least {least} {rows} (of positive weight) for this model, got {num}")
    return x, weight


def check_row_weight(name: str, weight: Any, num: int) -> Any:
    """The weights of `num` rows as an array, (num,), left on the host or the device where they lie, in at least float32.

    Raises ValueError unless they are finite numbers >= 0 and not all 0; values are let through while tracing. TypeError where one
    is no number.
    """
    weight = to_context(name, weight)
    if not (jnp.issubdtype(weight.dtype, jnp.floating) or np.dtype(weight.dtype).kind in "biu"):
        raise TypeError(f"{name} must be real numbers, got {weight.dtype}")
    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))  # sums of float16 overflow
    wanted = f"{name} must be {num} finite numbers >= 0, one for each row and not all 0"
    if weight.shape != (num,):
        raise ValueError(f"{wanted}, got shape {tuple(weight.shape)}")
    if not isinstance(weight, Tracer):
        known = np.asarray(weight)  # in NumPy, which does not trace
        if bad := known[~(np.isfinite(known) & (known >= 0))].tolist():
            raise ValueError(f"{wanted}, got {bad[0]} among them")
        if num and not known.any():
            raise ValueError(f"{wanted}, got zeros")
    return weight


def check_context(
    owner: str,
    context: Any,
    context_shape: Shape | None,
    *,
    batch: Shape | None = (),
    any_batch: bool = False,
    name: str = "context",
) -> Any:
    """The context as an array of shape batch + context_shape (`any_batch`: of any leading axes, `batch` those of the events, None
    where there are no events), class labels one-hot.

    Raises ValueError where it is missing, unwanted or misshapen, and for labels as `labels_as_one_hot`; TypeError where it holds
    no numbers.
    """
    if context_shape is None:
        if context is not None:
            raise ValueError(f"{owner} takes no context, got one of shape {np.shape(context)}; build it with context_shape=...")
        return None
    if context is None:
        raise ValueError(f"{owner} is conditional: pass context of shape {context_shape}")
    axes = None if any_batch and not batch else batch  # one event is no batch: labels may broadcast against it
    context = labels_as_one_hot(name, to_context(name, context), context_shape, axes)
    context = _held(context) if math.prod(context_shape) > 1 else context
    split = context.ndim - len(context_shape)
    if (any_batch and (split < 0 or context.shape[split:] != context_shape)) or (
        not any_batch and context.shape != (batch or ()) + context_shape
    ):
        exact = (batch or ()) + context_shape
        wanted, labels = (f"(...,) + {context_shape}", "(...,)") if any_batch else (str(exact), str(batch))
        hint = f"; class labels are integers of shape {labels}" if takes_labels(context_shape) else ""
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(context.shape)}{hint}")
    return context


def _held(context: Any) -> Any:
    """The context, as real numbers where it holds integers beyond those of JAX, which would wrap around."""
    held = jax.dtypes.canonicalize_dtype(context.dtype)
    if context.dtype.kind in "iu" and held != context.dtype and context.size:
        limits = jnp.iinfo(held)
        if context.min() < limits.min or context.max() > limits.max:
            return context.astype(np.float64)
    return context


def check_shape(name: str, shape: Any, *, least: int = 0) -> Shape:
    """`shape` as a tuple of plain integers >= `least`; raises TypeError for no tuple of integers, ValueError for smaller ones."""
    if not isinstance(shape, tuple) or not all(_is_integer(n) for n in shape):
        hint = f"; write ({shape},)" if _is_integer(shape) else ""
        raise TypeError(f"{name} must be a tuple of integers, got {shape!r}{hint}")
    if any(n < least for n in shape):
        raise ValueError(f"{name} must hold integers >= {least}, got {shape!r}")
    return tuple(int(n) for n in shape)


def check_context_shape(owner: Any) -> None:
    """Makes the field `context_shape` of a frozen dataclass a tuple of plain integers, None where it is None.

    Raises TypeError or ValueError as `check_shape`. A context_shape that is a property is that of parts, which were checked.
    """
    shape = vars(owner).get("context_shape")
    if shape is not None:
        object.__setattr__(owner, "context_shape", check_shape("context_shape", shape))


def check_widths(name: str, widths: Any) -> Shape:
    """The widths of a network's layers as a tuple of plain integers >= 1; raises TypeError or ValueError as `check_shape`."""
    return check_shape(name, tuple(widths) if isinstance(widths, list) else widths, least=1)


def check_sizes(name: str, shape: Any) -> Shape:
    """A number of draws, or a tuple of numbers, as a tuple; raises TypeError or ValueError as `check_shape`."""
    if isinstance(shape, tuple) and any(export.is_symbolic_dim(n) for n in shape):  # `jax.export` leaves them open
        return shape
    sizes = (shape,) if _is_integer(shape) else tuple(shape) if isinstance(shape, list) else shape
    if not isinstance(sizes, tuple):
        raise TypeError(f"{name} must be a number of draws, or a tuple of such numbers, got {shape!r}")
    return check_shape(name, sizes)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_count(**named: int) -> None:
    """Raises ValueError for the first named count that is not an integer of at least one."""
    for name, value in named.items():
        if not _is_integer(value) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def check_whole(**named: int) -> None:
    """Raises ValueError for the first named number that is not an integer of at least zero."""
    for name, value in named.items():
        check(_is_integer(value) and value >= 0, f"{name} must be an integer >= 0, got {value!r}")


def check_time(t: ArrayLike) -> Array:
    """t as an array; raises ValueError for values known to lie outside [0, 1] (not while tracing)."""
    t = jnp.asarray(t)
    if not isinstance(t, Tracer):
        known = np.asarray(t)  # in NumPy, which does not trace
        if not ((known >= 0) & (known <= 1)).all():
            raise ValueError(f"t must be in [0, 1], 0 noise and 1 data, got {known}")
    return t


def check_positive(**values: Any) -> None:
    """Raises ValueError unless every named number, or array of them, is finite and above zero; TypeError for what is no number;
    what is being traced is let through."""
    for name, value in values.items():
        if isinstance(value, Tracer):
            continue
        known = np.asarray(value)  # in NumPy, which does not trace
        if not jnp.issubdtype(known.dtype, jnp.number):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not (np.isfinite(known) & (known > 0)).all():
            raise ValueError(f"{name} must be > 0 and finite, got {value}")


def check(condition: Any, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_parts(owner: Any, **kinds: type) -> None:
    """Raises TypeError for the first named attribute of `owner` that is not an instance of its class."""
    for name, kind in kinds.items():
        value = getattr(owner, name)
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")


def check_function(**named: Any) -> None:
    """Raises TypeError for the first named value that cannot be called."""
    for name, value in named.items():
        if not callable(value):
            raise TypeError(f"{name} must be a function, got {value!r}")


def check_times(times: tuple[float, float]) -> None:
    """Raises ValueError unless times = (low, high) with 0 <= low < high <= 1."""
    in_order = len(times) == 2 and 0 <= times[0] < times[1] <= 1
    check(in_order, f"times must be (low, high) with 0 <= low < high <= 1, got {times}")
