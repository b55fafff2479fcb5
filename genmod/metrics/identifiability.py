"""Whether learned latents are the true ones: correlation coefficients of matched coordinates.

    mean_correlation            1/d sum_i |corr(z_i, z_hat_s(i))|, s the permutation of the largest sum: 1 for latents that are
                                found up to order, sign and scale (of ranks: up to a monotone map each)
                                (Khemakhem et al. 2020, arXiv:1907.04809, sec. 5)
    mean_canonical_correlation  the mean of the canonical correlations of z and z_hat: 1 for latents that are found up to an
                                invertible affine map (Khemakhem et al. 2020, arXiv:2002.11537)

Neither is 0 for latents that are independent of the truth: of d coordinates of n rows they are of the order of sqrt(1 / n) and
sqrt(d / n). Standard errors are by the jackknife that leaves out one of 50 groups of rows at a time, every 50th row a group;
rows are taken as independent.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

_NUM_GROUPS = 50

Correlation = Literal["pearson", "spearman"]


class MatchedCorrelation(NamedTuple):
    """The mean correlation of matched coordinates.

    Attributes:
      value, sem: the mean of |correlations|, and its standard error.
      matching: (d,) integers: coordinate i of z is matched with coordinate matching[i] of z_hat.
      correlations: (d,), each with its sign.
    """

    value: float
    sem: float
    matching: np.ndarray
    correlations: np.ndarray

    def __str__(self):
        each = ", ".join(f"{i} - {j}: {c:+.4f}" for i, (j, c) in enumerate(zip(self.matching, self.correlations, strict=True)))
        return f"mean correlation {self.value:.4f} +- {self.sem:.4f} ({each})"


def mean_correlation(z: ArrayLike, z_hat: ArrayLike, *, correlation: Correlation = "pearson") -> MatchedCorrelation:
    """The mean absolute correlation of true latents z, (n, d), with learned ones, one to one, matched by the Hungarian algorithm.

    `correlation`: "pearson", or "spearman", that of the ranks. Float64 NumPy.
    Raises ValueError for samples of unequal shapes, of fewer than 4 rows, not finite, or with a constant coordinate.
    """
    if correlation not in ("pearson", "spearman"):
        raise ValueError(f"correlation must be 'pearson' or 'spearman', got {correlation!r}")
    z, z_hat = _checked(z, z_hat)

    def matched(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = _correlations(z[rows], z_hat[rows], correlation)
        matching = linear_sum_assignment(-np.abs(table))[1]
        return matching, np.take_along_axis(table, matching[:, None], 1)[:, 0]

    matching, found = matched(np.arange(len(z)))
    sem = _jackknife(lambda rows: np.abs(matched(rows)[1]).mean(), len(z))
    return MatchedCorrelation(float(np.abs(found).mean()), sem, matching, found)


def mean_canonical_correlation(z: ArrayLike, z_hat: ArrayLike) -> tuple[float, float]:
    """The mean canonical correlation of true latents z, (n, d), with learned ones, and its standard error.

    The affine maps are fitted to the rows that are measured, so n should be far above d. Float64 NumPy.
    Raises ValueError as `mean_correlation`, and for n <= 2 d and for coordinates that depend on each other linearly.
    """
    z, z_hat = _checked(z, z_hat)
    n, d = z.shape
    if n - -(-n // min(n, _NUM_GROUPS)) <= 2 * d:
        raise ValueError(f"z and z_hat must have many more rows than 2 d = {2 * d}, or every correlation is 1, got {n}")
    for name, sample in (("z", z), ("z_hat", z_hat)):
        if np.linalg.matrix_rank(sample - sample.mean(0)) < d:
            raise ValueError(f"{name} must have coordinates that do not depend on each other linearly")

    def value(rows: np.ndarray) -> float:
        bases = [np.linalg.qr(sample[rows] - sample[rows].mean(0))[0] for sample in (z, z_hat)]
        return float(np.minimum(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 1.0).mean())

    return value(np.arange(n)), _jackknife(value, n)


def _correlations(z: np.ndarray, z_hat: np.ndarray, correlation: Correlation) -> np.ndarray:
    """The (d, d) table of correlations of every coordinate of z with every one of z_hat."""
    units = []
    for sample in (z, z_hat):
        values = rankdata(sample, axis=0) if correlation == "spearman" else sample
        values = values - values.mean(0)
        norm = np.linalg.norm(values, axis=0)
        units.append(
            values / np.where(norm > 0, norm, 1.0)
        )  # constant where a group of rows is left out: correlated with nothing
    return np.clip(units[0].T @ units[1], -1.0, 1.0)


def _jackknife(statistic: Callable[[np.ndarray], float], num_rows: int) -> float:
    """The standard error of a statistic of rows, by leaving out one group of them at a time."""
    groups = min(num_rows, _NUM_GROUPS)
    which = np.arange(num_rows) % groups
    values = np.array([statistic(np.flatnonzero(which != group)) for group in range(groups)])
    return float(np.sqrt((groups - 1) * values.var()))


def _checked(z: ArrayLike, z_hat: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    z, z_hat = np.asarray(z, np.float64), np.asarray(z_hat, np.float64)
    if z.shape != z_hat.shape or z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"z and z_hat must be latents of one shape (n, d), row by row, got {z.shape} and {z_hat.shape}")
    if len(z) < 4:
        raise ValueError(f"z and z_hat must have at least 4 rows, got {len(z)}")
    for name, sample in (("z", z), ("z_hat", z_hat)):
        if not np.isfinite(sample).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(sample)).any(1).sum())} rows that are not")
        constant = np.flatnonzero(np.ptp(sample, axis=0) == 0)
        if constant.size:
            raise ValueError(
                f"{name} must vary in every coordinate to be correlated, coordinates {constant.tolist()} are constant"
            )
    return z, z_hat
