"""Normalizing flows: a base density pushed through a bijector (Papamakarios et al. 2021, arXiv:1912.02762).

x = f(z), z ~ p_base;    log p(x) = log p_base(f^-1(x)) + log |det df^-1/dx|
"""

import dataclasses

import jax
import jax.numpy as jnp

from genmod import losses
from genmod.base import Array, Bijector, Key, Params, check_context
from genmod.densities import Density
from genmod.keys import check_key
from genmod.models.base import Model, vmap_blocks


@dataclasses.dataclass(frozen=True)
class Flow(Model):
    """A flow with exact log_prob (unless the bijector's log-determinant is an estimate) and exact samples.

    Parameters: {"bijector": ...}, and "base" where the base density learns.
    """

    bijector: Bijector
    base: Density

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.base, Density):
            raise TypeError(
                f"base must be a gm.densities.Density, got {type(self.base).__name__}; "
                "gm.densities.as_density(distribution, event_shape) makes one of a distrax.Distribution"
            )

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

        context: one per draw, (num,) + context_shape. Differentiable in params (reparameterised); raises ValueError for a
        base whose draws are not, where gradients would be wrong without a word. Not compiled: call it inside your `jit`.
        """
        if not self.base.reparameterized:
            raise ValueError(
                f"draws of {type(self.base).__name__} do not carry the gradient of all its parameters; "
                "use another base for reverse KL, or sample and log_prob where no gradient is wanted"
            )
        if context is not None or self.context_shape is not None:
            context = check_context(type(self).__name__, context, self.context_shape, batch=(num,))
        return self._draw(params, check_key(key), num, context)

    def _draw(self, params, key, num, context):
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
        return self._draw(params, key, num, context)[0]
