"""Standard densities: independent coordinates of one scalar law, without parameters."""

import abc
import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
from jax.scipy import stats

from genmod.core.checks import check_positive
from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import REALS, Array, Key, Shape


class Coordinatewise(Distribution, abc.ABC):
    """Equal, independent coordinates. Subclasses say the scalar law, elementwise."""

    shape: Shape

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()

    @property
    def event(self):
        return Real(self.shape)

    @abc.abstractmethod
    def _log_density(self, x: Array) -> Array:
        """log p of every entry."""

    @abc.abstractmethod
    def _draw(self, key: Key) -> Array:
        """One event, in JAX's default precision."""

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        if x.shape != self.shape:
            raise ValueError(f"x must have shape {self.shape}, got {x.shape}")
        return self._log_density(x.astype(jnp.promote_types(x.dtype, jnp.float32))).sum()

    def sample_one(self, params, key, context=None):
        return self._draw(key)


@dataclasses.dataclass(frozen=True)
class Normal(Coordinatewise):
    """N(0, scale^2) in every coordinate."""

    shape: Shape
    scale: float = 1.0
    support = REALS

    def __post_init__(self):
        super().__post_init__()
        check_positive(scale=self.scale)

    def tempered(self, temperature: float) -> Self:
        """The density narrowed to `temperature` times its standard deviation; ValueError unless that is positive and finite."""
        check_positive(temperature=temperature)
        return dataclasses.replace(self, scale=self.scale * float(temperature))

    def _log_density(self, x):
        return -0.5 * (x / self.scale) ** 2 - (math.log(self.scale) + 0.5 * math.log(2 * math.pi))

    def _draw(self, key):
        return self.scale * jax.random.normal(key, self.shape)


@dataclasses.dataclass(frozen=True)
class Laplace(Coordinatewise):
    """Laplace(0, 1) in every coordinate."""

    shape: Shape
    support = REALS

    def _log_density(self, x):
        return stats.laplace.logpdf(x)

    def _draw(self, key):
        return jax.random.laplace(key, self.shape)


@dataclasses.dataclass(frozen=True)
class Uniform(Coordinatewise):
    """U(low, high) in every coordinate; log p is -inf outside, so the bijector must map the data into the box."""

    shape: Shape
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"Uniform wants low < high, got low={self.low}, high={self.high}")

    @property
    def support(self):
        return (self.low, self.high)

    def _log_density(self, x):
        inside = (x >= self.low) & (x <= self.high)
        return jnp.where(inside, -math.log(self.high - self.low), -jnp.inf).astype(x.dtype)

    def _draw(self, key):
        # The generator gives 0 once in 2^23 draws: an end, which a logit sends to infinity.
        unit = jnp.maximum(jax.random.uniform(key, self.shape), 2.0**-24)
        return self.low + (self.high - self.low) * unit


@dataclasses.dataclass(frozen=True)
class StudentT(Coordinatewise):
    """Student's t with `df` degrees of freedom in every coordinate: heavy tails, which an affine flow cannot make."""

    shape: Shape
    df: float = 5.0
    support = REALS

    def __post_init__(self):
        super().__post_init__()
        check_positive(df=self.df)

    def _log_density(self, x):
        return stats.t.logpdf(x, jnp.asarray(self.df, x.dtype))

    def _draw(self, key):
        return jax.random.t(key, self.df, self.shape)
