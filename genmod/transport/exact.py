"""The exact plan between n source draws and n data: a permutation (Birkhoff), found on the host.

min_s sum_i cost[i, s(i)]
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from genmod.core.types import Array


def assignment(cost: ArrayLike) -> Array:
    """The permutation s that minimises sum_i cost[i, s(i)]: (n, n) -> (n,) int32, the column of each row. No gradient.

    Solved in float64 on the host, within jit, scan and vmap too (there one after another). +inf forbids a pair. Raises
    ValueError for a cost that is not square, holds nan or -inf, or forbids every permutation; of these, a traced function can
    see only the shape, and answers the identity to the others: the batch goes on unpaired, and the nan shows where it arose.
    """
    cost = jax.lax.stop_gradient(jnp.asarray(cost))
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be square, (n, n), got shape {cost.shape}; n source draws are assigned to n data")
    if not isinstance(cost, Tracer):
        return jnp.asarray(host_assignment(np.array(cost, np.float64)), jnp.int32)
    columns = jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32)
    return jax.pure_callback(_assignment_or_identity, columns, cost, vmap_method="sequential")


def _assignment_or_identity(cost: Array) -> np.ndarray:
    try:
        return host_assignment(np.array(cost, np.float64)).astype(np.int32)
    except ValueError:
        return np.arange(cost.shape[0], dtype=np.int32)


def host_assignment(cost: np.ndarray) -> np.ndarray:
    """`assignment` of a NumPy array, float64 (n, n), which it OVERWRITES to need no second one: (n,) columns.

    Raises ValueError for nan, -inf, or where +inf forbids every permutation.
    """
    # Constants of a row or a column change no minimiser. With potentials near the dual optimum taken off, the shortest
    # augmenting paths of SciPy are short: at n = 5,000 seconds instead of a minute or two.
    if cost.shape[0] > 200 and math.isfinite(cost.sum()):
        _reduce(cost)
    try:
        return linear_sum_assignment(cost)[1]
    except ValueError as error:
        raise ValueError(f"cost has no assignment: {error}; entries must be numbers, or +inf for a forbidden pair") from None


def _reduce(cost: np.ndarray) -> None:
    """Takes potentials off in place, such that the cost is >= 0, near 0 along its assignment: Sinkhorn with falling epsilon."""
    cost -= cost.mean(axis=1, keepdims=True)
    cost -= cost.mean(axis=0)
    scale = math.sqrt(np.vdot(cost, cost) / cost.size)
    potential = np.zeros(cost.shape[0], np.float32)
    kernel = np.empty(cost.shape, np.float32)
    for epsilon in (scale * fraction for fraction in (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003) if scale > 0):
        np.multiply(cost, -1.0 / epsilon, out=kernel, casting="unsafe")
        kernel += potential / np.float32(epsilon)
        kernel -= kernel.max(axis=1, keepdims=True)
        np.exp(np.maximum(kernel, -60.0, out=kernel), out=kernel)  # no denormals, which are slow
        kernel /= kernel.sum(axis=1, keepdims=True)
        a = b = np.ones(cost.shape[0], np.float32)
        for _ in range(20):
            b = 1.0 / np.maximum(a @ kernel, 1e-30)
            a = 1.0 / np.maximum(kernel @ b, 1e-30)
        potential += np.float32(epsilon) * np.log(b)
    cost -= potential
    cost -= cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0)
