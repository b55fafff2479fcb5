"""The Frechet distance of two laws: W_2^2 of Gaussians with their moments (Heusel et al. 2017, arXiv:1706.08500).

    d = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

In float64 NumPy. With S1 = L L' the trace is the sum of the roots of the eigenvalues of L' S2 L, a symmetric matrix, which takes
a tenth of the time of a matrix root. Where a covariance is singular or nearly so, it is the sum of the singular values of L1' L2:
these are right to rounding, and roots of rounding errors are not.

A value of samples is too large, for covariances that are alike, of eigenvalues l, by about

    (1/n + 1/m) sum_ij l_i l_j / (l_i + l_j) / 2 + tr S1 / n + tr S2 / m

which for 10,000 rows of 2,048 features is more than most distances. So compare at one number of rows, or use
`extrapolated_frechet_distance`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh, eigvalsh, lapack, solve_triangular, svdvals

from genmod.core.checks import check_count
from genmod.core.statistics import Measured
from genmod.metrics.samples import checked_samples

# Of the smallest to the largest eigenvalue of L' S2 L: below it, roots of eigenvalues lose digits that singular values keep.
_SINGULAR = 1e-10


class _Moments(NamedTuple):
    mean: np.ndarray
    covariance: np.ndarray


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """The Frechet distance of two samples of features, (n, d) and (m, d), or of flattened events; "FID" of Inception features.

    Covariances are divided by n - 1. Too large by its bias, see the module. Raises ValueError for fewer than 2 rows, rows that
    are not finite, unequal events.
    """
    x, y = checked_samples(2, x=x, y=y)
    return _distance(_moments(x), _moments(y))


def frechet_distance_of_moments(mean_x: ArrayLike, covariance_x: ArrayLike, mean_y: ArrayLike, covariance_y: ArrayLike) -> float:
    """The Frechet distance of means (d,) and covariances (d, d), such as those that are published of a reference set.

    Raises ValueError for shapes that do not fit, values that are not finite, a covariance that is not symmetric or has a negative
    eigenvalue beyond rounding.
    """
    x, y = _given("x", mean_x, covariance_x), _given("y", mean_y, covariance_y)
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"mean_x and mean_y must have one shape, got {x.mean.shape} and {y.mean.shape}")
    return _distance(x, y)


def extrapolated_frechet_distance(x: ArrayLike, y: ArrayLike, *, num_sizes: int = 2) -> Measured:
    """The Frechet distance of two samples as it would be of infinitely many rows, and its standard error.

    The bias falls as 1 / n (Chong & Forsyth 2020, arXiv:1911.07023): a line in k is fitted to the distances of n / k and m / k
    rows and read off at k = 0. For each k in 1, ..., num_sizes both samples are cut into k disjoint parts (every k-th row), over
    which the distance is averaged, so that all rows count at every size; with two sizes it is 2 d(n) - d(n / 2). It may
    be negative, as every estimate without bias of what may be 0.

    The error is that of the influence of single rows (the delta method), to first order: where both laws have nearly equal
    moments, it is only the right size. Rows should be in random order, and n / num_sizes above d, or higher powers of 1 / n stay.

    Raises ValueError as `frechet_distance`, for num_sizes < 2, and for fewer than 2 num_sizes rows.
    """
    check_count(num_sizes=num_sizes)
    if num_sizes < 2:
        raise ValueError(f"num_sizes must be at least 2 for a line, got {num_sizes}")
    x, y = checked_samples(2 * num_sizes, x=x, y=y)
    moments = _moments(x), _moments(y)
    values = [_distance(*moments)]
    for k in range(2, num_sizes + 1):
        values.append(float(np.mean([_distance(_moments(x[i::k]), _moments(y[i::k])) for i in range(k)])))
    value = np.polynomial.Polynomial.fit(np.arange(1, num_sizes + 1), values, 1)(0.0)
    return Measured(float(value), _influence_error(x, y, *moments))


def frechet_interval(
    x: ArrayLike, y: ArrayLike, *, level: float = 0.95, num_resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """(low, high), a bootstrap interval of the Frechet distance of the LAWS from two samples, at the level.

    The basic interval 2 d - quantiles of the distances of rows drawn anew with replacement, which takes the bias off once, as a
    resample has it once more. It wants far more rows than features; it costs `num_resamples` distances. Low is at least 0.
    Raises as `frechet_distance`, and for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    check_count(num_resamples=num_resamples)
    x, y = checked_samples(2, x=x, y=y)
    rng = np.random.default_rng(seed)
    found = _distance(_moments(x), _moments(y))
    drawn = [
        _distance(*(_moments(sample[rng.integers(0, len(sample), len(sample))]) for sample in (x, y)))
        for _ in range(num_resamples)
    ]
    low, high = 2.0 * found - np.quantile(drawn, [0.5 + level / 2, 0.5 - level / 2])
    return max(0.0, float(low)), max(0.0, float(high))


