"""Densities that are known exactly: what every synthetic data set is drawn from.

A `Toy` is a distribution p on R^event_shape without parameters: `params` is {}. It can be drawn from, its log-density is exact
(closed form, or quadrature to about 1e-5 relative in float32), and so is its entropy

    H(p) = -E_p[log p(x)]        (nats; differential, so it may be negative),

which no model's expected negative log-likelihood can beat. The gap of a model q is KL(p || q) = E_p[-log q(x)] - H(p).
"""

import abc
import functools

from jax.typing import ArrayLike

from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import Array, Context, Key, Params

PLANE = Real((2,))


class Toy(Distribution):
    """A distribution with exact draws, log-density and entropy, and without parameters.

        toy = gm.data.TwoMoons()
        toy.log_prob({}, x)              # exact, nats
        toy.sample({}, key, (1_000,))
        toy.entropy()                    # exact, nats

    A subclass is a frozen dataclass of plain numbers that defines `event`, `sample_one`, `log_prob_one` and `exact_entropy`.
    """

    def _init(self, key: Key, x: Array, context: Context) -> Params:
        return {}

    @abc.abstractmethod
    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        """log p(x) of ONE event, in nats, exact."""

    @abc.abstractmethod
    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        """ONE draw, of shape event_shape, in JAX's default float type."""

    @abc.abstractmethod
    def exact_entropy(self) -> float:
        """H(p) in nats, computed afresh; `entropy` remembers it."""

    def entropy(self) -> float:
        """H(p) = -E_p[log p] in nats, computed at the first call and then remembered."""
        return _entropy(self)

    def exact_log_prob(self, x: ArrayLike) -> Array:
        """`log_prob({}, x)`, as a function of x alone."""
        return self.log_prob({}, x)


@functools.lru_cache(maxsize=256)
def _entropy(toy: Toy) -> float:
    return float(toy.exact_entropy())
