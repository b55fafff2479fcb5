"""Checkerboard: uniform on the 8 dark squares, of side 2, of [-4, 4]^2.

    p(x) = 1/32 where floor(x_1 / 2) + floor(x_2 / 2) is even, else 0;   H = log 32

Squares are closed below and open above.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.event import Real
from genmod.core.types import Array, Context, Key, Params
from genmod.data.base import PLANE, Toy
from genmod.data.dataset import Dataset, from_density


@dataclasses.dataclass(frozen=True)
class CheckerboardDensity(Toy):
    """Uniform on 8 squares of side 2; log p is -log 32 inside and -inf outside."""

    @property
    def event(self) -> Real:
        return PLANE

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_column, key_row, key_place = jax.random.split(key, 3)
        column = jax.random.randint(key_column, (), -2, 2)
        row = 2 * jax.random.randint(key_row, (), -1, 1) + column % 2
        # Stops 2e-6 short of the upper edge, lest rounding puts a point in the next square.
        place = jax.random.uniform(key_place, (2,), maxval=2 - 2**-19)
        return 2 * jnp.stack([column, row]) + place

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        dark = jnp.sum(jnp.floor(x / 2)) % 2 == 0
        inside = dark & jnp.all((x >= -4) & (x < 4))
        return jnp.where(inside, -math.log(32), -math.inf).astype(x.dtype)

    def exact_entropy(self) -> float:
        """The log of the area of the support."""
        return math.log(32)


def checkerboard(key: Key, n: int) -> Dataset:
    """A 4 x 4 checkerboard (Grathwohl et al. 2019, arXiv:1810.01367, its toy_data)."""
    return from_density("checkerboard", CheckerboardDensity(), key, n)
