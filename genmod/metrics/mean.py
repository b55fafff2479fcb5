"""Means with their standard errors."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def mean_and_sem(values: Any) -> tuple[Any, Any]:
    """Mean of (n,) values and its standard error, s / sqrt(n) with the n - 1 variance (nan for n = 1).

    NumPy arrays stay in NumPy (float64 sums where they are float64); JAX arrays are traceable, in their own precision.
    """
    xp = np if isinstance(values, np.ndarray) else jnp
    n = values.shape[0]
    mean = values.mean()
    sem = xp.sqrt(xp.sum((values - mean) ** 2) / (n - 1) / n) if n > 1 else xp.full((), xp.nan, values.dtype)
    return mean, sem
