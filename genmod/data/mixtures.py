"""Mixtures of Gaussians and the funnel: log-densities in closed form.

    p(x) = sum_k w_k N(x; mu_k, sd_k^2 I)

Entropies are quadratures in one dimension, or in the plane for eight_gaussians,
because the other mixtures are products of one-dimensional ones:

    two_bumps       1-D mixture                          H by quadrature
    gaussian_grid   m(x_1) m(x_2), m of equal bumps      2 H(m)
    twonorm         a 1-D mixture times N(0, I_{d-1})    H(mixture) + (d - 1)/2 log 2 pi e
    funnel          Gaussian chain, closed form
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_positive
from genmod.core.event import Real
from genmod.core.types import Array, Context, Key, Params
from genmod.data.base import PLANE, Toy
from genmod.data.dataset import Dataset, from_density
from genmod.data.quadrature import blurred_points_entropy, mixture_entropy

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_GAUSSIAN_ENTROPY = 0.5 + _HALF_LOG_2PI  # of N(0, 1), nats


def _log_normal(x: Array, mean: Array | float, sd: Array | float) -> Array:
    return -0.5 * jnp.square((x - mean) / sd) - jnp.log(sd) - _HALF_LOG_2PI


@dataclasses.dataclass(frozen=True)
class TwoBumps(Toy):
    """sum_k w_k N(mu_k, sd_k^2) on the line; any number of bumps, event_shape (1,)."""

    weights: tuple[float, ...] = (0.5, 0.5)
    means: tuple[float, ...] = (-3.0, 3.0)
    sds: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self):
        for name in ("weights", "means", "sds"):  # lists and arrays become hashable
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if not len(self.weights) == len(self.means) == len(self.sds) >= 1:
            raise ValueError(
                f"weights, means and sds must be of one length, got {len(self.weights)}, {len(self.means)} and {len(self.sds)}"
            )
        if min(self.weights) < 0 or not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise ValueError(f"weights must be >= 0 and add up to 1, got {self.weights}; normalise them")
        check_positive(sds=min(self.sds))
        super().__post_init__()

    @property
    def event(self) -> Real:
        return Real((1,))

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_bump, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (1,))
        weights, means, sds = (jnp.asarray(v, noise.dtype) for v in (self.weights, self.means, self.sds))
        bump = jax.random.categorical(key_bump, jnp.log(weights), shape=(1,))
        return means[bump] + sds[bump] * noise

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        weights, means, sds = (jnp.asarray(v, x.dtype) for v in (self.weights, self.means, self.sds))
        return jax.nn.logsumexp(jnp.log(weights) + _log_normal(x, means, sds))

    def exact_entropy(self) -> float:
        """Composite Gauss-Legendre quadrature on the line."""
        return mixture_entropy(self.weights, self.means, self.sds)


@dataclasses.dataclass(frozen=True)
class EightGaussians(Toy):
    """(1/8) sum_k N(radius (cos k pi/4, sin k pi/4), sd^2 I) in the plane."""

    radius: float = 4 / 1.414
    sd: float = 0.5 / 1.414

    def __post_init__(self):
        check_positive(radius=self.radius, sd=self.sd)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return PLANE

    def centers(self) -> np.ndarray:
        """The modes, (8, 2)."""
        angle = np.arange(8) * math.pi / 4
        return self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_bump, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (2,))
        bump = jax.random.randint(key_bump, (), 0, 8)
        return jnp.asarray(self.centers(), noise.dtype)[bump] + self.sd * noise

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        terms = _log_normal(x[None], jnp.asarray(self.centers(), x.dtype), self.sd)
        return jax.nn.logsumexp(terms.sum(-1)) - math.log(8)

    def exact_entropy(self) -> float:
        """Trapezoid rule on a grid of spacing sd / 4."""
        return blurred_points_entropy(self.centers(), np.full(8, 1 / 8), self.sd)


@dataclasses.dataclass(frozen=True)
class GaussianGrid(Toy):
    """num x num equal Gaussians, `step` apart, centred on the origin of the plane."""

    num: int = 5
    step: float = 2.0
    sd: float = 0.05

    def __post_init__(self):
        check_positive(num=self.num, step=self.step, sd=self.sd)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return PLANE

    def centers(self) -> np.ndarray:
        """The modes, (num^2, 2)."""
        means = np.array(self._means())
        return np.stack(np.meshgrid(means, means), -1).reshape(-1, 2)

    def _means(self) -> tuple[float, ...]:
        return tuple(self.step * (i - (self.num - 1) / 2) for i in range(self.num))

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_bump, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (2,))
        bump = jax.random.randint(key_bump, (2,), 0, self.num)
        return jnp.asarray(self._means(), noise.dtype)[bump] + self.sd * noise

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        means = jnp.asarray(self._means(), x.dtype)
        axes = jax.nn.logsumexp(_log_normal(x[:, None], means[None], self.sd), axis=1)
        return axes.sum() - 2 * math.log(self.num)

    def exact_entropy(self) -> float:
        """Twice the quadrature of one axis."""
        return 2 * mixture_entropy((1 / self.num,) * self.num, self._means(), (self.sd,) * self.num)


@dataclasses.dataclass(frozen=True)
class TwoNorm(Toy):
    """1/2 N(a 1, I) + 1/2 N(-a 1, I) in `dim` dimensions, a = 2 / sqrt(dim)."""

    dim: int = 20

    def __post_init__(self):
        check_positive(dim=self.dim)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return Real((self.dim,))

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_class, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (self.dim,))
        sign = jax.random.rademacher(key_class, (), dtype=noise.dtype)
        return 2 / math.sqrt(self.dim) * sign + noise

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        a = 2 / math.sqrt(self.dim)
        classes = jnp.stack([_log_normal(x, a, 1.0).sum(), _log_normal(x, -a, 1.0).sum()])
        return jax.nn.logsumexp(classes) - math.log(2)

    def exact_entropy(self) -> float:
        """Along (1, ..., 1) a mixture of N(+-2, 1), by quadrature; N(0, 1) across it."""
        return mixture_entropy((0.5, 0.5), (-2.0, 2.0), (1.0, 1.0)) + (self.dim - 1) * _GAUSSIAN_ENTROPY


@dataclasses.dataclass(frozen=True)
class Funnel(Toy):
    """x = (v, x_1, ..., x_{dim-1}): v ~ N(0, sd^2), x_i | v ~ N(0, e^v)."""

    dim: int = 10
    sd: float = 3.0

    def __post_init__(self):
        check_positive(dim=self.dim - 1, sd=self.sd)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return Real((self.dim,))

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        noise = jax.random.normal(key, (self.dim,))
        v = self.sd * noise[:1]
        return jnp.concatenate([v, jnp.exp(v / 2) * noise[1:]])

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        v = x[0]
        rest = -0.5 * jnp.square(x[1:] * jnp.exp(-v / 2)) - v / 2 - _HALF_LOG_2PI
        return _log_normal(v, 0.0, self.sd) + rest.sum()

    def exact_entropy(self) -> float:
        """H(v) + E_v[H(x | v)] = dim/2 log 2 pi e + log sd, because E[v] = 0."""
        return self.dim * _GAUSSIAN_ENTROPY + math.log(self.sd)


def two_bumps(key: Key, n: int, *, weights=(0.5, 0.5), means=(-3.0, 3.0), sds=(1.0, 1.0)) -> Dataset:
    """A mixture of Gaussians on the line, events (1,).

    Args:
      key: one typed key. n: the number of points to train on; a quarter of it each to validate and to test.
      weights, means, sds: one number a bump.
    """
    return from_density("two_bumps", TwoBumps(weights, means, sds), key, n)


def eight_gaussians(key: Key, n: int, *, radius: float = 4 / 1.414, sd: float = 0.5 / 1.414) -> Dataset:
    """Eight Gaussians on a circle (Grathwohl et al. 2019, arXiv:1810.01367, its toy_data).

    Args:
      key: one typed key. n: the number of points to train on; a quarter of it each to validate and to test.
      radius: of the circle. sd: of each Gaussian.
    """
    return from_density("eight_gaussians", EightGaussians(radius, sd), key, n)


def gaussian_grid(key: Key, n: int, *, num: int = 5, step: float = 2.0, sd: float = 0.05) -> Dataset:
    """25 narrow Gaussians on a square grid (Dumoulin et al. 2017, arXiv:1606.00704; Srivastava et al. 2017, arXiv:1705.07761).

    Args:
      key: one typed key. n: the number of points to train on; a quarter of it each to validate and to test.
      num: Gaussians along a side of the grid. step: from one to the next. sd: of each.
    """
    return from_density("gaussian_grid", GaussianGrid(num, step, sd), key, n)


def twonorm(key: Key, n: int, *, dim: int = 20) -> Dataset:
    """Breiman's twonorm without its labels, events (dim,) (Breiman 1996)."""
    return from_density("twonorm", TwoNorm(dim), key, n)


def funnel(key: Key, n: int, *, dim: int = 10, sd: float = 3.0) -> Dataset:
    """Neal's funnel, events (dim,) = (v, x_1, ...) (Neal 2003).

    Args:
      key: one typed key. n: the number of points to train on; a quarter of it each to validate and to test.
      dim: of an event, v included. sd: of v.
    """
    return from_density("funnel", Funnel(dim, sd), key, n)
