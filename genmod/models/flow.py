"""Normalizing flows: a base density pushed through a bijector (Papamakarios et al. 2021, arXiv:1912.02762).

x = f(z), z ~ p_base;    log p(x) = log p_base(f^-1(x)) + log |det df^-1/dx|
"""

import dataclasses

import jax
import jax.numpy as jnp

from genmod import losses
from genmod.base import FAILED, Bijector, Likelihood, vmap_events
from genmod.densities import Density
from genmod.models.pushforward import Pushforward


@dataclasses.dataclass(frozen=True)
class Flow(Pushforward):
    """A flow trained by maximum likelihood, with exact log_prob (unless the bijector's is an estimate) and exact samples.

    `penalties` weigh entries of the bijector's info in the loss: (("kinetic_energy", 0.01),) for a `CNF` that tracks it.
    Parameters: {"bijector": ...}, and "base" where the base density learns.
    """

    bijector: Bijector
    base: Density
    penalties: tuple[tuple[str, float], ...] = ()

    def _loss(self, params, key, x, context):
        keys = None if self.bijector.likelihood == Likelihood.EXACT else jax.random.split(key, x.shape[0])
        axes = (None, 0, None if context is None else 0, None if keys is None else 0)
        log_prob, info = vmap_events(self._log_prob_and_info, axes)(params, x, context, keys)
        loss, metrics = losses.negative_log_likelihood(lambda _: log_prob, x, name=self.likelihood.nll_key)
        metrics |= {name: jnp.mean(value) for name, value in info.items() if name != "log_det_variance"}
        for name, weight in self.penalties:
            if name not in metrics:
                raise ValueError(f"penalties name {name!r}, which the bijector does not report; it has {sorted(info)}")
            loss = loss + weight * metrics[name]
        # A density read off a solve that did not arrive is no density: the loss is not finite, and `fit` stops and says why.
        return (loss if FAILED not in info else jnp.where(metrics[FAILED] > 0, jnp.nan, loss)), metrics
