"""Heads that are mixtures of scalar distributions: of Gaussians, and of logistics in bins.

At raw = 0 the components differ in their means: equal ones would get equal gradients and stay equal for ever.
"""

import abc
import dataclasses
import math
import statistics
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count
from genmod.core.event import Levels, Real
from genmod.core.numerics import soft_bound
from genmod.core.types import Array, Key
from genmod.densities.heads import Head, constant_like, nearest_integer


class MixtureHead(Head, abc.ABC):
    """A mixture; raw holds means relative to the components' centres, log-scales relative to a first one, and, where there are
    at least two components, logits."""

    num_components: int
    bound: ClassVar[float]

    @property
    def num_params(self):
        return 3 * self.num_components if self.num_components > 1 else 2

    @abc.abstractmethod
    def _start(self) -> tuple[np.ndarray, float]:
        """The means at raw = 0, (num_components,), and the scale that all have there."""

    def _components(self, raw: Array) -> tuple[Array, Array, Array]:
        """log weights, means and log-scales, each of shape S + (num_components,)."""
        centres, scale = self._start()
        mean, log_scale, *logits = jnp.split(raw, self.num_params // self.num_components, -1)
        log_weight = jax.nn.log_softmax(logits[0]) if logits else jnp.zeros_like(mean)
        return log_weight, mean + constant_like(centres, mean), soft_bound(log_scale, self.bound) + math.log(scale)

    def _draw_component(self, raw: Array, key: Key) -> tuple[Array, Array]:
        """Mean and scale of a component drawn for every entry."""
        log_weight, mean, log_scale = self._components(raw)
        which = jax.random.categorical(key, log_weight)[..., None]
        mean, log_scale = (jnp.take_along_axis(a, which, -1)[..., 0] for a in (mean, log_scale))
        return mean, jnp.exp(log_scale)


@dataclasses.dataclass(frozen=True)
class NormalMixtureHead(MixtureHead):
    """A mixture of `num_components` Gaussians, of mean 0 and variance 1 at raw = 0."""

    num_components: int
    bound = 5.0

    def __post_init__(self):
        super().__post_init__()
        check_count(num_components=self.num_components)

    def event(self, shape):
        return Real(shape)

    def _start(self):
        quantiles = (np.arange(self.num_components) + 0.5) / self.num_components
        centres = np.array([statistics.NormalDist().inv_cdf(q) for q in quantiles])
        return centres, math.sqrt(1.0 - centres.var())

    def _log_prob(self, raw, x):
        log_weight, mean, log_scale = self._components(raw)
        z = (x[..., None] - mean) * jnp.exp(-log_scale)
        return jax.nn.logsumexp(log_weight - 0.5 * z**2 - log_scale, -1) - 0.5 * math.log(2 * math.pi)

    def _sample(self, raw, key):
        keys = jax.random.split(key)
        mean, scale = self._draw_component(raw, keys[0])
        return mean + scale * jax.random.normal(keys[1], mean.shape, mean.dtype)

    def _mean(self, raw):
        log_weight, mean, _ = self._components(raw)
        return jnp.sum(jnp.exp(log_weight) * mean, -1)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogisticHead(MixtureHead):
    """x in 0 .. num_levels - 1, a mixture of logistics in bins (Salimans et al. 2017, arXiv:1701.05517, eq. 1 and 2).

    Level k is the bin of width 2 / (num_levels - 1) around v_k = 2 k / (num_levels - 1) - 1 in [-1, 1]; the first and the last
    bin reach to infinity, so that the levels sum to one exactly. Means and scales are in units of v. The channels of an image
    are independent given raw; their dependence (eq. 3) is the network's.
    """

    num_levels: int
    num_components: int = 1
    bound = 7.0

    def __post_init__(self):
        super().__post_init__()
        check_count(num_levels=self.num_levels, num_components=self.num_components)
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {self.num_levels}")

    def event(self, shape):
        return Levels(shape, self.num_levels)

    def _start(self):  # at most 0.21 nats above the uniform distribution
        return (2 * np.arange(self.num_components) + 1) / self.num_components - 1, 0.4 / self.num_components

    def _log_prob(self, raw, x):
        log_weight, mean, log_scale = self._components(raw)
        inverse_scale = jnp.exp(-log_scale)
        number = nearest_integer(x, self.num_levels - 1)
        level = number.astype(raw.dtype)[..., None]
        # The bin is (low, high) in units of the scale. With s the sigmoid, s(high) - s(low) = s(high) s(-low) (1 - exp(-width)):
        # no difference of nearly equal numbers.
        width = 2.0 / (self.num_levels - 1) * inverse_scale
        low = ((2.0 * level - 1.0) / (self.num_levels - 1) - 1.0 - mean) * inverse_scale
        first, last = level == 0, level == self.num_levels - 1
        log_below = jnp.where(last, 0.0, jax.nn.log_sigmoid(low + width))
        log_above = jnp.where(first, 0.0, jax.nn.log_sigmoid(-low))
        log_inside = jnp.where(first | last, 0.0, jnp.log(-jnp.expm1(-width)))
        value = jax.nn.logsumexp(log_weight + log_below + log_above + log_inside, -1)
        return jnp.where(x == number, value, -jnp.inf)

    def _sample(self, raw, key):
        keys = jax.random.split(key)
        mean, scale = self._draw_component(raw, keys[0])
        v = mean + scale * jax.random.logistic(keys[1], mean.shape, mean.dtype)
        level = jnp.round((v + 1.0) * (0.5 * (self.num_levels - 1)))
        return jnp.clip(level, 0, self.num_levels - 1).astype(self.event(()).dtype)

    def _mean(self, raw):
        """The sum over k of P(x > k); one k after the other, as all at once would take num_levels times the memory."""
        log_weight, mean, log_scale = self._components(raw)
        weight, inverse_scale = jnp.exp(log_weight), jnp.exp(-log_scale)

        def add(total, k):
            upper = (2.0 * k + 1.0) / (self.num_levels - 1) - 1.0
            return total + jnp.sum(weight * jax.nn.sigmoid((mean - upper) * inverse_scale), -1), None

        return jax.lax.scan(add, jnp.zeros(raw.shape[:-1], raw.dtype), jnp.arange(self.num_levels - 1, dtype=raw.dtype))[0]
