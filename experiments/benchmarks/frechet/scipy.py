"""NumPy's covariances and SciPy's root of their product, the route that most codes take."""

import numpy as np
from scipy.linalg import sqrtm

from experiments.benchmarks.frechet.problems import Cell
from experiments.benchmarks.host_peer import HostPeer
from experiments.benchmarks.peer import Arrays


def distance(pair: np.ndarray) -> float:
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)."""
    x, y = pair.astype(np.float64)
    shift, a, b = x.mean(0) - y.mean(0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2.0 * np.trace(sqrtm(a @ b)).real)


def build(cell: Cell, arrays: Arrays) -> HostPeer:
    """The usual route."""
    return HostPeer({"run": distance})
