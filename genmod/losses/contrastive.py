"""Losses of models p = f / Z of unknown Z, by samples of the model (contrast) or of noise (noise-contrastive estimation).

Contrast, whose gradient is that of -log p(data):

    loss = E_samples[log f] - E_data[log f],        grad E_data[-log p] = E_p[grad log f] - E_data[grad log f]

No gradient passes through the rows. With samples that are draws of p the gradient is without bias; with the ends of chains that
began at the data it is that of contrastive divergence (Hinton 2002, 10.1162/089976602760128018). The value of the loss is no
likelihood, and no measure of the fit.

Noise-contrastive estimation, the loss of a classifier of data and noise q, nu draws of noise for each datum, in nats:

    loss = E_data[softplus(-g)] + nu E_noise[softplus(g)],        g = log p - log q - log nu

log p = log f - log Z with log Z a parameter like any other (Gutmann & Hyvarinen 2012, JMLR 13:307-361, sec. 2). Over all
functions log p the minimum is the log-density of the data, where q > 0 wherever there are data. At p = q the loss is
log(1 + nu) + nu log(1 + 1 / nu), of nu = 1 that is 2 log 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genmod.core.batching import vmap_events
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array


def contrast(
    log_prob_fn: Callable[[Any], Array],
    data: Any,
    samples: Any,
    *,
    weight: Array | None = None,
    sample_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """(E_samples[log f] - E_data[log f], the mean energy of the data), means over rows.

    Args:
      log_prob_fn: of ONE row, log f in nats. data, samples: rows, pytrees with a leading axis; not as many of both.
      weight, sample_weight: of the rows of data and of samples; None: the same for all.
    """
    data, samples = jax.lax.stop_gradient((data, samples))
    of_data, _ = mean_and_sem(vmap_events(log_prob_fn)(data), weight)
    of_samples, _ = mean_and_sem(vmap_events(log_prob_fn)(samples), sample_weight)
    return of_samples - of_data, {"energy_nats": -of_data}


def noise_contrastive(
    log_prob_fn: Callable[[Any], Array],
    noise_log_prob_fn: Callable[[Any], Array],
    x: Any,
    noise: Any,
    *,
    weight: Array | None = None,
    noise_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """(E_data[softplus(-g)] + nu E_noise[softplus(g)], the means of log p - log q on data and on noise), means over rows.

    Args:
      log_prob_fn: of ONE row, log p = log f - log Z in nats. noise_log_prob_fn: of ONE row, log q of the noise, normalised.
      x, noise: rows of data and of noise, pytrees with a leading axis; nu is the ratio of their numbers.
      weight, noise_weight: of the rows of x and of noise; None: the same for all.
    """
    x, noise = jax.lax.stop_gradient((x, noise))
    nu = jax.tree.leaves(noise)[0].shape[0] / jax.tree.leaves(x)[0].shape[0]

    def log_ratio(row):
        return log_prob_fn(row) - jax.lax.stop_gradient(noise_log_prob_fn(row))

    on_data, on_noise = vmap_events(log_ratio)(x), vmap_events(log_ratio)(noise)
    of_data, _ = mean_and_sem(jax.nn.softplus(jnp.log(nu) - on_data), weight)
    of_noise, _ = mean_and_sem(jax.nn.softplus(on_noise - jnp.log(nu)), noise_weight)
    metrics = {"on_data": mean_and_sem(on_data, weight)[0], "on_noise": mean_and_sem(on_noise, noise_weight)[0]}
    return of_data + nu * of_noise, metrics
