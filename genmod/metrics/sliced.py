"""Sliced Wasserstein distances: of projections on directions t of the unit sphere, each of which is exact by sorting.

SW_p(x, y)^p      = mean over t of W_p(t.x, t.y)^p        Bonneel et al. 2015
max-SW_p(x, y)^p  = max over t of W_p(t.x, t.y)^p         Deshpande et al. 2019, arXiv:1904.05877
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from genmod.core.checks import check_count
from genmod.core.statistics import Measured, mean_and_sem
from genmod.core.types import Array
from genmod.metrics.samples import checked_samples

# Directions at a time.
_BLOCK = 32
# The angle by which a step of the search turns a direction at first, in radians, at most.
_TURN = 0.2


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, *, order: float = 2, num_directions: int = 500, seed: int = 0) -> Measured:
    """SW_p of two samples, (n,) + event shape and (m,) + event shape, and its standard error over the directions.

    p = `order` >= 1. Sorting replaces the assignment: n log n per direction, for any n and m, exact (where sizes differ, by the
    two quantile functions). In D dimensions it is smaller than W_p: a shift by a counts as |a| / sqrt(D) for p = 2. Two samples
    of one law have SW_p > 0, of the order of n^(-1/2). Float64 NumPy; the error does not hold that of the samples.

    Raises ValueError for empty or non-finite samples, unequal events, order < 1.
    """
    x, y = checked_samples(x=x, y=y)
    check_count(num_directions=num_directions)
    _check_order(order)
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    quantiles = _quantiles(len(x), len(y))
    blocks = (directions[:, start : start + _BLOCK].T for start in range(0, num_directions, _BLOCK))
    powers = [_powers(np, some @ x.T, some @ y.T, quantiles, order) for some in blocks]
    mean, sem = map(float, mean_and_sem(np.concatenate(powers)))
    return _root(mean, sem, order)


def max_sliced_wasserstein(
    x: ArrayLike, y: ArrayLike, *, order: float = 2, num_starts: int = 16, num_steps: int = 100, seed: int = 0
) -> Measured:
    """max-SW_p of two samples, (n,) + event shape and (m,) + event shape, and its standard error.

    Args:
      x, y: the samples, at least 4 rows of each.
      order: p >= 1.
      num_starts: of the search for the direction: the difference of the means, and random ones. All are followed at once.
      num_steps: of projected gradient ascent (Adam) from each start.
      seed: of the random halves and starts.

    A direction fits the noise of the rows from which it was found: measured on these, W_2^2 of two samples of one law would be
    too large by the order of D / n. So the direction is found on one half of the rows and measured on the other, then the halves
    change places, and W_p^p is the mean of both. No bias upwards is left but that of W_p of n / 2 rows in one dimension. There is
    one downwards, as half of the rows do not quite show the best direction; it is large where D is not small beside n. In one
    dimension nothing is searched, and all rows are measured, exactly.

    The search is JAX, in float32; the values are float64 NumPy. The error is that of the rows along the directions found, by the
    potentials of the transport (del Barrio et al. 2021, arXiv:2102.06379): to first order, too small where both laws are equal.
    Of Gaussians of one covariance the exact value is the distance of the means, p any; of one mean and commuting covariances
    W_2 is the largest difference of standard deviations along a common axis.

    Raises ValueError for fewer rows, samples that are not finite, unequal events, order < 1.
    """
    x, y = checked_samples(4, x=x, y=y)
    check_count(num_starts=num_starts, num_steps=num_steps)
    _check_order(order)
    if x.shape[1] == 1:
        return _root(*_along(np.ones(1), x, y, order), order)
    # The same permutation for samples of one size: equal samples then have equal halves, and are at distance 0.
    x, y = (sample[np.random.default_rng([seed, len(sample)]).permutation(len(sample))] for sample in (x, y))
    n, m = len(x) // 2, len(y) // 2
    of_x, of_y = np.stack([x[:n], x[-n:]]), np.stack([y[:m], y[-m:]])
    starts = np.random.default_rng(seed).normal(size=(num_starts, x.shape[1]))
    directions = _best_directions(order, num_steps, starts, of_x, of_y)
    one, sem_one = _along(directions[0], x[n:], y[m:], order)
    two, sem_two = _along(directions[1], x[:-n], y[:-m], order)
    return _root((one + two) / 2, float(np.hypot(sem_one, sem_two)) / 2, order)


def _check_order(order: float) -> None:
    if not 1 <= order < np.inf:
        raise ValueError(f"order must be a finite number >= 1, got {order!r}")


def _root(mean: float, sem: float, order: float) -> Measured:
    """W_p and its error from those of W_p^p."""
    value = mean ** (1.0 / order)
    return Measured(value, sem / (order * value ** (order - 1)) if value > 0 else 0.0)


def _powers(xp, x, y, quantiles, order: float):
    """W_p^p of projections, (..., n) and (..., m), in NumPy or JAX."""
    rank_x, rank_y, widths = quantiles
    return xp.abs(xp.sort(x, -1)[..., rank_x] - xp.sort(y, -1)[..., rank_y]) ** order @ widths


def _unit(xp, directions):
    """Directions, (..., D), of length 1."""
    return directions / xp.linalg.norm(directions, axis=-1, keepdims=True)


def _quantiles(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where both quantile functions of n and m rows are constant: the ranks of either, and the widths of the pieces."""
    if n == m:
        return np.arange(n), np.arange(n), np.full(n, 1.0 / n)
    # In integers, units of 1 / (n m): no piece is lost to rounding.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)


