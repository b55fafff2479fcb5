"""DDPM's chains of discrete steps, seen as schedules in continuous time."""

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from genmod.core.checks import check, check_count
from genmod.core.numerics import real
from genmod.denoising.schedules.base import Schedule
from genmod.denoising.schedules.continuous import VariancePreserving


class Discrete(Schedule, abc.ABC):
    """DDPM's chain of T steps, q(x_i | x_i-1) = N(sqrt(1 - beta_i) x_i-1, beta_i), seen at t = i / T.

    alpha(i / T)^2 = prod_j<=i (1 - beta_j), the alpha-bar of Ho et al. 2020, arXiv:2006.11239, eq. 4. Between the steps its
    logarithm is a monotone cubic of continuous slope (Fritsch & Carlson 1980, 10.1137/0717021), so that solvers of any step see
    a smooth process. `times` starts at the first step. T: `num_steps` >= 2.
    """

    num_steps: int

    def __post_init__(self):
        check_count(num_steps=self.num_steps)
        check(self.num_steps > 1, f"num_steps must be at least 2, got {self.num_steps}")
        super().__post_init__()
        betas = np.asarray(self.betas())
        check(betas.shape == (self.num_steps,), f"betas() must return num_steps={self.num_steps} numbers, got {betas.shape}")
        check(((betas > 0) & (betas < 1)).all(), f"the betas must lie in (0, 1), got {betas.min()} to {betas.max()}")

    @property
    def times(self):
        return 1.0 / self.num_steps, 1.0

    @abc.abstractmethod
    def betas(self) -> np.ndarray:
        """beta_1 .. beta_T, in float64."""

    def alpha(self, t):
        return jnp.exp(0.5 * self._log_alpha_bar(t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(self._log_alpha_bar(t)))

    def _log_alpha_bar(self, t):
        place = real(t) * self.num_steps
        step = jnp.clip(jax.lax.stop_gradient(place).astype(int), 0, self.num_steps - 1)
        cubic, square, slope, value = jnp.asarray(_cubics(self), place.dtype)[:, step]
        u = place - step
        return ((cubic * u + square) * u + slope) * u + value


@functools.lru_cache(maxsize=64)
def _cubics(schedule: Discrete) -> np.ndarray:
    """Coefficients of log alpha-bar in the steps since i, (4, T), highest power first."""
    values = np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray(schedule.betas())))])
    return PchipInterpolator(np.arange(len(values)), values).c


@dataclasses.dataclass(frozen=True)
class LinearBetas(Discrete):
    """beta_i linear from `first` to `last` (Ho et al. 2020, sec. 4). As T grows: `VariancePreserving(T first, T last)`."""

    num_steps: int = 1_000
    first: float = 1e-4
    last: float = 0.02

    def betas(self):
        return np.linspace(self.first, self.last, self.num_steps)

    def continuous_limit(self) -> VariancePreserving:
        """The SDE of which this is a discretisation, beta(t) = T beta_i (Song et al. 2021, app. B)."""
        return VariancePreserving(self.num_steps * self.first, self.num_steps * self.last)


@dataclasses.dataclass(frozen=True)
class CosineBetas(Discrete):
    """alpha-bar_i = cos^2(pi/2 (i/T + offset) / (1 + offset)), up to a constant, and no beta above `largest` (Nichol &
    Dhariwal 2021, arXiv:2102.09672, eq. 17)."""

    num_steps: int = 1_000
    offset: float = 0.008
    largest: float = 0.999

    def betas(self):
        angle = 0.5 * np.pi * (np.linspace(0.0, 1.0, self.num_steps + 1) + self.offset) / (1.0 + self.offset)
        alpha_bar = np.cos(angle) ** 2
        return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], self.largest)
