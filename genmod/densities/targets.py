"""Targets of inference whose normaliser is known: log f(x) = log p(x) + log Z, with exact draws of p.

mixture      three Gaussians with weights .5, .3, .2, correlations r^|i - j| and means in a plane
Student      multivariate t with correlations r^|i - j|
regression   y = A x + noise under x ~ N(0, I): f(x) = p(y | x) p(x), Z = p(y)

A target is a function of one position, too, so that it stands where a `log_prob_fn` is wanted: `target(x)` is log f(x). The toys
of `gm.data`, a funnel among them, are targets with log Z = 0: their function is `functools.partial(toy.log_prob_one, {})`.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count, check_positive
from genmod.core.distribution import Distribution, Likelihood
from genmod.core.event import Real
from genmod.core.types import Array

_LOG_2PI = math.log(2 * math.pi)
_WEIGHTS = (0.5, 0.3, 0.2)  # of the three Gaussians


class Target(Distribution, abc.ABC):
    """A law of vectors, (D,), known up to its constant exp(`log_normalizer`), which is known here to measure against."""

    dim: int

    def __post_init__(self):
        super().__post_init__()
        check_count(dim=self.dim)

    @property
    def event(self):
        return Real((self.dim,))

    @property
    def log_normalizer(self) -> float:
        """log Z, the log of the integral of f, in nats."""
        return 0.0

    @property
    def likelihood(self):
        return Likelihood.EXACT if self.log_normalizer == 0 else Likelihood.UNNORMALIZED

    def __call__(self, x: Array) -> Array:
        """log f(x) of ONE position."""
        return self.log_prob_one({}, x)

    def _init(self, key, x, context):
        return {}


@dataclasses.dataclass(frozen=True)
class ThreeGaussians(Target):
    """A mixture of three Gaussians with weights .5, .3, .2, and correlations correlation^|i - j| in each; log Z = 0.

    Their means lie on a circle of radius `separation` in the plane of the first two coordinates.
    """

    dim: int
    separation: float = 2.0
    correlation: float = 0.5
    reparameterized = False

    def __post_init__(self):
        super().__post_init__()
        check_positive(separation=self.separation)
        _check_correlation(self.correlation)
        if self.dim < 2:
            raise ValueError(f"dim must be >= 2, where the means lie in a plane, got {self.dim}")

    def log_prob_one(self, params, x, context=None, key=None):
        squares = [jnp.sum(_whitened(x - mean.astype(x.dtype), self.correlation) ** 2) for mean in self._means]
        log_weights = jnp.log(jnp.asarray(_WEIGHTS, x.dtype))
        constant = _log_det(self.dim, self.correlation) + 0.5 * x.size * _LOG_2PI
        return jax.nn.logsumexp(log_weights - 0.5 * jnp.stack(squares)) - constant

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        which = jax.random.categorical(keys[0], jnp.log(jnp.asarray(_WEIGHTS)))
        z = jax.random.normal(keys[1], (self.dim,))
        return jnp.asarray(self._means, z.dtype)[which] + _correlated(z, self.correlation)

    @property
    def _means(self) -> np.ndarray:
        angles = 2 * math.pi * np.arange(3) / 3
        return self.separation * np.stack([np.cos(angles), np.sin(angles), *np.zeros((self.dim - 2, 3))], 1)


@dataclasses.dataclass(frozen=True)
class CorrelatedStudentT(Target):
    """Multivariate t with `df` degrees of freedom and the scale matrix correlation^|i - j|; log Z = 0."""

    dim: int
    df: float = 5.0
    correlation: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        check_positive(df=self.df)
        _check_correlation(self.correlation)

    def log_prob_one(self, params, x, context=None, key=None):
        df, dim = self.df, self.dim
        squares = jnp.sum(_whitened(x, self.correlation) ** 2)
        constant = math.lgamma(0.5 * (df + dim)) - math.lgamma(0.5 * df) - 0.5 * dim * math.log(df * math.pi)
        return constant - _log_det(dim, self.correlation) - 0.5 * (df + dim) * jnp.log1p(squares / df)

    def sample_one(self, params, key, context=None):
        keys = jax.random.split(key)
        chi_square = 2.0 * jax.random.gamma(keys[1], 0.5 * self.df)
        return _correlated(jax.random.normal(keys[0], (self.dim,)), self.correlation) * jnp.sqrt(self.df / chi_square)


@dataclasses.dataclass(frozen=True)
class ConjugateRegression(Target):
    """The joint density f(x) = p(y | x) p(x) of a linear regression, y ~ N(A x, noise^2 I) and x ~ N(0, I).

    The data of `num_rows` rows are drawn from the model: the columns of A have pairwise correlations of 1/2. The posterior is
    Gaussian, and log Z = log p(y).

    Attributes:
      dim: D of x. noise: its standard deviation. seed: of the data. num_rows: None: 2 D.
    """

    dim: int
    noise: float = 1.0
    seed: int = 0
    num_rows: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive(noise=self.noise)
        if self.num_rows is not None:
            check_count(num_rows=self.num_rows)

    @property
    def log_normalizer(self):
        return self._known.log_evidence

    @property
    def mean(self) -> np.ndarray:
        """Of the posterior, (D,)."""
        return self._known.mean

    @property
    def precision(self) -> np.ndarray:
        """Of the posterior, (D, D)."""
        return self._known.precision

    @property
    def mean_field_gap(self) -> float:
        """log Z less the ELBO of the best factorised Gaussian: (sum_i log P_ii - log det P) / 2, P the precision, in nats."""
        return 0.5 * float(np.log(np.diagonal(self.precision)).sum() - np.linalg.slogdet(self.precision)[1])

    @property
    def _known(self):
        return _regression(self.dim, self.noise, self.seed, 2 * self.dim if self.num_rows is None else self.num_rows)

    def log_prob_one(self, params, x, context=None, key=None):
        known = self._known
        residual = known.y.astype(x.dtype) - jnp.matmul(known.design.astype(x.dtype), x, precision="highest")
        constant = known.y.size * (math.log(self.noise) + 0.5 * _LOG_2PI) + 0.5 * x.size * _LOG_2PI
        return -0.5 * (jnp.sum((residual / self.noise) ** 2) + jnp.sum(x**2)) - constant

    def sample_one(self, params, key, context=None):
        z = jax.random.normal(key, (self.dim,))
        factor = jnp.asarray(np.linalg.cholesky(self.precision), z.dtype)
        return jnp.asarray(self.mean, z.dtype) + jax.scipy.linalg.solve_triangular(factor, z, trans=1, lower=True)


@dataclasses.dataclass(frozen=True)
class _Regression:
    design: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    precision: np.ndarray
    log_evidence: float


@functools.lru_cache(maxsize=16)
def _regression(dim: int, noise: float, seed: int, num_rows: int) -> _Regression:
    rng = np.random.default_rng(seed)
    design = (rng.standard_normal((num_rows, dim)) + rng.standard_normal((num_rows, 1))) / math.sqrt(2)
    y = design @ rng.standard_normal(dim) + noise * rng.standard_normal(num_rows)
    precision = np.eye(dim) + design.T @ design / noise**2
    mean = np.linalg.solve(precision, design.T @ y) / noise**2
    # log p(y) = log p(y | m) + log p(m) - log p(m | y) at the posterior's mean.
    squares = np.sum((y - design @ mean) ** 2) / noise**2 + mean @ mean
    constant = num_rows * (2 * math.log(noise) + _LOG_2PI)
    return _Regression(design, y, mean, precision, float(-0.5 * (squares + constant + np.linalg.slogdet(precision)[1])))


# Correlations r^|i - j| are those of an autoregression, x_1 = z_1 and x_i = r x_{i-1} + sqrt(1 - r^2) z_i.


def _check_correlation(correlation: float) -> None:
    if not -1 < correlation < 1:
        raise ValueError(f"correlation must be in (-1, 1), got {correlation}")


def _whitened(x: Array, correlation: float) -> Array:
    """z of x."""
    return jnp.concatenate([x[:1], (x[1:] - correlation * x[:-1]) / math.sqrt(1 - correlation**2)])


def _correlated(z: Array, correlation: float) -> Array:
    """x of z."""
    index = np.arange(z.size)
    factor = np.linalg.cholesky(np.power(float(correlation), np.abs(index[:, None] - index[None])))
    return jnp.matmul(jnp.asarray(factor, z.dtype), z, precision="highest")


def _log_det(dim: int, correlation: float) -> float:
    """log |dx / dz|."""
    return 0.5 * (dim - 1) * math.log(1 - correlation**2)
