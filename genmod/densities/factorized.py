"""`Factorized`: independent entries of one law, each with raw numbers that are learned."""

import dataclasses

import jax.numpy as jnp

from genmod.core.checks import check_parts, check_shape
from genmod.core.distribution import Distribution
from genmod.core.types import Array, Params, Shape
from genmod.densities.heads import Head


@dataclasses.dataclass(frozen=True)
class Factorized(Distribution):
    """p(x) = prod_i p(x_i | raw_i), entries by a `Head`: `Factorized(NormalHead(), (8,))` is a diagonal Gaussian.

    It starts where the head does at raw = 0, N(0, 1) or uniform levels. Behind `Amortized` it is p(x | context), the mean-field
    posterior of a variational autoencoder. Parameters: {"raw": shape + (num_params,)}.
    """

    head: Head
    shape: Shape

    def __post_init__(self):
        check_parts(self, head=Head)
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        super().__post_init__()

    @property
    def event(self):
        return self.head.event(self.shape)

    @property
    def reparameterized(self):
        return self.head.reparameterized

    def _init(self, key, x, context):
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else float
        return {"raw": jnp.zeros((*self.shape, self.head.num_params), jnp.promote_types(dtype, jnp.float32))}

    def log_prob_one(self, params, x, context=None, key=None):
        return self.head.log_prob(params["raw"], x).sum()

    def sample_one(self, params, key, context=None):
        return self.head.sample(params["raw"], key)

    def mean_one(self, params: Params) -> Array:
        """The expectation of every entry, a float array of the event's shape."""
        return self.head.mean(params["raw"])
