"""The Sinkhorn divergence: entropic transport without its bias (Genevay et al. 2018, arXiv:1706.00292).

    S(x, y) = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2,    OT(x, y) = min_p sum_ij p_ij |x_i - y_j|^2 + e KL(p || a b')

for uniform a, b: W_2^2 as e goes to 0, the energy-like squared distance of means as e grows, and 0 for equal samples.
"""

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.checks import check_count, check_positive
from genmod.core.statistics import Measured
from genmod.metrics.samples import checked_samples, pair_squares
from genmod.transport.entropic import converged_sinkhorn


def sinkhorn_divergence(
    x: ArrayLike, y: ArrayLike, *, epsilon: float = 0.05, tolerance: float = 1e-3, max_iters: int = 10_000
) -> Measured:
    """S(x, y) of squared Euclidean distances, of samples (n,) + event shape and (m,) + event shape, and its standard error.

    Args:
      epsilon: e as a FRACTION of the mean squared distance between x and y, as in `transport.sinkhorn`.
      tolerance: the largest relative error of a marginal at which the iterations end.
      max_iters: at most so many.

    The iterations are JAX, in float32, on an n x m table. The error is that of the potentials of single rows (del Barrio et al.
    2023, arXiv:2207.07427): to first order, too small where both laws are equal.

    Raises ValueError for empty or non-finite samples, unequal events, and where the iterations do not come within the tolerance.
    """
    check_positive(epsilon=epsilon, tolerance=tolerance)
    check_count(max_iters=max_iters)
    x, y = checked_samples(x=x, y=y)
    pairs = [pair_squares(*pair) for pair in ((x, y), (x, x), (y, y))]
    scale = float(pairs[0].mean())
    if scale == 0.0:
        return Measured(0.0, 0.0)
    potentials = [_potentials(squares / scale, epsilon, tolerance, max_iters) for squares in pairs]
    (f, g), own_x, own_y = potentials
    row, column = f - sum(own_x) / 2, g - sum(own_y) / 2
    errors = [np.var(each, ddof=1) / len(each) if len(each) > 1 else np.nan for each in (row, column)]
    return Measured(float(scale * (row.mean() + column.mean())), float(scale * np.sqrt(sum(errors))))


def _potentials(cost: np.ndarray, epsilon: float, tolerance: float, max_iters: int) -> tuple[np.ndarray, np.ndarray]:
    """(f, g) of rows and columns with f_i + g_j = e log(n m p_ij) + c_ij; the mean of f plus that of g is OT."""
    log_plan, left = converged_sinkhorn(cost.astype(np.float32), epsilon, tolerance, max_iters, scale=np.float32(1.0))
    if not float(left) <= tolerance:
        raise ValueError(
            f"sinkhorn did not converge in max_iters = {max_iters} iterations: a marginal is off by {float(left):.1e} of "
            f"itself, above tolerance = {tolerance}; raise max_iters, or epsilon"
        )
    both = epsilon * (np.asarray(log_plan, np.float64) + np.log(cost.size)) + cost
    half = both.mean() / 2
    return both.mean(1) - half, both.mean(0) - half
