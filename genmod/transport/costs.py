"""Costs of moving one event to another."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_array
from genmod.core.types import Array

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU multiplies float32 with 10 bits


def squared_distances(x0: ArrayLike, x1: ArrayLike) -> Array:
    """|x0_i - x1_j|^2 of every pair, (n,) + event shape and (m,) + event shape -> (n, m), in at least float32.

    Up to 8 dimensions each term is a difference, squared: right to rounding. Above, |a|^2 - 2 a.b + |b|^2 about the mean of
    x1, which errs by a few eps times |a|^2 + |b|^2 and is cut at 0. Raises ValueError for different event shapes.
    """
    x0, x1 = check_array("x0", x0, batched=True), check_array("x1", x1, batched=True)
    if x0.shape[1:] != x1.shape[1:]:
        raise ValueError(f"x0 and x1 must have one event shape to have distances, got {x0.shape[1:]} and {x1.shape[1:]}")
    dtype = jnp.promote_types(jnp.promote_types(x0.dtype, x1.dtype), jnp.float32)
    a, b = (x.reshape(x.shape[0], -1).astype(dtype) for x in (x0, x1))
    if a.shape[1] <= 8:
        return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
    center = b.mean(0, keepdims=True)
    a, b = a - center, b - center
    products = jnp.matmul(a, b.T, precision=_HIGHEST)
    return jnp.maximum(jnp.sum(a**2, axis=1, keepdims=True) - 2.0 * products + jnp.sum(b**2, axis=1)[None], 0.0)