def _moments(x: np.ndarray) -> _Moments:
    mean = x.mean(0)
    x = x - mean
    return _Moments(mean, x.T @ x / (len(x) - 1))  # NumPy sees the transpose, and multiplies half; np.cov does not


def _distance(x: _Moments, y: _Moments) -> float:
    """Squared W_2 of Gaussians; rounding may not take it below 0."""
    difference = x.mean - y.mean
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    value = difference @ difference + traces - 2.0 * _trace_of_root(x.covariance, y.covariance)
    return max(0.0, float(value))


def _trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """tr (a b)^(1/2) of covariances: of the better conditioned a the Cholesky factor, if it has one."""
    factor = _cholesky(a)
    if factor is not None:
        # LAPACK's reduction L' b L makes use of symmetry: half of the products.
        product, failed = lapack.dsygst(b, factor, itype=2, lower=1)  # pyright: ignore[reportAttributeAccessIssue]
        if not failed:
            values = eigvalsh(product, check_finite=False)
            if values[0] > _SINGULAR * values[-1]:
                return float(np.sqrt(values).sum())
    return float(np.sum(svdvals(_root(a).T @ _root(b), check_finite=False)))


def _cholesky(a: np.ndarray) -> np.ndarray | None:
    try:
        return np.linalg.cholesky(a)
    except np.linalg.LinAlgError:
        return None


def _root(a: np.ndarray) -> np.ndarray:
    """L, (d, rank), with L L' = a, of any covariance."""
    values, vectors = eigh(a, check_finite=False)
    kept = values > len(a) * np.finfo(float).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _influence_error(x: np.ndarray, y: np.ndarray, of_x: _Moments, of_y: _Moments) -> float:
    """The standard error of the distance to first order in single rows.

    A row x moves the distance by 2 (m1 - m2)'x + x'x - x'Tx, of rows about their mean, T the matrix of the optimal map from the
    one Gaussian to the other: T = L^-T M^(1/2) L^-1, M = L' S2 L, S1 = L L'. Its inverse belongs to y.
    """
    shift = of_x.mean - of_y.mean
    x, y = x - of_x.mean, y - of_y.mean
    lower = _cholesky(of_x.covariance)
    if lower is None:
        lower = _root(of_x.covariance)
        white = x @ np.linalg.pinv(lower).T
    else:
        white = solve_triangular(lower, x.T, lower=True, check_finite=False).T
    values, vectors = eigh(lower.T @ of_y.covariance @ lower, check_finite=False)
    kept = values > values.size * np.finfo(float).eps * values.max(initial=0.0)
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    mapped_x = (white @ vectors) ** 2 @ roots
    mapped_y = (y @ (lower @ vectors)) ** 2 @ (1.0 / roots)
    influence_x = 2.0 * x @ shift + np.einsum("ij,ij->i", x, x) - mapped_x
    influence_y = -2.0 * y @ shift + np.einsum("ij,ij->i", y, y) - mapped_y
    return float(np.sqrt(influence_x.var(ddof=1) / len(x) + influence_y.var(ddof=1) / len(y)))


def _given(name: str, mean: ArrayLike, covariance: ArrayLike) -> _Moments:
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mean_{name} and covariance_{name} must have shapes (d,) and (d, d), got {mean.shape} and {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"mean_{name} and covariance_{name} must be finite")
    scale = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-6 * scale:
        raise ValueError(f"covariance_{name} must be symmetric, it differs from its transpose by more than 1e-6 of its size")
    covariance = (covariance + covariance.T) / 2
    if _cholesky(covariance) is None:
        lowest = float(eigvalsh(covariance, check_finite=False, subset_by_index=(0, 0))[0])
        if lowest < -1e-6 * scale:
            raise ValueError(f"covariance_{name} must have no negative eigenvalue, got {lowest:.3g}")
    return _Moments(mean, covariance)
