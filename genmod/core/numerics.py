"""Small functions of numbers that several rooms need."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.types import REALS, Array, Context, Interval


def real(x: ArrayLike) -> Array:
    """x as an array of floats: integers and bools in JAX's default precision."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def soft_bound(x: Array, bound: float) -> Array:
    """bound tanh(x / bound): the identity near zero, never beyond +-bound."""
    return bound * jnp.tanh(x / bound)


def within(interval: Interval, outer: Interval) -> bool:
    """Whether an interval lies in another, ends that are equal to rounding included."""
    margin = 1e-9 * max((abs(end) for end in (*interval, *outer) if math.isfinite(end)), default=0.0)
    return outer[0] - margin <= interval[0] < interval[1] <= outer[1] + margin


def _inner_point(interval: Interval) -> float:
    """A finite number inside of an open interval."""
    low, high = interval
    if math.isfinite(low + high):
        return (low + high) / 2
    return low + 1 if math.isfinite(low) else high - 1 if math.isfinite(high) else 0.0


def kept_inside(value: Array, interval: Interval, closed: bool) -> tuple[Array, Array | None]:
    """The event, and whether an entry lies outside: then it is a harmless one instead, whose gradient is no NaN."""
    low, high = interval
    if interval == REALS:
        return value, None
    # An end that rounds to a number inside the interval is such a number.
    below = value < low if closed or float(np.asarray(low, value.dtype)) > low else value <= low
    above = value > high if closed or float(np.asarray(high, value.dtype)) < high else value >= high
    outside = (below | above).any()
    return jnp.where(outside, _inner_point(interval), value), outside


def flat_context(context: Array, dtype: Any) -> Array:
    """A context as a network reads it: a flat vector of real numbers. Raises as `refuse_label`."""
    refuse_label(context.dtype, context.size)
    return context.reshape(-1).astype(dtype)


def context_inputs(context: Context, dtype: Any) -> tuple[Array, ...]:
    """The flat context as further input of a network; none where there is no context."""
    return () if context is None else (flat_context(context, dtype),)


def refuse_label(dtype: Any, size: int) -> None:
    """Raises TypeError for a context of one integer, which may be a label: as a number it would give classes an order."""
    if size == 1 and jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            "context must hold real numbers, got one integer; for class labels build the model with "
            "context_shape=(num_classes,) and pass the integers, and cast what is measured to float"
        )


def same_precision(context: ArrayLike | None, *arrays: Array) -> Context:
    """The context as an array, a floating one in the precision of the floating `arrays`, which decide."""
    if context is None:
        return None
    context = jnp.asarray(context)
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floats or not jnp.issubdtype(context.dtype, jnp.floating):
        return context
    return context.astype(jnp.result_type(*floats))
