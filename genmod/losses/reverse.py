"""Reverse KL: fitting a sampler to an unnormalised density.

    KL(q || p / Z) = E_q[log q(x) - log p(x)] + log Z

It is mode seeking where the forward KL of maximum likelihood covers (Minka 2005, MSR-TR-2005-173).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genmod.core.statistics import independence_acceptance, mean_and_sem
from genmod.core.types import Array, Key, Params


def reverse_kl(
    sample_and_log_prob_fn: Callable[[Params, Key, int], tuple[Array, Array]],
    target_log_prob_fn: Callable[[Array], Array],
    params: Params,
    key: Key,
    num_samples: int,
    *,
    stick_the_landing: bool = False,
    log_prob_fn: Callable[[Params, Array], Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """E_q[log q - log p] over `num_samples` reparameterised draws of q, which is KL(q || p / Z) - log Z.

    Args:
      sample_and_log_prob_fn: (params, key, n) -> x (n,) + event shape and log q(x) (n,), differentiable in params.
      target_log_prob_fn: x (n,) + event shape -> log p(x) (n,), up to a constant.
      params: of q. key: of its draws. num_samples: how many of them.
      stick_the_landing: drop the score term of the gradient, whose mean is zero: the gradient then vanishes sample by
        sample where q = p (Roeder et al. 2017, arXiv:1703.09194, eq. 5). Needs log_prob_fn.
      log_prob_fn: (params, x) -> log q(x) (n,).

    Returns the loss and metrics: `reverse_kl_nats` and its `_sem`; of the importance weights w = p / q, which cannot see mass
    that q never visits, `ess_fraction`, their effective share, and `acceptance_rate`, that of independence Metropolis-Hastings
    with draws of q as proposals, E[min(w, w')] / E[w] over all pairs of different draws (NaN for one draw).
    Raises ValueError for stick_the_landing without log_prob_fn.
    """
    if stick_the_landing and log_prob_fn is None:
        raise ValueError("stick_the_landing wants log_prob_fn, (params, x) -> log q(x)")
    x, log_q = sample_and_log_prob_fn(params, key, num_samples)
    if stick_the_landing and log_prob_fn is not None:
        log_q = log_prob_fn(jax.lax.stop_gradient(params), x)
    log_ratio = log_q - target_log_prob_fn(x)
    mean, sem = mean_and_sem(log_ratio)
    log_weights = jax.lax.stop_gradient(-log_ratio)
    weights = jax.nn.softmax(log_weights)
    metrics = {
        "reverse_kl_nats": mean,
        "reverse_kl_nats_sem": sem,
        "ess_fraction": 1.0 / (num_samples * jnp.sum(weights**2)),
        "acceptance_rate": independence_acceptance(log_weights),
    }
    return mean, metrics
