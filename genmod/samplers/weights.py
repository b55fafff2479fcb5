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
import numpy as np

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
    """The largest weights above zero, as the last `size` entries of arrays whose length, M, depends on S alone.

    Attributes:
      indices: of the M largest weights, the largest last. inside: whether they are of the tail.
      size: of the tail, an integer. is_usable: whether it has five draws, and no weight is NaN or infinite.
      peak: the largest log-weight. threshold, excess: the largest weight below the tail, and what those of the tail (others: 0)
        have above it, in units of the largest weight.
    """

    indices: Array
    inside: Array
    size: Array
    is_usable: Array
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
    """k-hat of (S,) log-weights: the tail is the largest min(n / 5, 3 sqrt(n)) of the n weights above zero, above the next.

    The estimate of Zhang & Stephens (2009, 10.1198/tech.2009.08017), drawn towards 1/2 with the weight of ten draws (Vehtari et
    al. 2015, appendix C). nan for a tail of less than five draws and where a weight is nan or infinite, -inf for weights that are
    equal.
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
    small up to k-hat = 0.7. Weights of zero stay zero. All weights stay as they are where there is no tail to fit: fewer than 21
    above zero, equal ones, or one that is nan or infinite.

    Args:
      log_weights: (S,), up to a constant.

    Returns `SmoothedWeights`, up to the same constant.
    """
    size = _tail_size(log_weights.shape[0])
    if size < _LEAST_TAIL:
        return SmoothedWeights(log_weights, jnp.full((), jnp.nan, log_weights.dtype))
    tail = _tail(log_weights, size)
    k, scale = _fit(tail)
    ranks = jnp.cumsum(tail.inside, dtype=log_weights.dtype)  # 1 for the smallest of the tail
    log_survival = jnp.log1p(-jnp.where(tail.inside, (ranks - 0.5) / tail.size, 0.0))
    finite = jnp.where(jnp.isfinite(k) & (jnp.abs(k) > 1e-4), k, 1.0)
    quantiles = jnp.where(finite == k, jnp.expm1(-finite * log_survival) / finite, -log_survival)
    smooth = tail.peak + jnp.log(jnp.minimum(tail.threshold + scale * quantiles, 1.0))
    raw = log_weights[tail.indices]
    return SmoothedWeights(log_weights.at[tail.indices].set(jnp.where(tail.inside & jnp.isfinite(k), smooth, raw)), k)


def _tail_size(num: int) -> int:
    return math.ceil(min(0.2 * num, 3 * math.sqrt(num)))


def _tail(log_weights: Array, most: int) -> _Tail:
    """The tail, of at most `most` = `_tail_size(S)` draws."""
    order = jnp.argsort(log_weights)[-most - 1 :]  # NaN comes last
    largest = log_weights[order]
    steps = np.arange(most)
    # `_tail_size` of a number that is traced: it reaches s where both of its bounds exceed s - 1.
    size = jnp.sum(jnp.sum(log_weights > -jnp.inf) > np.maximum(5 * steps, steps**2 // 9))
    weights = jnp.exp(largest - largest[-1])
    threshold, inside = weights[most - size], jnp.asarray(steps) >= most - size
    excess = jnp.where(inside, weights[1:] - threshold, 0.0)
    usable = (size >= _LEAST_TAIL) & jnp.isfinite(largest[-1])
    return _Tail(order[1:], inside, size, usable, largest[-1], threshold, excess)


def _fit(tail: _Tail) -> tuple[Array, Array]:
    """(k-hat, the scale of the generalised Pareto law); k-hat is -inf where the excesses are zero but for rounding."""
    eps = jnp.finfo(tail.excess.dtype)
    k, scale = _generalized_pareto(tail._replace(excess=jnp.where(tail.inside, jnp.maximum(tail.excess, eps.tiny), 0.0)))
    k = (tail.size * k + 10 * 0.5) / (tail.size + 10)
    return jnp.where(tail.is_usable, jnp.where(tail.excess[-1] > 8 * eps.eps, k, -jnp.inf), jnp.nan), scale


def _generalized_pareto(tail: _Tail) -> tuple[Array, Array]:
    """(shape, scale): the posterior mean by the weighted profile likelihood over a grid of 30 + floor(sqrt(size)) points."""
    excess, num = tail.excess, tail.size
    most = excess.shape[0]
    roots = np.arange(1, math.isqrt(most) + 1)
    grid = 30 + jnp.sum(num >= roots**2)
    points = np.arange(1, 30 + len(roots) + 1)
    steps = 1 - jnp.sqrt(grid / jnp.asarray(points - 0.5, excess.dtype))
    quartile = excess[most - num + (num + 2) // 4 - 1]
    theta = 1 / excess[-1] + steps / (3 * quartile)
    shape = jnp.log1p(-theta[:, None] * excess[None]).sum(1) / num  # those outside of the tail are 0
    profile = jnp.where(points <= grid, num * (jnp.log(-theta / shape) - shape - 1), -jnp.inf)
    mean = jnp.sum(jax.nn.softmax(profile) * jnp.where(points <= grid, theta, 0.0))
    shape = jnp.log1p(-mean * excess).sum() / num
    return shape, -shape / mean
