"""The birth-death process of an M/M/1 queue of finite capacity: its transition matrix, and its events.

A queue of n customers becomes one of n + 1 at the rate theta_1 where n < capacity, and one of n - 1 at the rate theta_2 where
n > 0. Over a unit of time P = exp(Q), with the rates of these jumps off the diagonal of Q and rows that sum to zero.
"""

import jax
import jax.numpy as jnp

from genmod.core.types import Array, Key

# Terms of the series of the transition matrix of 2^-5 of the time, which is then squared.
_TERMS, _SQUARINGS = 8, 5
# The highest rate for which the series is exact to rounding in float32, and to about 1e-7 in float64.
HIGHEST_RATE = 8.0


def usable_rates(theta: Array) -> Array:
    """The rates, NaN where they are not in 0 .. 8: the events of a draw might have no end."""
    return jnp.where((theta >= 0) & (theta <= HIGHEST_RATE), theta, jnp.nan)


def transition_matrix(theta: Array, capacity: int) -> Array:
    """P[m, n], the probability of n customers a unit of time after m, (capacity + 1, capacity + 1), NaN as `usable_rates`."""
    theta = usable_rates(theta)
    arrivals, services = (jnp.full(capacity, rate) for rate in theta)
    jumps = jnp.diag(arrivals, 1) + jnp.diag(services, -1)
    # exp(Q) = e^-u exp(Q + u): all terms of the series are positive, so that small entries keep their digits.
    total = theta[0] + theta[1]
    positive = (jumps + jnp.diag(total - jumps.sum(1))) / 2**_SQUARINGS
    term = series = jnp.eye(capacity + 1, dtype=positive.dtype)
    for i in range(1, _TERMS + 1):
        term = jnp.matmul(term, positive, precision="highest") / i
        series = series + term
    series = series * jnp.exp(-total / 2**_SQUARINGS)
    for _ in range(_SQUARINGS):
        series = jnp.matmul(series, series, precision="highest")
    return series


def length_after(key: Key, theta: Array, length: Array, capacity: int) -> Array:
    """The number of customers a unit of time after there were `length`; the same number where the rates are not usable."""
    theta = usable_rates(theta)

    def jump(carry):
        key, left, length = carry
        key, wait_key, which_key = jax.random.split(key, 3)
        up, down = jnp.where(length < capacity, theta[0], 0.0), jnp.where(length > 0, theta[1], 0.0)
        left = left - jax.random.exponential(wait_key, (), theta.dtype) / (up + down)
        rises = jax.random.uniform(which_key) * (up + down) < up
        return key, left, jnp.where(left > 0, length + jnp.where(rises, 1, -1), length)

    return jax.lax.while_loop(lambda carry: carry[1] > 0, jump, (key, jnp.ones((), theta.dtype), length))[2]
