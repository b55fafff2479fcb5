"""Kernels of density estimation: laws about the origin that are the same in every direction, of unit scale.

gaussian        N(0, I)
epanechnikov    (D + 2) / (2 V_D) (1 - |u|^2) inside of the unit ball of volume V_D (Epanechnikov 1969)
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.description import Description
from genmod.core.types import Array, Key


class RadialDensity(Description, abc.ABC):
    """A density of |u|^2 alone."""

    @abc.abstractmethod
    def log_density(self, squared: Array, dim: int) -> Array:
        """log K(u), elementwise, of |u|^2 in `dim` dimensions; -inf where K is zero."""

    @abc.abstractmethod
    def sample_one(self, key: Key, dim: int, dtype) -> Array:
        """ONE draw u, (dim,)."""


@dataclasses.dataclass(frozen=True)
class GaussianDensity(RadialDensity):
    """N(0, I)."""

    def log_density(self, squared, dim):
        return -0.5 * squared - 0.5 * dim * math.log(2 * math.pi)

    def sample_one(self, key, dim, dtype):
        return jax.random.normal(key, (dim,), dtype)


@dataclasses.dataclass(frozen=True)
class Epanechnikov(RadialDensity):
    """A parabola on the unit ball, beyond which it is zero: of all kernels the one of least asymptotic squared error."""

    def log_density(self, squared, dim):
        log_volume = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
        inside = squared < 1.0
        height = jnp.log1p(-jnp.where(inside, squared, 0.0))
        return jnp.where(inside, height + math.log(0.5 * (dim + 2)) - log_volume, -jnp.inf)

    def sample_one(self, key, dim, dtype):
        """|u|^2 ~ Beta(D / 2, 2), in any direction."""
        keys = jax.random.split(key)
        direction = jax.random.normal(keys[0], (dim,), dtype)
        radius = jnp.sqrt(jax.random.beta(keys[1], 0.5 * dim, 2.0, dtype=dtype))
        return radius * direction / jnp.linalg.norm(direction)
