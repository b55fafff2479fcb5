"""Small functions of numbers that several rooms need."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.types import Array, Context


def soft_bound(x: Array, bound: float) -> Array:
    """bound tanh(x / bound): the identity near zero, never beyond +-bound."""
    return bound * jnp.tanh(x / bound)


def same_precision(context: ArrayLike | None, *arrays: Array) -> Context:
    """The context as an array, a floating one in the precision of the floating `arrays`, which decide."""
    if context is None:
        return None
    context = jnp.asarray(context)
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floats or not jnp.issubdtype(context.dtype, jnp.floating):
        return context
    return context.astype(jnp.result_type(*floats))
