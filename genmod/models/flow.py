"""Normalizing flows: a base density pushed through a bijector (Papamakarios et al. 2021, arXiv:1912.02762).

x = f(z), z ~ p_base;    log p(x) = log p_base(f^-1(x)) + log |det df^-1/dx|
"""

import dataclasses

import jax
import jax.numpy as jnp

from genmod import losses
from genmod.base import Array, Bijector, Key, Params
from genmod.densities import Density
from genmod.models.base import Model, vmap_blocks


@dataclasses.dataclass(frozen=True)
class Flow(Model):
    """A flow with exact log_prob (unless the bijector's log-determinant is an estimate) and exact samples.

    Parameters: {"bijector": ...}, and "base" where the base density learns.
    """

    bijector: Bijector
    base: Density

    @property
    def event_shape(self):
        return self.base.event_shape

    @property
    def context_shape(self):
        return self.bijector.context_shape

    @property
    def likelihood(self):
        return self.bijector.likelihood

    def sample_and_log_prob(self, params: Params, key: Key, num: int, context: Array | None = None) -> tuple[Array, Array]:
        """`num` draws and their log-densities in ONE pass of the forward direction: (num,) + event_shape and (num,).

        context: one per draw, (num,) + context_shape. Differentiable in params (reparameterised).
        """
        leaves = jax.tree.leaves(params)
        base = params.get("base", {})
        z = self.base.sample(base, key, (num,), jnp.result_type(*leaves) if leaves else None)

        def forward(z, context):
            x, log_det = self.bijector.forward_and_log_det(params["bijector"], z, context)
            return x, self.base.log_prob(base, z) - log_det

        return vmap_blocks(forward, z, context)

    def _init(self, key, x, context):
        keys = jax.random.split(key)
        params = {"bijector": self.bijector.init(keys[0], x, context)}
        base = self.base.init(keys[1], x.dtype)
        return params | ({"base": base} if base else {})

    def _loss(self, params, key, x, context):
        def log_prob(x):
            axes = (None, 0, None if context is None else 0, None)
            return jax.vmap(self._log_prob, axes)(params, x, context, None)

        return losses.negative_log_likelihood(log_prob, x, name=self.likelihood.nll_key)

    def _log_prob(self, params, x, context, key):
        z, log_det = self.bijector.inverse_and_log_det(params["bijector"], x, context)
        return self.base.log_prob(params.get("base", {}), z) + log_det

    def _sample(self, params, key, num, context):
        return self.sample_and_log_prob(params, key, num, context)[0]
