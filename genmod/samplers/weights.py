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


class SmoothedWeights(NamedTuple):
    """Log-weights whose tail is that of the fitted Pareto law, (S,), and the k-hat of the fit."""

    log_weights: Array
    k_hat: Array


class _Tail(NamedTuple):
    """The largest weights: `order` sorts all of them; the tail's excesses over `threshold`, in units of the largest weight."""

    order: Array
    peak: Array
    threshold: Array
    excess: Array


def log_mean(log_weights: Array) -> LogMean:
    """Of (S,) log-weights; the standard error is nan for S = 1."""
    num = log_weights.shape[0]
    log_sum = jax.nn.logsumexp(log_weights)
    share = jnp.exp(log_weights - log_sum)
    squares = jnp.sum((share - 1 / num) ** 2)
    sem = jnp.sqrt(squares * num / (num - 1)) if num > 1 else jnp.full_like(squares, jnp.nan)
    return LogMean(log_sum - math.log(num), sem, 1 / jnp.sum(share**2))


@jax.jit
def pareto_k_hat(log_weights: Array) -> Array:
    """k-hat of (S,) log-weights: the tail is the largest min(S / 5, 3 sqrt(S)) of them, above the next.

    The estimate of Zhang & Stephens (2009, 10.1198/tech.2009.08017), drawn towards 1/2 with the weight of ten draws (Vehtari et
    al. 2015, appendix C). nan for a tail of less than five draws, -inf for weights that are equal.
    """
    size = _tail_size(log_weights.shape[0])
    if size < _LEAST_TAIL:
        return jnp.full((), jnp.nan, log_weights.dtype)
    return _fit(_tail(log_weights, size))[0]


@jax.jit
def pareto_smoothed(log_weights: Array) -> SmoothedWeights:
    """Pareto-smoothed importance sampling: the weights of the tail become quantiles of the law that fits them.

    The i-th smallest of M tail weights becomes the quantile (i - 1/2) / M, and no weight exceeds the largest there was (Vehtari
    et al. 2015, arXiv:1507.02646, algorithm 1). The estimate then has a small bias and a finite variance, and its error is
    small up to k-hat = 0.7. Weights stay as they are where there is no tail to fit: fewer than 21 draws, or equal weights.

    Args:
      log_weights: (S,), up to a constant.

    Returns `SmoothedWeights`, up to the same constant.
    """
    size = _tail_size(log_weights.shape[0])
    if size < _LEAST_TAIL:
        return SmoothedWeights(log_weights, jnp.full((), jnp.nan, log_weights.dtype))
    tail = _tail(log_weights, size)
    k, scale = _fit(tail)
    share = (jnp.arange(size, dtype=log_weights.dtype) + 0.5) / size
    log_survival = jnp.log1p(-share)
    finite = jnp.where(jnp.isfinite(k) & (jnp.abs(k) > 1e-4), k, 1.0)
    quantiles = jnp.where(finite == k, jnp.expm1(-finite * log_survival) / finite, -log_survival)
    smooth = tail.peak + jnp.log(jnp.minimum(tail.threshold + scale * quantiles, 1.0))
    raw = log_weights[tail.order[-size:]]
    return SmoothedWeights(log_weights.at[tail.order[-size:]].set(jnp.where(jnp.isfinite(k), smooth, raw)), k)


def _tail_size(num: int) -> int:
    return math.ceil(min(0.2 * num, 3 * math.sqrt(num)))


def _tail(log_weights: Array, size: int) -> _Tail:
    order = jnp.argsort(log_weights)
    largest = log_weights[order[-size - 1 :]]
    weights = jnp.exp(largest - largest[-1])
    return _Tail(order, largest[-1], weights[0], weights[1:] - weights[0])


def _fit(tail: _Tail) -> tuple[Array, Array]:
    """(k-hat, the scale of the generalised Pareto law); k-hat is -inf where the excesses are zero but for rounding."""
    excess, eps = tail.excess, jnp.finfo(tail.excess.dtype)
    k, scale = _generalized_pareto(jnp.maximum(excess, eps.tiny))
    size = excess.shape[0]
    k = (size * k + 10 * 0.5) / (size + 10)
    return jnp.where(excess[-1] > 8 * eps.eps, k, -jnp.inf), scale


def _generalized_pareto(excess: Array) -> tuple[Array, Array]:
    """(shape, scale): the posterior mean by the weighted profile likelihood over a grid; (n,) excesses in rising order."""
    num = excess.shape[0]
    grid = 30 + math.isqrt(num)
    steps = 1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1, dtype=excess.dtype) - 0.5))
    theta = 1 / excess[-1] + steps / (3 * excess[int(num / 4 + 0.5) - 1])
    shape = jnp.log1p(-theta[:, None] * excess[None]).mean(1)
    profile = num * (jnp.log(-theta / shape) - shape - 1)
    mean = jnp.sum(jax.nn.softmax(profile) * theta)
    shape = jnp.log1p(-mean * excess).mean()
    return shape, -shape / mean
