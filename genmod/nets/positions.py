"""Positions of a Transformer: how attention, which by itself sees a set, is told the order of the steps.

    RotaryPositions     keys and queries of step t are turned by angles in proportion to t: a score depends on the distance alone
    LearnedPositions    a vector for each step t < max_length is added to the features at the input

Both take the number t of a step, counted from the first of the sequence, so that a Transformer reads in any pieces.
"""

import abc
import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from genmod.core.description import Description
from genmod.core.types import Array


class Positions(Description, abc.ABC):
    """How a Transformer tells steps apart: by its input, by its keys and queries, or both."""

    @abc.abstractmethod
    def check(self, num_features: int, num_heads: int) -> None:
        """Raises ValueError for features that these positions cannot be given to."""

    @abc.abstractmethod
    def at_input(self, h: Array, steps: Array, max_length: int) -> Array:
        """The features h of the steps, (n, C) and (n,), as they enter the first layer; called inside a Linen module."""

    @abc.abstractmethod
    def at_attention(self, x: Array, steps: Array) -> Array:
        """Keys or queries x of the steps, (n, num_heads, C / num_heads) and (n,), as they enter the scores."""


@dataclasses.dataclass(frozen=True)
class RotaryPositions(Positions):
    """Rotations of keys and queries (Su et al. 2021, arXiv:2104.09864, eq. 34), without parameters.

    Of a head with C features the pair (x_i, x_{i + C/2}) is turned by the angle t / 10000^(2 i / C).
    """

    def check(self, num_features, num_heads):
        if num_features % (2 * num_heads):
            raise ValueError(
                "num_features must be a multiple of 2 num_heads, as rotary positions turn pairs of features; "
                f"got num_features={num_features}, num_heads={num_heads}"
            )

    def at_input(self, h, steps, max_length):
        return h

    def at_attention(self, x, steps):
        half = x.shape[-1] // 2
        speed = 10_000.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
        angle = steps.astype(x.dtype)[:, None, None] * speed[None, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


@dataclasses.dataclass(frozen=True)
class LearnedPositions(Positions):
    """A learned vector for each step, added at the input (Gehring et al. 2017, arXiv:1705.03122, section 3.1; as in GPT-2).

    There are as many as the Transformer's `max_length`, and they are parameters: unlike rotary ones they cannot serve a
    Transformer of another `max_length`. They start as large as embedded tokens.
    """

    def check(self, num_features, num_heads):
        if num_features % num_heads:
            raise ValueError(
                f"num_features must be a multiple of num_heads, got num_features={num_features}, num_heads={num_heads}"
            )

    def at_input(self, h, steps, max_length):
        return h + _Table(max_length, name="positions")(steps, h.shape[-1])

    def at_attention(self, x, steps):
        return x


class _Table(nn.Module):
    num: int

    @nn.compact
    def __call__(self, steps, num_features):
        if self.has_variable("params", "table"):
            found = self.get_variable("params", "table").shape[0]
            if found != self.num:
                raise ValueError(
                    f"params hold learned positions of {found} steps, but the Transformer has max_length={self.num}; "
                    "they end with the max_length of training: use that one, or RotaryPositions"
                )
        as_embedded = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        table = self.param("table", as_embedded, (self.num, num_features))
        return table[steps]
