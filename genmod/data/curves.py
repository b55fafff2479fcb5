"""Curves in the plane, blurred by Gaussian noise.

    x = c(u) + sd e,   u ~ w,   e ~ N(0, I):    p(x) = int w(u) N(x; c(u), sd^2 I) du

The integral is a sum over static nodes: composite Gauss-Legendre with panels no
longer than 5 sd of arc length, 16 nodes each, then log-sum-exp: 1e-8 relative near the
curve, 1e-5 at 300 sd from it (float32 rounding comes on top). So log_prob stays
finite and right far from the curve. The nodes are spread in a parameter of nearly
constant speed. The curve parameter is continuous, where the reference code of
two_moons places its points at equal steps.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from genmod.core.checks import check_positive
from genmod.core.event import Real
from genmod.core.types import Array, Context, Key, Params
from genmod.data.base import PLANE, Toy
from genmod.data.dataset import Dataset, from_density
from genmod.data.quadrature import Floats, blurred_points_entropy, grid_entropy, panels, square_grid

_PANEL = 5.0  # panel length in units of sd
_GRADING = 1  # shorter panels at the ends
_JITTER = 0.5 / 3  # side of the square of uniform jitter of two_spirals

# A gradient computes a point again instead of keeping what each of its nodes needs: 4.8 GB for 100,000 points of two_spirals.
_forgetful = functools.partial(jax.checkpoint, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class TwoMoons(Toy):
    """Two half circles: (cos t, sin t) and (1 - cos t, 1/2 - sin t), t ~ U[0, pi].

    scikit-learn's make_moons: unit radius, isotropic noise of standard deviation `noise`.
    """

    noise: float = 0.05

    def __post_init__(self):
        check_positive(noise=self.noise)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return PLANE

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_t, key_moon, key_noise = jax.random.split(key, 3)
        t = jax.random.uniform(key_t, maxval=math.pi)
        upper = jnp.stack([jnp.cos(t), jnp.sin(t)])
        lower = jnp.stack([1 - jnp.cos(t), 0.5 - jnp.sin(t)])
        curve = jnp.where(jax.random.bernoulli(key_moon), upper, lower)
        return curve + self.noise * jax.random.normal(key_noise, (2,))

    @_forgetful
    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        return _blurred_log_density(x, *_moon_nodes(self), self.noise)

    def exact_entropy(self) -> float:
        """Trapezoid rule on a grid of spacing noise / 4."""
        return blurred_points_entropy(*_moon_nodes(self), self.noise)


@dataclasses.dataclass(frozen=True)
class SwissRoll(Toy):
    """(t cos t, t sin t) / 5 with t ~ U[3 pi / 2, 9 pi / 2], noise of sd noise / 5.

    scikit-learn's make_swiss_roll with columns 0 and 2 kept, then divided by 5.
    """

    noise: float = 1.0

    def __post_init__(self):
        check_positive(noise=self.noise)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return PLANE

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_t, key_noise = jax.random.split(key)
        t = jax.random.uniform(key_t, minval=1.5 * math.pi, maxval=4.5 * math.pi)
        curve = jnp.stack([t * jnp.cos(t), t * jnp.sin(t)])
        return (curve + self.noise * jax.random.normal(key_noise, (2,))) / 5

    @_forgetful
    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        return _blurred_log_density(x, *_roll_nodes(self), self.noise / 5)

    def exact_entropy(self) -> float:
        """Trapezoid rule on a grid of spacing sd / 4."""
        return blurred_points_entropy(*_roll_nodes(self), self.noise / 5)


@dataclasses.dataclass(frozen=True)
class TwoSpirals(Toy):
    """x = +-(d / 3) + noise e, d = (-cos(n) n, sin(n) n) + U[0, 1/2]^2, n = 3 pi sqrt(U).

    FFJORD's 2spirals: the second spiral is the first reflected in the origin, jitter
    included. Per coordinate, jitter and noise together have the density
    [Phi((y + w/2) / noise) - Phi((y - w/2) / noise)] / w, w = 1/6, about their centre.
    """

    noise: float = 0.1

    def __post_init__(self):
        check_positive(noise=self.noise)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return PLANE

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_n, key_jitter, key_arm, key_noise = jax.random.split(key, 4)
        n = 3 * math.pi * jnp.sqrt(jax.random.uniform(key_n))
        d = jnp.stack([-jnp.cos(n) * n, jnp.sin(n) * n]) + jax.random.uniform(key_jitter, (2,), maxval=0.5)
        sign = jax.random.rademacher(key_arm, (), dtype=d.dtype)
        return sign * d / 3 + self.noise * jax.random.normal(key_noise, (2,))

    @_forgetful
    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        centres, weights = _spiral_nodes(self)
        y = jnp.abs(x[None] - jnp.asarray(centres, x.dtype))
        # Both tails are taken on the negative side, where log_ndtr is accurate.
        near = log_ndtr((_JITTER / 2 - y) / self.noise)
        far = log_ndtr((-_JITTER / 2 - y) / self.noise)
        kernel = near + jnp.log1p(-jnp.exp(far - near)) - math.log(_JITTER)
        return jax.nn.logsumexp(jnp.asarray(np.log(weights), x.dtype) + kernel.sum(-1))

    def exact_entropy(self) -> float:
        """Trapezoid rule on a grid of spacing noise / 3."""
        centres, weights = _spiral_nodes(self)
        axes = square_grid(centres, 9 * self.noise + _JITTER, self.noise / 3)
        half, scale = _JITTER / 2, self.noise * math.sqrt(2)
        erf = np.vectorize(math.erf)

        def kernel(offset: Floats) -> Floats:
            return (erf((offset + half) / scale) - erf((offset - half) / scale)) / (2 * _JITTER)

        a, b = (kernel(axis - c[:, None]) for axis, c in zip(axes, centres.T, strict=True))
        return grid_entropy(a, b, weights, self.noise / 3)


def _blurred_log_density(x: Array, centres: Floats, weights: Floats, sd: float) -> Array:
    """log sum_k w_k N(x; c_k, sd^2 I) for one x (2,), centres (k, 2), weights (k,)."""
    square = jnp.sum(jnp.square((x[None] - jnp.asarray(centres, x.dtype)) / sd), axis=-1)
    log_weights = jnp.asarray(np.log(weights), x.dtype)
    return jax.nn.logsumexp(log_weights - 0.5 * square) - math.log(2 * math.pi * sd**2)


@functools.lru_cache(maxsize=32)
def _moon_nodes(toy: TwoMoons) -> tuple[Floats, Floats]:
    t, weights = panels(0.0, math.pi, _PANEL * toy.noise, _GRADING)
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    return np.concatenate([upper, lower]), np.tile(weights / (2 * math.pi), 2)


@functools.lru_cache(maxsize=32)
def _roll_nodes(toy: SwissRoll) -> tuple[Floats, Floats]:
    # v = t^2 / 2 has almost constant speed: |dc/dv| = sqrt(1 + 1 / t^2) / 5 < 1.03 / 5.
    lower, upper = 1.5 * math.pi, 4.5 * math.pi
    v, weights = panels(lower**2 / 2, upper**2 / 2, _PANEL * toy.noise / 1.03, _GRADING)
    t = np.sqrt(2 * v)
    return np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 5, weights / (t * (upper - lower))


@functools.lru_cache(maxsize=32)
def _spiral_nodes(toy: TwoSpirals) -> tuple[Floats, Floats]:
    # v = n^2 / 2 + n is smooth at n = 0, and |dc/dv| = sqrt(1 + n^2) / (1 + n) / 3 <= 1 / 3.
    upper = 3 * math.pi
    v, weights = panels(0.0, upper**2 / 2 + upper, 3 * _PANEL * toy.noise, _GRADING)
    n = np.sqrt(1 + 2 * v) - 1
    centres = np.stack([-np.cos(n) * n, np.sin(n) * n], axis=1) / 3 + _JITTER / 2
    weights = weights / (1 + n) * n / upper**2  # half of the density 2 n / upper^2 of n
    return np.concatenate([centres, -centres]), np.tile(weights, 2)


def two_moons(key: Key, n: int, *, noise: float = 0.05) -> Dataset:
    """Two interleaved half circles with the geometry of scikit-learn's make_moons."""
    return from_density("two_moons", TwoMoons(float(noise)), key, n)


def swiss_roll(key: Key, n: int, *, noise: float = 1.0) -> Dataset:
    """A spiral roll in the plane (Grathwohl et al. 2019, arXiv:1810.01367, its toy_data)."""
    return from_density("swiss_roll", SwissRoll(float(noise)), key, n)


def two_spirals(key: Key, n: int, *, noise: float = 0.1) -> Dataset:
    """Two entwined spirals (Grathwohl et al. 2019, arXiv:1810.01367, its toy_data)."""
    return from_density("two_spirals", TwoSpirals(float(noise)), key, n)
