"""The VampPrior: a mixture of variational posteriors (Tomczak & Welling 2017, arXiv:1705.07120, eq. 9)."""

import dataclasses

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_parts
from genmod.core.distribution import Distribution
from genmod.core.numerics import real


@dataclasses.dataclass(frozen=True)
class VampPrior(Distribution):
    """p(z) = 1/K sum_k q(z | u_k), with learned pseudo-inputs u_k that start at the first data.

    Attributes:
      posterior: q(z | features), that of the model. num_inputs: K.

    Its parameters in a model are {"inputs": (K,) + the shape of a datum}; the model makes features of them with its encoder.
    Raises ValueError for more inputs than data at `init`.
    """

    posterior: Distribution
    num_inputs: int = 50
    reparameterized = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, posterior=Distribution)
        check_count(num_inputs=self.num_inputs)

    @property
    def event(self):
        return self.posterior.event

    def _init(self, key, x, context):
        if x.shape[0] < self.num_inputs:
            raise ValueError(f"num_inputs={self.num_inputs} pseudo-inputs want as many data to start at, got {x.shape[0]}")
        return {"inputs": real(x[: self.num_inputs])}

    def log_prob_one(self, params, x, context=None, key=None):
        log_q = jax.vmap(lambda features: self.posterior.log_prob_one(params["posterior"], x, features))(params["features"])
        return jax.nn.logsumexp(log_q) - jnp.log(log_q.size)

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        which = jax.random.randint(keys[0], (), 0, params["features"].shape[0])
        return self.posterior.sample_one(params["posterior"], keys[1], params["features"][which])
