"""The Wasserstein distance of two samples, exact.

W_p(x, y) = min_s (1/n sum_i |x_i - y_s(i)|^p)^(1/p)        over the permutations s of n, in the units of x
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from genmod.transport.exact import host_assignment


def wasserstein(x: ArrayLike, y: ArrayLike, *, order: float = 2) -> float:
    """W_p of two samples of equal size, (n,) + event shape, p = `order` >= 1, Euclidean distances: exact, in float64 NumPy.

    One dimension is sorted; else the n x n assignment is solved: in two dimensions about 5 s of one core at n = 5,000, half a
    minute and 1.5 GB at n = 10,000. The value is that of the SAMPLES: two samples of one law have W_p > 0, falling as slowly
    as n^(-1/d) in d > 2p dimensions, so print that floor beside it:

        wasserstein(model_sample, test), wasserstein(train[: len(test)], test)

    Raises ValueError for unequal shapes, an empty or non-finite sample, order < 1.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"x and y must be samples of one shape, (n,) + event shape, got {x.shape} and {y.shape}; drop some")
    if x.ndim < 1 or x.size == 0:
        raise ValueError(f"x and y must hold at least one event, got shape {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x and y must be finite")
    if not 1 <= order < np.inf:
        raise ValueError(f"order must be a finite number >= 1, got {order!r}")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if x.shape[1] == 1:  # the monotone map is optimal for every convex cost
        distances = np.abs(np.sort(x[:, 0]) - np.sort(y[:, 0]))
    else:
        cost = cdist(x, y, "sqeuclidean")
        if order != 2:
            np.power(cost, order / 2, out=cost)
        distances = np.linalg.norm(x - y[host_assignment(cost)], axis=1)
    return float(np.mean(distances**order) ** (1 / order))