def _best_directions(order: float, num_steps: int, starts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The best directions, (2, D), of two pairs of samples, x (2, n, D) and y (2, m, D); starts (num_starts, D)."""
    both = np.concatenate([x, y], 1)
    scale = both.std((0, 1)).max() or 1.0
    x, y = (((sample - both.mean((0, 1))) / scale).astype(np.float32) for sample in (x, y))
    starts = np.stack([starts, starts])
    shift = x.mean(1) - y.mean(1)
    starts[:, 0] = np.where(shift.any(1, keepdims=True), shift, starts[:, 0])
    rank_x, rank_y, widths = _quantiles(x.shape[1], y.shape[1])
    quantiles = rank_x, rank_y, widths.astype(np.float32)
    found = _search(float(order), num_steps, _unit(np, starts).astype(np.float32), x, y, quantiles)
    return _unit(np, np.asarray(found, np.float64))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(order: float, num_steps: int, starts: Array, x: Array, y: Array, quantiles: tuple) -> Array:
    """The best direction for each of two pairs of samples, (2, D): x (2, n, D), y (2, m, D), unit starts (2, num_starts, D)."""
    # Adam moves an entry by its rate at most.
    optimizer = optax.adam(optax.cosine_decay_schedule(_TURN / starts.shape[-1] ** 0.5, num_steps))

    def power(direction, x, y):
        return _powers(jnp, x @ direction, y @ direction, quantiles, order)

    def climb(direction, x, y):
        def step(carry, _):
            direction, state = carry
            slope = jax.grad(power)(direction, x, y)
            slope = slope - (slope @ direction) * direction
            updates, state = optimizer.update(-slope, state)
            return (_unit(jnp, direction + updates), state), None

        direction, _ = jax.lax.scan(step, (direction, optimizer.init(direction)), None, num_steps)[0]
        return direction, power(direction, x, y)

    def best(starts, x, y):
        found, powers = jax.vmap(climb, (0, None, None))(starts, x, y)
        return found[jnp.argmax(powers)]

    return jax.vmap(best)(starts, x, y)


def _along(direction: np.ndarray, x: np.ndarray, y: np.ndarray, order: float) -> tuple[float, float]:
    """W_p^p of the projections on one direction and its standard error, by the variance of the potentials of the transport."""
    x, y = np.sort(x @ direction), np.sort(y @ direction)
    power = float(_powers(np, x, y, _quantiles(len(x), len(y)), order))
    errors = [_potential(*pair, order).var(ddof=1) / len(pair[0]) for pair in ((x, y), (y, x))]
    return power, float(np.sqrt(sum(errors)))


def _potential(x: np.ndarray, y: np.ndarray, order: float) -> np.ndarray:
    """The potential f of sorted x, (n,), up to a constant: f' is the slope of the cost |x - T|^p, T the map to sorted y, (m,)."""
    gap = x - y[(2 * np.arange(len(x)) + 1) * len(y) // (2 * len(x))]
    slope = order * np.sign(gap) * np.abs(gap) ** (order - 1)
    return np.append(0.0, np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(x)))
