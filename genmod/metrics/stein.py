"""The kernel Stein discrepancy of a sample from a density that is known up to a constant (Liu et al. 2016, arXiv:1602.03253).

    KSD^2 = E u(x, x'),   u(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + tr grad_x grad_y k         (eq. 14)

s = grad log p. With k = f(r), r = |x - y|^2 / h^2:

    u = s(x).s(y) f - 2 f' (s(x) - s(y)).(x - y) / h^2 - 2 D f' / h^2 - 4 r f'' / h^2

It is 0 exactly where the sample's law is p. A missing mode is nearly invisible to it, since s is local.
"""

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.statistics import Measured
from genmod.metrics.discrepancies import Statistic
from genmod.metrics.kernels import MultiquadricKernel, SmoothPairKernel
from genmod.metrics.samples import checked_samples, pair_squares, row_blocks


def squared_stein_discrepancy(
    x: ArrayLike, scores: ArrayLike, *, kernel: SmoothPairKernel = MultiquadricKernel(), statistic: Statistic = "unbiased"
) -> Measured:
    """KSD^2 of a sample x, (n,) + event shape, from a density with `scores` = grad log p at its rows; and its standard error.

        scores = jax.vmap(jax.grad(lambda x: model.log_prob(params, x)))(x)

    `kernel`: `MultiquadricKernel`, by which KSD sees convergence in law (Gorham & Mackey 2017, arXiv:1703.01717), or
    `GaussianKernel`. `statistic`: "unbiased", over pairs of different rows, or "biased", over all, never negative. Float64 NumPy,
    in blocks of rows.

    Raises TypeError for another kernel; ValueError for fewer than 2 rows, rows that are not finite, scores of another shape.
    """
    if statistic not in ("unbiased", "biased"):
        raise ValueError(f"statistic must be 'unbiased' or 'biased', got {statistic!r}")
    if not isinstance(kernel, SmoothPairKernel):
        raise TypeError(f"kernel must be a SmoothPairKernel such as MultiquadricKernel(), got {kernel!r}")
    x, scores = checked_samples(2, x=x, scores=scores)
    if x.shape != scores.shape:
        raise ValueError(f"scores must have the shape of x, {x.shape}, got {scores.shape}")
    n, kernel = len(x), kernel.fitted(x)
    sums, squares, diagonal = np.empty(n), 0.0, 0.0
    for rows in row_blocks(n, n):
        block = _stein_kernel(x, scores, rows, kernel)
        own = np.arange(rows.start, rows.stop)
        diagonal += float(block[own - rows.start, own].sum())
        block[own - rows.start, own] = 0.0
        sums[rows] = block.sum(1)
        squares += float(np.vdot(block, block))
    pairs = n * (n - 1)
    value = sums.sum() / pairs if statistic == "unbiased" else (sums.sum() + diagonal) / n**2
    means = sums / (n - 1)
    # First and second order of a U-statistic, as in `discrepancies`.
    second = 2.0 * max(0.0, squares / pairs - means.mean() ** 2 - 2.0 * means.var()) / pairs
    return Measured(float(value), float(np.sqrt(max(4.0 * means.var(ddof=1) / n - second, second))))


def _stein_kernel(x: np.ndarray, scores: np.ndarray, rows: slice, kernel: SmoothPairKernel) -> np.ndarray:
    """u(x_i, x_j) of some rows i and all j."""
    assert kernel.bandwidth is not None
    square = kernel.bandwidth**2
    r = pair_squares(x[rows], x) / square
    slope, curvature = kernel.derivatives(r)
    own = np.einsum("ij,ij->i", scores, x)
    # (s_i - s_j).(x_i - x_j), of four products.
    inner = own[rows, None] + own - scores[rows] @ x.T - x[rows] @ scores.T
    return (
        scores[rows] @ scores.T * kernel.profile(r)
        - (2.0 * inner + 2.0 * x.shape[1]) * slope / square
        - 4.0 * r * curvature / square
    )
