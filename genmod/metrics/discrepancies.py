"""Maximum mean discrepancies of two samples (Gretton et al. 2012, JMLR 13), squared, and what is one for a special kernel.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

U-statistic: sums over pairs of different rows, without bias, so that it may be negative. V-statistic: over all pairs, never
negative, and too large by about (E k(x, x) - E k(x, x')) / n + the same of y / m. All is float64 NumPy, in blocks of rows: the
n x m table is never in memory.

Standard errors are of the U-statistic, complete to second order: with a_i = mean_j k(x_i, x_j) - mean_j k(x_i, y_j), b_j likewise
for y, and V the variance of the part of a kernel that is no sum of functions of one argument,

    sem^2 = 4 Var(a) / n + 4 Var(b) / m - s^2,    s^2 = 2 V_xx / (n (n - 1)) + 2 V_yy / (m (m - 1)) + 4 V_xy / (n m)

by Hoeffding's decomposition. Where both laws are equal the first two terms have the mean 2 s^2, and the variance is s^2; the
estimate is noisy there and not allowed below s^2, which makes the error a third too large. There the statistic is not Gaussian,
either: test by `mmd_p_value`.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from genmod.core.checks import check_count
from genmod.core.statistics import Measured
from genmod.metrics.kernels import EnergyKernel, GaussianKernel, PairKernel, PolynomialKernel, check_kernel
from genmod.metrics.samples import checked_samples, row_blocks

Statistic = Literal["unbiased", "biased"]

# Of CMMD: its bandwidth, and the factor by which it is printed.
_CMMD_BANDWIDTH, _CMMD_SCALE = 10.0, 1_000.0


def squared_mmd(
    x: ArrayLike, y: ArrayLike, *, kernel: PairKernel = GaussianKernel(), statistic: Statistic = "unbiased"
) -> Measured:
    """MMD^2 of two samples, (n,) + event shape and (m,) + event shape, and its standard error.

    `kernel`: any of this package; the default is Gaussian, its bandwidth the median distance. `statistic`: "unbiased", the
    U-statistic, or "biased", the V-statistic. Raises ValueError for fewer than 2 rows, rows that are not finite, unequal events.
    """
    if statistic not in ("unbiased", "biased"):
        raise ValueError(f"statistic must be 'unbiased' or 'biased', got {statistic!r}")
    check_kernel(kernel)
    x, y = checked_samples(2, x=x, y=y)
    return _measured(x, y, kernel.fitted(x, y), statistic)


def energy_distance(x: ArrayLike, y: ArrayLike, *, statistic: Statistic = "unbiased") -> Measured:
    """2 E|x - y| - E|x - x'| - E|y - y'|, in the units of x, of two samples: no bandwidth to choose. See `squared_mmd`."""
    return squared_mmd(x, y, kernel=EnergyKernel(), statistic=statistic)


def kid(x: ArrayLike, y: ArrayLike) -> Measured:
    """The kernel inception distance of two samples of FEATURES, (n, d) and (m, d): unbiased MMD^2 of the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018, arXiv:1801.01401. Of all pairs of rows, with its standard error; papers print means over random
    subsets, which is `kid_of_subsets`. Raises as `squared_mmd`.
    """
    return squared_mmd(x, y, kernel=PolynomialKernel())


def kid_of_subsets(x: ArrayLike, y: ArrayLike, *, subset_size: int = 1_000, num_subsets: int = 100, seed: int = 0) -> Measured:
    """KID as it is published: the mean of the unbiased estimates of random subsets of both samples, and its standard error.

    With f = subset_size / n, the error is the standard deviation over subsets times sqrt(f / (1 - f) + 1 / num_subsets): subsets
    of the same n rows differ by less than those of fresh rows. It is nan for a single subset and for f = 1. Raises as
    `squared_mmd`, and for a subset_size that is no integer from 2 to the rows.
    """
    x, y = checked_samples(2, x=x, y=y)
    num = min(len(x), len(y))
    check_count(subset_size=subset_size, num_subsets=num_subsets)
    if not 2 <= subset_size <= num:
        raise ValueError(f"subset_size must be from 2 to the number of rows, {num}, got {subset_size}")
    rng, kernel = np.random.default_rng(seed), PolynomialKernel()
    values = []
    for _ in range(num_subsets):
        some_x, some_y = (sample[rng.choice(len(sample), subset_size, replace=False)] for sample in (x, y))
        values.append(_value(_sums(some_x, some_y, kernel), "unbiased"))
    if num_subsets == 1 or subset_size == num:
        return Measured(float(np.mean(values)), float("nan"))
    share = subset_size / (num - subset_size) + 1.0 / num_subsets
    return Measured(float(np.mean(values)), float(np.std(values, ddof=1) * np.sqrt(share)))


def cmmd(x: ArrayLike, y: ArrayLike) -> Measured:
    """1,000 MMD^2 of features, (n, d) and (m, d), by the Gaussian kernel of bandwidth 10: CMMD.

    Jayasumana et al. 2024, arXiv:2401.09603. The paper's features are CLIP embeddings of norm 1, and its estimate is the
    V-statistic, of which this is the unbiased form. Raises as `squared_mmd`.
    """
    value, sem = squared_mmd(x, y, kernel=GaussianKernel(_CMMD_BANDWIDTH))
    return Measured(_CMMD_SCALE * value, _CMMD_SCALE * sem)


def mmd_p_value(
    x: ArrayLike, y: ArrayLike, *, kernel: PairKernel = GaussianKernel(), num_permutations: int = 500, seed: int = 0
) -> float:
    """The p-value of MMD^2 (V-statistic) by permutations: how often random halves of the pooled rows lie at least as far apart.

    (1 + number of such permutations) / (1 + num_permutations): uniform where both laws are equal, exactly valid at every size.
    """
    check_kernel(kernel)
    check_count(num_permutations=num_permutations)
    x, y = checked_samples(2, x=x, y=y)
    n, m, pooled = len(x), len(y), np.concatenate([x, y])
    kernel, rng = kernel.fitted(x, y), np.random.default_rng(seed)
    # Column 0 is the division that was seen; MMD^2 = w'Kw with w = 1/n on one side and -1/m on the other.
    weights = np.tile(np.repeat([1.0 / n, -1.0 / m], [n, m])[:, None], num_permutations + 1)
    weights[:, 1:] = rng.permuted(weights[:, 1:], axis=0)
    squares = np.zeros(num_permutations + 1)
    for rows in row_blocks(n + m, n + m):
        squares += np.einsum("ib,ib->b", weights[rows], kernel.matrix(pooled[rows], pooled) @ weights)
    # Equal divisions give the same sum but for rounding.
    slack = 1e-12 * np.abs(squares).max()
    return float((1 + np.sum(squares[1:] >= squares[0] - slack)) / (1 + num_permutations))


class _Sums(NamedTuple):
    """Sums of a kernel over the pairs of two samples: by row, of squares, and those of the diagonal."""

    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    yx: np.ndarray
    squares: tuple[float, float, float]
    diagonals: tuple[float, float]


def _sums(x: np.ndarray, y: np.ndarray, kernel: PairKernel) -> _Sums:
    xx, squares_xx, diagonal_x = _own_sums(x, kernel)
    yy, squares_yy, diagonal_y = _own_sums(y, kernel)
    xy, yx, squares_xy = np.empty(len(x)), np.zeros(len(y)), 0.0
    for rows in row_blocks(len(x), len(y)):
        block = kernel.matrix(x[rows], y)
        xy[rows] = block.sum(1)
        yx += block.sum(0)
        squares_xy += float(np.vdot(block, block))
    return _Sums(xx, yy, xy, yx, (squares_xx, squares_yy, squares_xy), (diagonal_x, diagonal_y))


def _own_sums(x: np.ndarray, kernel: PairKernel) -> tuple[np.ndarray, float, float]:
    """Of pairs of different rows: sums by row, the sum of squares; and the sum of the diagonal, which is left out."""
    sums, squares, diagonal = np.empty(len(x)), 0.0, 0.0
    for rows in row_blocks(len(x), len(x)):
        block = kernel.matrix(x[rows], x)
        own = np.arange(rows.start, rows.stop)
        diagonal += float(block[own - rows.start, own].sum())
        block[own - rows.start, own] = 0.0
        sums[rows] = block.sum(1)
        squares += float(np.vdot(block, block))
    return sums, squares, diagonal


def _value(sums: _Sums, statistic: Statistic) -> float:
    n, m = len(sums.xx), len(sums.yy)
    within = (sums.xx.sum(), n, sums.diagonals[0]), (sums.yy.sum(), m, sums.diagonals[1])
    if statistic == "biased":
        own = sum((total + diagonal) / num**2 for total, num, diagonal in within)
    else:
        own = sum(total / (num * (num - 1)) for total, num, _ in within)
    return float(own - 2.0 * sums.xy.sum() / (n * m))


def _measured(x: np.ndarray, y: np.ndarray, kernel: PairKernel, statistic: Statistic) -> Measured:
    sums = _sums(x, y, kernel)
    n, m = len(x), len(y)
    rows_x, rows_y = sums.xx / (n - 1), sums.yy / (m - 1)
    cross_x, cross_y = sums.xy / m, sums.yx / n
    pairs = n * (n - 1), m * (m - 1), n * m
    square_xx, square_yy, square_xy = (total / num for total, num in zip(sums.squares, pairs, strict=True))
    v_xx = max(0.0, square_xx - rows_x.mean() ** 2 - 2.0 * rows_x.var())
    v_yy = max(0.0, square_yy - rows_y.mean() ** 2 - 2.0 * rows_y.var())
    v_xy = max(0.0, square_xy - cross_x.mean() ** 2 - cross_x.var() - cross_y.var())
    second = 2.0 * v_xx / pairs[0] + 2.0 * v_yy / pairs[1] + 4.0 * v_xy / pairs[2]
    total = 4.0 * (np.var(rows_x - cross_x, ddof=1) / n + np.var(rows_y - cross_y, ddof=1) / m) - second
    return Measured(_value(sums, statistic), float(np.sqrt(max(total, second))))
