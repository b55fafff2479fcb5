"""Densities of vectors with parameters."""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count
from genmod.core.distribution import Distribution
from genmod.core.event import Real
from genmod.core.types import Array, Params, Shape

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class _OfVectors(Distribution, abc.ABC):
    """A law of vectors, (D,)."""

    shape: Shape

    def __post_init__(self):
        object.__setattr__(self, "shape", self.event.shape)
        super().__post_init__()
        if len(self.shape) != 1:
            raise ValueError(f"{type(self).__name__} is a law of vectors, got shape {self.shape}")

    @property
    def event(self):
        return Real(self.shape)


@dataclasses.dataclass(frozen=True)
class FullNormal(_OfVectors):
    """A Gaussian with learned mean and Cholesky factor, N(mean, L L^T); starts as N(0, I)."""

    shape: Shape

    def _init(self, key, x, context):
        (dim,), dtype = self.shape, x.dtype
        return {"mean": jnp.zeros(dim, dtype), "lower": jnp.zeros((dim, dim), dtype), "log_scale": jnp.zeros(dim, dtype)}

    def log_prob_one(self, params, x, context=None, key=None):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        z = jax.scipy.linalg.solve_triangular(self.factor(params), x - params["mean"], lower=True)
        return -0.5 * jnp.sum(z**2) - params["log_scale"].sum() - x.size * _HALF_LOG_2PI

    def sample_one(self, params, key, context=None):
        z = jax.random.normal(key, self.shape, params["mean"].dtype)
        return params["mean"] + jnp.matmul(self.factor(params), z, precision="highest")

    def factor(self, params: Params) -> Array:
        """The Cholesky factor L, (D, D)."""
        return jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["log_scale"]))


@dataclasses.dataclass(frozen=True)
class GaussianMixture(_OfVectors):
    """A learned mixture of diagonal Gaussians, for a prior of latents; means start spread like N(0, 1).

    A mixture that is itself the model of data is `models.mixture_of_gaussians`: it starts at the data, may have full covariances,
    and is fitted by `training.fit_em` too.
    """

    shape: Shape
    num_components: int = 8
    reparameterized = False

    def __post_init__(self):
        super().__post_init__()
        check_count(num_components=self.num_components)

    def _init(self, key, x, context):
        shape = (self.num_components, *self.shape)
        mean = jax.random.normal(key, shape, x.dtype)
        return {"logits": jnp.zeros(self.num_components, x.dtype), "mean": mean, "log_scale": jnp.zeros(shape, x.dtype)}

    def log_prob_one(self, params, x, context=None, key=None):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        z = (x[None] - params["mean"]) * jnp.exp(-params["log_scale"])
        components = jnp.sum(-0.5 * z**2 - params["log_scale"], 1) - x.size * _HALF_LOG_2PI
        return jax.nn.logsumexp(jax.nn.log_softmax(params["logits"]) + components)

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        which = jax.random.categorical(keys[0], params["logits"])
        noise = jax.random.normal(keys[1], self.shape, params["mean"].dtype)
        return params["mean"][which] + jnp.exp(params["log_scale"][which]) * noise
