"""Importance weights w = f(z) / q(z) at draws of q: the log of their mean, and whether it can be trusted.

    log Z ~ log 1/S sum_s w_s,    standard error  sd(w) / (mean(w) sqrt S)  (delta method)
    effective sample size  (sum w)^2 / sum w^2
    k-hat: the shape of the generalised Pareto law of the largest weights (Vehtari et al. 2015, arXiv:1507.02646). The weights
    have 1 / k finite moments; above 0.7 the estimate cannot be trusted for any practical S.

An effective sample size cannot see mass that q never visits; k-hat sees some of it, in the tail of the weights.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.types import Array

_LEAST_TAIL = 5


class LogMean(NamedTuple):
    """The log of the mean of weights, its standard error, and their effective sample size."""

    value: Array
    sem: Array
    effective_size: Array


def log_mean(log_weights: Array) -> LogMean:
    """Of (S,) log-weights; the standard error is nan for S = 1."""
    num = log_weights.shape[0]
    log_sum = jax.nn.logsumexp(log_weights)
    share = jnp.exp(log_weights - log_sum)
    squares = jnp.sum((share - 1 / num) ** 2)
    sem = jnp.sqrt(squares * num / (num - 1)) if num > 1 else jnp.full_like(squares, jnp.nan)
    return LogMean(log_sum - math.log(num), sem, 1 / jnp.sum(share**2))


def pareto_k_hat(log_weights: Array) -> Array:
    """k-hat of (S,) log-weights: the tail is the largest min(S / 5, 3 sqrt(S)) of them, above the next.

    The estimate of Zhang & Stephens (2009, 10.1198/tech.2009.08017), drawn towards 1/2 with the weight of ten draws (Vehtari et
    al. 2015, appendix C). nan for a tail of less than five draws, -inf for weights that are equal.
    """
    num = log_weights.shape[0]
    size = math.ceil(min(0.2 * num, 3 * math.sqrt(num)))
    if size < _LEAST_TAIL:
        return jnp.full((), jnp.nan, log_weights.dtype)
    largest = jnp.sort(log_weights)[-size - 1 :]
    largest = largest - largest[-1]
    excess = jnp.exp(largest[1:]) - jnp.exp(largest[0])
    k = _generalized_pareto_shape(jnp.maximum(excess, jnp.finfo(excess.dtype).tiny))
    k = (size * k + 10 * 0.5) / (size + 10)
    return jnp.where(excess[-1] > 8 * jnp.finfo(excess.dtype).eps, k, -jnp.inf)


def _generalized_pareto_shape(excess: Array) -> Array:
    """The posterior mean of the shape, by the weighted profile likelihood over a grid; (n,) excesses in rising order."""
    num = excess.shape[0]
    grid = 30 + math.isqrt(num)
    steps = 1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1, dtype=excess.dtype) - 0.5))
    theta = 1 / excess[-1] + steps / (3 * excess[int(num / 4 + 0.5) - 1])
    shape = jnp.log1p(-theta[:, None] * excess[None]).mean(1)
    profile = num * (jnp.log(-theta / shape) - shape - 1)
    mean = jnp.sum(jax.nn.softmax(profile) * theta)
    return jnp.log1p(-mean * excess).mean()
