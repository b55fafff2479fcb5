"""Kernels of two samples, as descriptions; float64 NumPy.

    GaussianKernel       exp(-|x - y|^2 / (2 s^2))                      MultiquadricKernel   (1 + |x - y|^2 / s^2)^p, -1 < p < 0
    LaplacianKernel      exp(-|x - y| / s)                              EnergyKernel         -|x - y|
    PolynomialKernel     (c x.y + 1)^k                                  SumKernel            a sum of kernels

A bandwidth s of None is the median of the distances between the rows of both samples (Gretton et al. 2012, JMLR 13, sec. 8),
of at most 1,000 rows of each, evenly spaced.

The kernels by which `inference.svgd` moves particles are others: JAX traces those, their bandwidth changes from step to step, and
it is a squared distance h. GaussianKernel(s) is `inference.RBF(h)` with h = 2 s^2, and MultiquadricKernel(s) is
`inference.InverseMultiquadric(h)` with h = s^2.
"""

import abc
import dataclasses
from typing import Self

import numpy as np
from scipy.spatial.distance import pdist

from genmod.core.checks import check_count, check_positive
from genmod.core.description import Description
from genmod.metrics.samples import pair_squares

_MEDIAN_ROWS = 1_000


class PairKernel(Description, abc.ABC):
    """A positive definite kernel k(x, y) of rows; for the energy kernel, a conditionally positive definite one."""

    @abc.abstractmethod
    def matrix(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """k(x_i, y_j), (n, d) and (m, d) -> (n, m)."""

    def fitted(self, *samples: np.ndarray) -> "PairKernel":
        """The kernel with what it takes from the samples, (n, d) each; an optional hook, by default itself."""
        return self


class RadialPairKernel(PairKernel, abc.ABC):
    """k(x, y) = f(|x - y|^2 / s^2), `bandwidth` s > 0, None: the median distance."""

    bandwidth: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.bandwidth is not None:
            check_positive(bandwidth=self.bandwidth)

    @abc.abstractmethod
    def profile(self, r: np.ndarray) -> np.ndarray:
        """f(r), elementwise, r >= 0."""

    def matrix(self, x, y):
        if self.bandwidth is None:
            return self.fitted(x, y).matrix(x, y)
        return self.profile(pair_squares(x, y) / self.bandwidth**2)

    def fitted(self, *samples: np.ndarray) -> Self:
        if self.bandwidth is not None:
            return self
        return dataclasses.replace(self, bandwidth=median_distance(*samples))  # type: ignore[type-var]


class SmoothPairKernel(RadialPairKernel, abc.ABC):
    """A radial kernel with two derivatives at 0, of which a Stein kernel can be made."""

    @abc.abstractmethod
    def derivatives(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f'(r) and f''(r), elementwise."""


@dataclasses.dataclass(frozen=True)
class GaussianKernel(SmoothPairKernel):
    """k = exp(-|x - y|^2 / (2 s^2)); `inference.RBF(h)` with h = 2 s^2."""

    bandwidth: float | None = None

    def profile(self, r):
        return np.exp(-0.5 * r)

    def derivatives(self, r):
        value = np.exp(-0.5 * r)
        return -0.5 * value, 0.25 * value


@dataclasses.dataclass(frozen=True)
class MultiquadricKernel(SmoothPairKernel):
    """The inverse multiquadric k = (1 + |x - y|^2 / s^2)^power, -1 < power < 0, whose tails see far outliers.

    `inference.InverseMultiquadric(h)` with h = s^2.
    """

    bandwidth: float | None = None
    power: float = -0.5

    def __post_init__(self):
        super().__post_init__()
        if not -1 < self.power < 0:
            raise ValueError(f"power must be in (-1, 0), got {self.power}")

    def profile(self, r):
        return (1.0 + r) ** self.power

    def derivatives(self, r):
        slope = self.power * (1.0 + r) ** (self.power - 1)
        return slope, (self.power - 1) * slope / (1.0 + r)


@dataclasses.dataclass(frozen=True)
class LaplacianKernel(RadialPairKernel):
    """k = exp(-|x - y| / s), of Euclidean distances."""

    bandwidth: float | None = None

    def profile(self, r):
        return np.exp(-np.sqrt(r))


@dataclasses.dataclass(frozen=True)
class EnergyKernel(PairKernel):
    """k = -|x - y|, whose squared discrepancy is the energy distance (Sejdinovic et al. 2013, arXiv:1207.6076)."""

    def matrix(self, x, y):
        return -np.sqrt(pair_squares(x, y))


@dataclasses.dataclass(frozen=True)
class PolynomialKernel(PairKernel):
    """k = (c x.y + 1)^degree, `scale` c > 0, None: 1 / d of rows in d dimensions. It sees the moments up to the degree alone."""

    degree: int = 3
    scale: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_count(degree=self.degree)
        if self.scale is not None:
            check_positive(scale=self.scale)

    def matrix(self, x, y):
        scale = 1.0 / x.shape[1] if self.scale is None else self.scale
        base = x @ y.T
        base *= scale
        base += 1.0
        value = base.copy()
        for _ in range(self.degree - 1):  # a power by products is ten times as fast as by logarithms
            value *= base
        return value


@dataclasses.dataclass(frozen=True)
class SumKernel(PairKernel):
    """The sum of kernels, such as Gaussians of several bandwidths: SumKernel((GaussianKernel(0.5), GaussianKernel(2.0)))."""

    kernels: tuple[PairKernel, ...]

    def __post_init__(self):
        if not isinstance(self.kernels, tuple) or not self.kernels:
            raise TypeError(f"kernels must be a tuple of at least one kernel, got {self.kernels!r}")
        for kernel in self.kernels:
            check_kernel(kernel)
        super().__post_init__()

    def matrix(self, x, y):
        total = self.kernels[0].matrix(x, y)
        for kernel in self.kernels[1:]:
            total = total + kernel.matrix(x, y)
        return total

    def fitted(self, *samples: np.ndarray) -> Self:
        return dataclasses.replace(self, kernels=tuple(kernel.fitted(*samples) for kernel in self.kernels))


def median_distance(*samples: np.ndarray) -> float:
    """The median distance between the rows of all samples, (n, d) each, of at most 1,000 rows of each; 1 where it is 0."""
    few = [sample[np.linspace(0, len(sample) - 1, min(len(sample), _MEDIAN_ROWS)).astype(int)] for sample in samples]
    rows = np.concatenate(few)
    median = float(np.median(pdist(rows))) if len(rows) > 1 else 0.0
    return median if median > 0 else 1.0


def check_kernel(kernel: PairKernel) -> None:
    """Raises TypeError for what is no kernel."""
    if not isinstance(kernel, PairKernel):
        raise TypeError(f"kernel must be a PairKernel such as GaussianKernel(bandwidth), got {kernel!r}")
