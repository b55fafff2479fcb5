"""Ways between two latents, whose decoded points show what lies between two data.

    linear      (1 - t) z_0 + t z_1
    spherical   (sin((1 - t) a) z_0 + sin(t a) z_1) / sin a,    a the angle between z_0 and z_1

Draws of N(0, I) in D dimensions have lengths near sqrt(D), and so have the points of the spherical way; the middle of the linear
one is shorter by sqrt(2), where the generator has hardly been (White 2016, arXiv:1609.04468).
"""

import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check, check_array
from genmod.core.types import Array


def linear_interpolation(z_0: ArrayLike, z_1: ArrayLike, t: ArrayLike) -> Array:
    """The points of the straight way between two latents of one shape at shares t, (num,): (num,) + that shape."""
    z_0, z_1, t = _checked(z_0, z_1, t)
    return (1 - t) * z_0[None] + t * z_1[None]


def spherical_interpolation(z_0: ArrayLike, z_1: ArrayLike, t: ArrayLike) -> Array:
    """The points of the way along a sphere between two latents of one shape at shares t, (num,): (num,) + that shape.

    Lengths go from that of z_0 to that of z_1. Of latents of one direction, and of opposite ones, between which there is no one
    way along a sphere, it is the straight one.
    """
    z_0, z_1, t = _checked(z_0, z_1, t)
    dtype = t.dtype  # half precision does not resolve the angle
    z_0, z_1, t = (a.astype(jnp.promote_types(dtype, jnp.float32)) for a in (z_0, z_1, t))
    lengths = [jnp.sqrt(jnp.sum(z**2)) for z in (z_0, z_1)]
    a, b = (z / jnp.maximum(length, jnp.finfo(z.dtype).tiny) for z, length in zip((z_0, z_1), lengths, strict=True))
    # The angle by half its tangent has all its digits where the cosine has none.
    angle = 2 * jnp.arctan2(jnp.sqrt(jnp.sum((a - b) ** 2)), jnp.sqrt(jnp.sum((a + b) ** 2)))
    sine = jnp.sin(angle)
    straight = (sine < 1e3 * jnp.finfo(sine.dtype).eps) | (lengths[0] * lengths[1] == 0)
    sine = jnp.where(straight, 1.0, sine)
    share_0 = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / sine)
    share_1 = jnp.where(straight, t, jnp.sin(t * angle) / sine)
    return (share_0 * z_0[None] + share_1 * z_1[None]).astype(dtype)


def _checked(z_0: ArrayLike, z_1: ArrayLike, t: ArrayLike) -> tuple[Array, Array, Array]:
    z_0, z_1 = check_array("z_0", z_0), check_array("z_1", z_1)
    check(z_0.shape == z_1.shape, f"z_0 and z_1 must have one shape, got {z_0.shape} and {z_1.shape}")
    t = jnp.asarray(t, jnp.result_type(z_0, z_1))
    check(t.ndim == 1, f"t must have shape (num,), got {t.shape}")
    return z_0.astype(t.dtype), z_1.astype(t.dtype), t.reshape(-1, *(1,) * z_0.ndim)
