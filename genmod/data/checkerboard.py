"""Checkerboard: uniform on the 8 dark squares, of side 2, of [-4, 4]^2.

    p(x) = 1/32 where floor(x_1 / 2) + floor(x_2 / 2) is even, else 0;   H = log 32

Squares are closed below and open above.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from genmod.data.base import Toy
from genmod.data.dataset import Dataset, from_density


@dataclasses.dataclass(frozen=True)
class Checkerboard(Toy):
    """Uniform on 8 squares of side 2; log p is -log 32 inside and -inf outside."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        key_column, key_row, key_place = jax.random.split(key, 3)
        column = jax.random.randint(key_column, shape, -2, 2)
        row = 2 * jax.random.randint(key_row, shape, -1, 1) + column % 2
        # Stops 2e-6 short of the upper edge, lest rounding puts a point in the next square.
        place = jax.random.uniform(key_place, (*shape, 2), maxval=2 - 2**-19)
        return 2 * jnp.stack([column, row], axis=-1) + place

    def log_density(self, x: Array) -> Array:
        dark = jnp.sum(jnp.floor(x / 2)) % 2 == 0
        inside = dark & jnp.all((x >= -4) & (x < 4))
        return jnp.where(inside, -math.log(32), -math.inf).astype(x.dtype)

    def exact_entropy(self) -> float:
        """The log of the area of the support."""
        return math.log(32)


def checkerboard(key: Array, n: int) -> Dataset:
    """A 4 x 4 checkerboard (Grathwohl et al. 2019, FFJORD's toy_data)."""
    return from_density("checkerboard", Checkerboard(), key, n)
