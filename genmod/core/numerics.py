"""Small functions of numbers that several rooms need."""

import jax.numpy as jnp

from genmod.core.types import Array


def soft_bound(x: Array, bound: float) -> Array:
    """bound tanh(x / bound): the identity near zero, never beyond +-bound."""
    return bound * jnp.tanh(x / bound)
