"""Layers of units: the laws of which machines of two layers are made. Given an input a, one number for each feature,

    p(x | a) = exp(log_base(x) + <features(x), a> - log_partition(a))

an exponential family whose parameters hold a "bias" (n,), to which inputs add. E[features | a] is the gradient of log_partition.

units         x                  features      log_base             log_partition
Bernoulli     bits               x             b.x                  sum softplus(b + a)
softmax       levels below K     one-hot       b.one-hot            sum logsumexp_k(b + a)
Gaussian      real numbers       x / s^2       -|x - b|^2 / 2s^2    sum ((b + a)^2 - b^2) / 2s^2 + log s + log(2 pi) / 2

`standard` parameters of Gaussian units are those of (x - m) / s: whatever the unit and the origin of the data, they are of the
order of one. Discrete units have only one form.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_count, check_positive, check_shape
from genmod.core.description import Description
from genmod.core.event import Event, Levels, Real
from genmod.core.types import Array, Key, Params, Shape


class UnitLayer(Description, abc.ABC):
    """Units that are independent of each other given their input. Methods take ONE event x, of `shape`."""

    shape: Shape

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        super().__post_init__()

    @property
    @abc.abstractmethod
    def event(self) -> Event:
        """What x is."""

    @property
    def num_features(self) -> int:
        """The length of features and of inputs."""
        return math.prod(self.shape)

    def neutral(self) -> Params:
        """The parameters of units without a bias."""
        return {"bias": jnp.zeros(self.num_features)}

    @abc.abstractmethod
    def fitted(self, x: Array) -> Params:
        """The parameters of units that, without input, have the marginals of rows x, (n,) + shape."""

    @abc.abstractmethod
    def features(self, params: Params, x: Array) -> Array:
        """What another layer sees of x, (num_features,)."""

    @abc.abstractmethod
    def log_base(self, params: Params, x: Array) -> Array:
        """log of the mass or density of x without input, up to a constant."""

    @abc.abstractmethod
    def log_partition(self, params: Params, inputs: Array) -> Array:
        """log of the sum over all x of exp(log_base(x) + <features(x), inputs>)."""

    @abc.abstractmethod
    def mean(self, params: Params, inputs: Array) -> Array:
        """E[x | inputs], of `shape`; of levels the probability of each, shape + (K,)."""

    @abc.abstractmethod
    def sample(self, params: Params, key: Key, inputs: Array) -> Array:
        """A draw of p(x | inputs)."""

    # --- optional hooks of units that have a scale ------------------------------------------------------------------------------

    def log_scale(self, params: Params) -> Array:
        """log of the unit s in which each input is measured, (num_features,): features are in units of 1 / s."""
        return jnp.zeros(self.num_features, params["bias"].dtype)

    def standard(self, params: Params, mean: Array) -> Params:
        """The parameters of the units less `mean`, (num_features,), in their own scale."""
        return params

    def unstandard(self, params: Params, mean: Array) -> Params:
        """The inverse of `standard`."""
        return params


@dataclasses.dataclass(frozen=True)
class BernoulliUnits(UnitLayer):
    """Bits. Parameters {"bias": (n,)}."""

    shape: Shape

    @property
    def event(self):
        return Levels(self.shape, 2)

    def fitted(self, x):
        ones = x.reshape(x.shape[0], -1).astype(float).sum(0)
        return {"bias": jnp.log(ones + 0.5) - jnp.log(x.shape[0] - ones + 0.5)}  # finite where all rows agree

    def features(self, params, x):
        return x.reshape(-1).astype(params["bias"].dtype)

    def log_base(self, params, x):
        return jnp.sum(self.features(params, x) * params["bias"])

    def log_partition(self, params, inputs):
        return jax.nn.softplus(params["bias"] + inputs).sum()

    def mean(self, params, inputs):
        return jax.nn.sigmoid(params["bias"] + inputs).reshape(self.shape)

    def sample(self, params, key, inputs):
        mean = self.mean(params, inputs)
        return (jax.random.uniform(key, mean.shape, mean.dtype) < mean).astype(self.event.dtype)


@dataclasses.dataclass(frozen=True)
class SoftmaxUnits(UnitLayer):
    """Levels 0 .. num_levels - 1. Parameters {"bias": (n K,)}, the levels of a unit side by side."""

    shape: Shape
    num_levels: int

    def __post_init__(self):
        check_count(num_levels=self.num_levels)
        check(self.num_levels > 1, f"num_levels must be at least 2, got {self.num_levels}")
        super().__post_init__()

    @property
    def event(self):
        return Levels(self.shape, self.num_levels)

    @property
    def num_features(self):
        return math.prod(self.shape) * self.num_levels

    def fitted(self, x):
        counts = jax.nn.one_hot(x.reshape(x.shape[0], -1), self.num_levels, dtype=float).sum(0) + 0.5
        return {"bias": jnp.log(counts / counts.sum(-1, keepdims=True)).reshape(-1)}

    def features(self, params, x):
        return jax.nn.one_hot(x.reshape(-1), self.num_levels, dtype=params["bias"].dtype).reshape(-1)

    def log_base(self, params, x):
        return jnp.sum(self.features(params, x) * params["bias"])

    def log_partition(self, params, inputs):
        return jax.nn.logsumexp(self._logits(params, inputs), -1).sum()

    def mean(self, params, inputs):
        return jax.nn.softmax(self._logits(params, inputs))

    def sample(self, params, key, inputs):
        return jax.random.categorical(key, self._logits(params, inputs)).astype(self.event.dtype)

    def _logits(self, params, inputs):
        return (params["bias"] + inputs).reshape(*self.shape, self.num_levels)


@dataclasses.dataclass(frozen=True)
class GaussianUnits(UnitLayer):
    """Real numbers with variances of their own, which are learned: x | a ~ N(b + a, s^2).

    Attributes:
      shape: of an event. least_scale: the s that `fitted` gives a column that never varies, as a share of its absolute value, or
        of 1 where it is zero.

    Parameters {"bias": b (n,), "log_scale": log s (n,)}. s is kept above the rounding of the mean: below it there is nothing
    to learn, and a constant column would take it to zero.
    """

    shape: Shape
    least_scale: float = 1e-3

    def __post_init__(self):
        check_positive(least_scale=self.least_scale)
        super().__post_init__()

    @property
    def event(self):
        return Real(self.shape)

    def neutral(self):
        return {"bias": jnp.zeros(self.num_features), "log_scale": jnp.zeros(self.num_features)}

    def fitted(self, x):
        rows = x.reshape(x.shape[0], -1)
        mean, size = rows.mean(0), jnp.abs(rows[0])
        constant = (rows == rows[:1]).all(0)
        varies = jnp.sqrt(jnp.where(constant, 1.0, rows.var(0)))  # the root of zero has no gradient
        spread = jnp.where(constant, self.least_scale * jnp.where(size > 0, size, 1.0), varies)
        return {"bias": mean, "log_scale": jnp.maximum(jnp.log(spread), _least_log_scale(mean))}

    def features(self, params, x):
        return x.reshape(-1) * jnp.exp(-2 * params["log_scale"])

    def log_base(self, params, x):
        return -0.5 * jnp.sum(((x.reshape(-1) - params["bias"]) * jnp.exp(-params["log_scale"])) ** 2)

    def log_partition(self, params, inputs):
        raised = 0.5 * inputs * (2 * params["bias"] + inputs) * jnp.exp(-2 * params["log_scale"])
        return jnp.sum(raised + params["log_scale"] + 0.5 * math.log(2 * math.pi))

    def mean(self, params, inputs):
        return (params["bias"] + inputs).reshape(self.shape)

    def sample(self, params, key, inputs):
        mean = self.mean(params, inputs)
        return mean + jnp.exp(params["log_scale"]).reshape(self.shape) * jax.random.normal(key, self.shape, mean.dtype)

    def log_scale(self, params):
        return params["log_scale"]

    def standard(self, params, mean):
        return params | {"bias": (params["bias"] - mean) * jnp.exp(-params["log_scale"])}

    def unstandard(self, params, mean):
        least = _least_log_scale(mean)
        # At the bound the gradient is that of `log_scale`, which may rise again.
        log_scale = jnp.where(params["log_scale"] < least, least, params["log_scale"])
        return {"bias": mean + jnp.exp(log_scale) * params["bias"], "log_scale": log_scale}


def _least_log_scale(mean: Array) -> Array:
    """log s of a few times the rounding of the mean; of a mean of zero, where 1 / s^2 is still finite."""
    limits = jnp.finfo(mean.dtype)
    return jnp.log(jnp.maximum(4 * limits.eps * jnp.abs(mean), float(limits.tiny) ** 0.5))
