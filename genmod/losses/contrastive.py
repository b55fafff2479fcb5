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

Contrastive ratio estimation, of h(x, c) = log p(x, c) / (p(x) p(c)) by pairs that belong together and pairs that do not, which
asks which of K candidates x_1 .. x_K belongs to c, or whether none does, at odds gamma : 1 that one does:

    q(k | x, c) = gamma exp h_k / (K + gamma sum_i exp h_i),    q(none | x, c) = K / (K + gamma sum_i exp h_i)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genmod.core.batching import vmap_events
from genmod.core.checks import check, check_positive
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key


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


def contrastive_ratio(
    log_ratio_fn: Callable[[Any, Any], Array],
    x: Any,
    context: Any,
    key: Key,
    *,
    num_contrastive: int = 4,
    odds: float = 1.0,
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Contrastive ratio estimation (Miller et al. 2022, arXiv:2210.06170, NRE-C), and the mean of h over pairs that belong
    together.

    Args:
      log_ratio_fn: h of ONE x and ONE context. x, context: rows that belong together, pytrees with a leading axis of n.
      key: of the rows of x that each context is set against. num_contrastive: how many of these, all different, K < n.
      odds: gamma. weight: of the rows: one of weight w counts, and is set against others, as w equal rows; None: all 1.

    Over all functions h the minimum, in expectation over batches of any n > K, is log p(x, context) / (p(x) p(context)), with no
    free function of the context. K = 1 and odds 1 is the classifier of Hermans et al. 2020 (arXiv:1903.04057); large odds
    approach that of Durkan et al. 2020 (arXiv:2002.03712), whose h is free up to a function of the context. The mean of h over
    pairs tends to their mutual information in nats. Raises ValueError for K of n rows or more, and for odds that are not
    positive.
    """
    n = jax.tree.leaves(x)[0].shape[0]
    check_positive(odds=odds)
    check(
        1 <= num_contrastive < n, f"num_contrastive must be in 1..{n - 1}, below the {n} rows of the batch, got {num_contrastive}"
    )
    index = jnp.arange(n)[:, None]
    others = _others(key, n, num_contrastive, weight)
    rows = jax.tree.map(lambda leaf: leaf[jnp.concatenate([index, others], 1)], x)
    h = vmap_events(lambda candidates, context: jax.vmap(lambda x: log_ratio_fn(x, context))(candidates))(rows, context)
    log_odds, log_k = jnp.log(odds), jnp.log(num_contrastive)

    def with_none(h):
        """log of K + gamma sum of exp h: the total mass of 'none belongs' and of each that may."""
        return jnp.logaddexp(log_k, log_odds + jax.nn.logsumexp(h, 1))

    belongs = log_odds + h[:, 0] - with_none(h[:, :-1])
    none = log_k - with_none(h[:, 1:])
    loss, _ = mean_and_sem(-(odds * belongs + none) / (1 + odds), weight)
    return loss, {"information_nats": mean_and_sem(h[:, 0], weight)[0]}


def _others(key: Key, n: int, num: int, weight: Array | None) -> Array:
    """For each of n rows the indices of `num` others, all different: a row of weight w is one of w equal rows, (n, num)."""
    # Rows that came twice would tell pairs that do not belong together, and move the minimum by the order of 1/n.
    if weight is None:
        shifts = 1 + jax.random.permutation(key, n - 1)[:num]
        return (jnp.arange(n)[:, None] + shifts[None]) % n

    weight = jnp.asarray(weight, jnp.result_type(float))
    besides = jnp.maximum(weight[None] - jnp.eye(n), 0)

    def draw(left, key):
        known = jnp.where(left.any(1, keepdims=True), left, weight[None])  # where no row is left, any again
        chosen = jax.random.categorical(key, jnp.log(known))
        return jnp.maximum(left - jax.nn.one_hot(chosen, n, dtype=left.dtype), 0), chosen

    return jax.lax.scan(draw, besides, jax.random.split(key, num))[1].T
