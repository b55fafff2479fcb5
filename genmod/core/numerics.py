"""Small functions of numbers that several rooms need."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.types import Array, Context


def soft_bound(x: Array, bound: float) -> Array:
    """bound tanh(x / bound): the identity near zero, never beyond +-bound."""
    return bound * jnp.tanh(x / bound)


def flat_context(context: Array, dtype: Any) -> Array:
    """A context as a network reads it: a flat vector of real numbers.

    Raises TypeError for one integer, which may be a label: read as a number it would give classes an order and distances.
    """
    if context.size == 1 and jnp.issubdtype(context.dtype, jnp.integer):
        raise TypeError(
            "context must hold real numbers, got one integer; pass class labels as jax.nn.one_hot(labels, num_classes), "
            "with context_shape=(num_classes,) of the model, and cast what is measured to float"
        )
    return context.reshape(-1).astype(dtype)


def same_precision(context: ArrayLike | None, *arrays: Array) -> Context:
    """The context as an array, a floating one in the precision of the floating `arrays`, which decide."""
    if context is None:
        return None
    context = jnp.asarray(context)
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    if not floats or not jnp.issubdtype(context.dtype, jnp.floating):
        return context
    return context.astype(jnp.result_type(*floats))
