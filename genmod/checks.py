"""Checks of what users give: each raises an error that names the argument, what was given and what is wanted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

Shape = tuple[int, ...]


def check_event(
    name: str, x: ArrayLike, event_shape: Shape | None, *, batched: bool = False, num_levels: int | None = None
) -> Array:
    """x as a floating array whose trailing axes are `event_shape` (None: any), behind one batch axis if `batched`.

    With `num_levels`, x is an array of integers in 0..num_levels - 1. Raises TypeError for a wrong kind of number,
    ValueError for a wrong shape or for integers known to lie outside.
    """
    x = jnp.asarray(check_levels(name, x if hasattr(x, "dtype") else jnp.asarray(x), num_levels))
    if event_shape is not None and x.shape[int(batched) :] != event_shape:
        wanted = ("(n,) + " if batched else "") + str(event_shape)
        raise ValueError(f"{name} must have shape {wanted}, got {x.shape}")
    if batched and (x.ndim < 1 or x.shape[0] < 1):
        raise ValueError(f"{name} must be a batch with a leading axis of at least one event, got shape {x.shape}")
    return x


def check_levels(name: str, x: Any, num_levels: int | None) -> Any:
    """The array x, if it is of real numbers (num_levels None) or of integers in 0..num_levels - 1.

    Raises TypeError for the other kind, ValueError for integers known to lie outside.
    """
    if num_levels is None:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{name} must be floating point, got {x.dtype}; cast it, or dequantise data that are discrete "
                "(gm.models.Dequantized for images)"
            )
        return x
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers in 0..{num_levels - 1}, got {x.dtype}; the model dequantises them itself")
    limits = jnp.iinfo(x.dtype)
    if not isinstance(x, Tracer) and x.size and (limits.min < 0 or limits.max >= num_levels):
        with jax.ensure_compile_time_eval():  # these values are known, even inside a trace
            low, high = int(x.min()), int(x.max())
        if low < 0 or high >= num_levels:
            raise ValueError(f"{name} must be integers in 0..{num_levels - 1}, got values from {low} to {high}")
    return x


def check_context(owner: str, context: ArrayLike | None, context_shape: Shape | None, *, batch: Shape = ()) -> Array | None:
    """The context as an array of shape batch + context_shape; raises ValueError where it is missing, unwanted or misshapen."""
    if context_shape is None:
        if context is not None:
            raise ValueError(f"{owner} takes no context, got one of shape {jnp.shape(context)}; build it with context_shape=...")
        return None
    if context is None:
        raise ValueError(f"{owner} is conditional: pass context of shape {context_shape}")
    context = jnp.asarray(context)
    if context.shape != batch + context_shape:
        raise ValueError(f"context must have shape {batch + context_shape}, got {context.shape}")
    return context


def check_count(**named: int) -> None:
    """Raises ValueError for the first named count that is not an integer of at least one."""
    for name, value in named.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


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
