"""Schedules in continuous time."""

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from genmod.core.checks import check, check_function, check_positive
from genmod.core.types import Array
from genmod.denoising.schedules.base import Schedule, check_schedule


@dataclasses.dataclass(frozen=True)
class _LinearBeta(Schedule, abc.ABC):
    """alpha = exp(-B(t) / 2), B = beta_min t + (beta_max - beta_min) t^2 / 2: f = -beta / 2, beta linear in t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        super().__post_init__()
        check(
            0 < self.beta_min <= self.beta_max < math.inf, f"wants 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}"
        )

    def alpha(self, t):
        return jnp.exp(-0.5 * self._integral(t))

    def _integral(self, t: Array) -> Array:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2


@dataclasses.dataclass(frozen=True)
class VariancePreserving(_LinearBeta):
    """alpha = exp(-B(t) / 2), sigma^2 = 1 - alpha^2, B = beta_min t + (beta_max - beta_min) t^2 / 2: f = -beta / 2, g^2 = beta.

    (Song et al. 2021, arXiv:2011.13456, eqs. 32-33.) sigma' is infinite at t = 0, where training and sampling stop short; at
    t = 1 a little of the data is left (alpha = 0.0066 for the defaults).
    """

    times: tuple[float, float] = (1e-4, 1.0)

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))


@dataclasses.dataclass(frozen=True)
class SubVariancePreserving(_LinearBeta):
    """alpha as `VariancePreserving`, sigma = 1 - alpha^2: less noise on the way (Song et al. 2021, app. B, eq. 29)."""

    times: tuple[float, float] = (1e-3, 1.0)

    def sigma(self, t):
        return -jnp.expm1(-self._integral(t))


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(u), sigma = sin(u), u linear in t: lambda = -2 log tan u (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17).

    u runs between the angles at which lambda is `log_snr_max` and `log_snr_min` (Hoogeboom et al. 2023, arXiv:2301.11093,
    sec. 3.1), so that no end is singular.
    """

    log_snr_max: float = 13.0
    log_snr_min: float = -13.0

    def __post_init__(self):
        super().__post_init__()
        ends = self.log_snr_min, self.log_snr_max
        check(
            -math.inf < ends[0] < ends[1] < math.inf,
            f"wants log_snr_min < log_snr_max, got {ends[0]}, {ends[1]}: the noise must grow with t",
        )

    def alpha(self, t):
        return jnp.cos(self._angle(t))

    def sigma(self, t):
        return jnp.sin(self._angle(t))

    def _angle(self, t):
        begin, end = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in (self.log_snr_max, self.log_snr_min))
        return begin + (end - begin) * t


@dataclasses.dataclass(frozen=True)
class _Exploding(Schedule, abc.ABC):
    """alpha = 1: noise is added between sigma_min and sigma_max."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self):
        super().__post_init__()
        low, high = self.sigma_min, self.sigma_max
        check(0 < low < high < math.inf, f"wants 0 < sigma_min < sigma_max, got {low}, {high}: the noise must grow with t")

    @property
    def prior_scale(self):
        return self.sigma_max

    def alpha(self, t):
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class VarianceExploding(_Exploding):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t: f = 0, g^2 = d sigma^2 / dt (Song et al. 2021, app. C).

    `sigma_max` should be about the largest distance between two data points (Song & Ermon 2020, arXiv:2006.09011, sec. 3.1).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def sigma(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@dataclasses.dataclass(frozen=True)
class EDM(_Exploding):
    """alpha = 1, sigma^(1 / rho) linear in t between sigma_min and sigma_max (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(rho=self.rho)

    def sigma(self, t):
        low, high = (sigma ** (1.0 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return (low + (high - low) * t) ** self.rho


@dataclasses.dataclass(frozen=True)
class Straight(Schedule):
    """alpha = 1 - t, sigma = t: the lines of rectified flow, with diffusion's time (Liu et al. 2022, arXiv:2209.03003)."""

    times: tuple[float, float] = (1e-3, 1.0 - 1e-3)

    def alpha(self, t):
        return 1.0 - t

    def sigma(self, t):
        return t + 0.0


@dataclasses.dataclass(frozen=True)
class CustomSchedule(Schedule):
    """A schedule of your own.

    Attributes:
      alpha_fn, sigma_fn: functions of t, elementwise.
      times: the range in which times are trained on and sampled.
      prior_scale: standard deviation of the noise at the high end.

    Pass functions of a module: equal schedules are then equal descriptions, and nothing is compiled twice. Functions that close
    over traced parameters make a schedule that is learned (Kingma et al. 2021, arXiv:2107.00630, sec. 4.1), within the trace.
    Raises ValueError for a prior_scale that is off by more than a factor of two, where alpha or sigma is not positive inside
    `times`, and where the signal-to-noise ratio does not fall.
    """

    alpha_fn: Callable[[Array], Array]
    sigma_fn: Callable[[Array], Array]
    times: tuple[float, float] = (0.0, 1.0)
    prior_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_function(alpha_fn=self.alpha_fn, sigma_fn=self.sigma_fn)
        check_positive(prior_scale=self.prior_scale)
        check_schedule(self)
        with jax.ensure_compile_time_eval():
            sigma = self.sigma(jnp.asarray(self.times[1], float))
        if not isinstance(sigma, Tracer) and not 0.5 <= self.prior_scale / float(sigma) <= 2.0:
            raise ValueError(f"prior_scale={self.prior_scale} is not that of the noise at t = {self.times[1]}, sigma = {sigma}")

    def alpha(self, t):
        return self.alpha_fn(t)

    def sigma(self, t):
        return self.sigma_fn(t)
