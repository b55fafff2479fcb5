"""Means and ratios of sums, with their standard errors; the acceptance rate that importance weights imply."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.types import Array


def mean_and_sem(values: Any, weight: Any = None) -> tuple[Any, Any]:
    """Mean of (n,) values and its standard error, s / sqrt(n) with the n - 1 variance (nan for n = 1).

    With weights w, (n,): sum w v / sum w and sqrt(sum w^2 (v - mean)^2 n / (n - 1)) / sum w; equal weights change nothing.
    NumPy arrays stay in NumPy (float64 sums where they are float64); JAX arrays are traceable, in their own precision. Integers
    count as real numbers.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    values = values if xp.issubdtype(values.dtype, xp.floating) else values.astype(float)
    n = values.shape[0]
    weight = None if weight is None else weight.astype(values.dtype)  # before the sum, which integers and float16 overflow
    share = None if weight is None else weight / xp.maximum(weight.sum(), xp.finfo(values.dtype).tiny)
    mean = values.mean() if share is None else xp.sum(share * values)
    if isinstance(n, int) and n < 2:
        return mean, xp.full((), xp.nan, values.dtype)
    squares = (values - mean) ** 2
    variance = xp.sum(squares) / n / n if share is None else xp.sum(share**2 * squares)
    return mean, xp.sqrt(variance * n / (n - 1))


class Measured(NamedTuple):
    """What a metric finds: its value and the standard error of it."""

    value: float
    sem: float

    def __str__(self):
        return f"{self.value:.4f} +- {self.sem:.4f}"


def ratio_and_sem(values: Any, units: Any, weight: Any = None) -> tuple[Any, Any]:
    """r = sum v / sum u of (n,) values v of u units each, such as nats and tokens, and its standard error (the delta method).

    The error is that of the mean of v - r u, over the mean of u; where all have as many units it is that of a mean. Weights as in
    `mean_and_sem`.
    """
    units = units.astype(values.dtype)
    mean, _ = mean_and_sem(values, weight)
    mean_units, _ = mean_and_sem(units, weight)
    ratio = mean / mean_units
    return ratio, mean_and_sem(values - ratio * units, weight)[1] / mean_units


def independence_acceptance(log_weights: Array) -> Array:
    """The share of proposals that independence Metropolis-Hastings accepts in the long run, by weights w = p / q of draws of q.

        E_{x ~ p, x' ~ q} min(1, w(x') / w(x)) = E_{x, x' ~ q} min(w(x), w(x')) / E_q w

    The mean of the smaller one is over all pairs of different draws. Of the sorted weights w_1 <= ... <= w_n the i-th is the
    smaller one in n - i pairs, so that the estimate is 2 sum_i w_i (n - i) / ((n - 1) sum_i w_i), which lies in [0, 1]. NaN for
    one draw, and where all weights are zero.

    Args:
      log_weights: (n,), up to a constant.
    """
    num = log_weights.shape[0]
    if num < 2:
        return jnp.full((), jnp.nan, log_weights.dtype)
    share = jnp.sort(jax.nn.softmax(log_weights))
    return 2.0 * jnp.vdot(share, jnp.arange(num - 1, -1, -1, dtype=share.dtype) / (num - 1), precision=jax.lax.Precision.HIGHEST)
