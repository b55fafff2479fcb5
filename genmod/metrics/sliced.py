"""The sliced Wasserstein distance: of the projections on random directions, each of which is exact (Bonneel et al. 2015).

SW_p(x, y)^p = mean over directions t of the unit sphere of W_p(t.x, t.y)^p
"""

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.checks import check_count
from genmod.core.statistics import Measured, mean_and_sem
from genmod.metrics.samples import checked_samples

# Directions at a time.
_BLOCK = 32


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, *, order: float = 2, num_directions: int = 500, seed: int = 0) -> Measured:
    """SW_p of two samples, (n,) + event shape and (m,) + event shape, and its standard error over the directions.

    p = `order` >= 1. Sorting replaces the assignment: n log n per direction, for any n and m, exact (where sizes differ, by the
    two quantile functions). In D dimensions it is smaller than W_p: a shift by a counts as |a| / sqrt(D) for p = 2. Two samples
    of one law have SW_p > 0, of the order of n^(-1/2). Float64 NumPy; the error does not hold that of the samples.

    Raises ValueError for empty or non-finite samples, unequal events, order < 1.
    """
    x, y = checked_samples(x=x, y=y)
    check_count(num_directions=num_directions)
    if not 1 <= order < np.inf:
        raise ValueError(f"order must be a finite number >= 1, got {order!r}")
    directions = np.random.default_rng(seed).normal(size=(x.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    rank_x, rank_y, widths = _quantiles(len(x), len(y))
    powers = []
    for start in range(0, num_directions, _BLOCK):
        some = directions[:, start : start + _BLOCK]
        sorted_x, sorted_y = (np.sort((some.T @ sample.T), axis=1) for sample in (x, y))
        powers.append(np.abs(sorted_x[:, rank_x] - sorted_y[:, rank_y]) ** order @ widths)
    mean, sem = map(float, mean_and_sem(np.concatenate(powers)))
    value = mean ** (1.0 / order)
    return Measured(value, sem / (order * value ** (order - 1)) if value > 0 else 0.0)


def _quantiles(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where both quantile functions of n and m rows are constant: the ranks of either, and the widths of the pieces."""
    if n == m:
        return np.arange(n), np.arange(n), np.full(n, 1.0 / n)
    # In integers, units of 1 / (n m): no piece is lost to rounding.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)
