"""Means with their standard errors."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def mean_and_sem(values: Any, weight: Any = None) -> tuple[Any, Any]:
    """Mean of (n,) values and its standard error, s / sqrt(n) with the n - 1 variance (nan for n = 1).

    With weights w, (n,): sum w v / sum w and sqrt(sum w^2 (v - mean)^2 n / (n - 1)) / sum w; equal weights change nothing.
    NumPy arrays stay in NumPy (float64 sums where they are float64); JAX arrays are traceable, in their own precision.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    n = values.shape[0]
    share = None if weight is None else weight.astype(values.dtype) / xp.maximum(weight.sum(), xp.finfo(values.dtype).tiny)
    mean = values.mean() if share is None else xp.sum(share * values)
    if isinstance(n, int) and n < 2:
        return mean, xp.full((), xp.nan, values.dtype)
    squares = (values - mean) ** 2
    variance = xp.sum(squares) / n / n if share is None else xp.sum(share**2 * squares)
    return mean, xp.sqrt(variance * n / (n - 1))
