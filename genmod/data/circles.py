"""Concentric rings: circles blurred by Gaussian noise, in closed form.

    x = R (cos t, sin t) + s e,   t ~ U[0, 2 pi],   R uniform on the radii,   e ~ N(0, I)

    p(x) = mean_R exp(-(|x| - R)^2 / (2 s^2)) I0e(|x| R / s^2) / (2 pi s^2)

with the scaled Bessel function I0e(z) = e^{-z} I_0(z). The angle is continuous, where
FFJORD's reference code places its points at equal steps.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e

from genmod.core.checks import check_positive
from genmod.core.event import Real
from genmod.core.types import Array, Context, Key, Params
from genmod.data.base import PLANE, Toy
from genmod.data.dataset import Dataset, from_density
from genmod.data.quadrature import bessel_i0e, entropy_1d, panels


@dataclasses.dataclass(frozen=True)
class Rings(Toy):
    """Circles about the origin, equally likely, with isotropic noise of sd `noise`."""

    radii: tuple[float, ...] = (3.0, 2.25, 1.5, 0.75)
    noise: float = 0.08

    def __post_init__(self):
        object.__setattr__(self, "radii", tuple(float(r) for r in self.radii))
        if not self.radii:
            raise ValueError("radii must hold at least one radius, got ()")
        check_positive(radii=min(self.radii), noise=self.noise)
        super().__post_init__()

    @property
    def event(self) -> Real:
        return PLANE

    def sample_one(self, params: Params, key: Key, context: Context = None) -> Array:
        key_ring, key_t, key_noise = jax.random.split(key, 3)
        t = jax.random.uniform(key_t, maxval=2 * math.pi)
        radius = jnp.asarray(self.radii, t.dtype)[jax.random.randint(key_ring, (), 0, len(self.radii))]
        return radius * jnp.stack([jnp.cos(t), jnp.sin(t)]) + self.noise * jax.random.normal(key_noise, (2,))

    def log_prob_one(self, params: Params, x: Array, context: Context = None, key: Key | None = None) -> Array:
        square = jnp.sum(jnp.square(x))
        # The gradient at the origin is 0 by symmetry, where sqrt alone gives nan.
        r = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        radii, variance = jnp.asarray(self.radii, x.dtype), self.noise**2
        terms = -0.5 * jnp.square(r - radii) / variance + jnp.log(i0e(r * radii / variance))
        return jax.nn.logsumexp(terms) - math.log(2 * math.pi * variance * len(self.radii))

    def exact_entropy(self) -> float:
        """-int_0^inf 2 pi r p(r) log p(r) dr by composite Gauss-Legendre."""
        r, weights = panels(0.0, max(self.radii) + 12 * self.noise, self.noise)
        radii, variance = np.asarray(self.radii), self.noise**2
        bessel = np.log(bessel_i0e(r[:, None] * radii / variance))
        terms = -0.5 * (r[:, None] - radii) ** 2 / variance + bessel
        log_p = np.logaddexp.reduce(terms, axis=1) - math.log(2 * math.pi * variance * len(radii))
        return entropy_1d(log_p, weights * 2 * math.pi * r)


def rings(key: Key, n: int, *, radii: tuple[float, ...] = (3.0, 2.25, 1.5, 0.75), noise: float = 0.08) -> Dataset:
    """Four concentric rings (Grathwohl et al. 2019, arXiv:1810.01367, its toy_data).

    Args:
      key: one typed key. n: the number of points to train on; a quarter of it each to validate and to test.
      radii: of the rings. noise: standard deviation of the blur.
    """
    return from_density("rings", Rings(radii, float(noise)), key, n)
