"""Conditional probability paths from noise at t = 0 to data at t = 1, with the velocities that flow matching regresses on.

A path moves a point between x0, a draw of the source, and x1, a data point; its velocity is the time derivative at fixed
(x0, x1, noise), taken by autodiff:

    Gaussian path      x_t = mu_t(x1) + sigma_t(x1) x0,   x0 ~ N(0, I)          (one-sided: the source is the noise)
    interpolant        x_t = I_t(x0, x1) + gamma_t noise,  noise ~ N(0, I)       (two-sided: any source)

For a Gaussian path this is u_t(x | x1) = (sigma'_t / sigma_t) (x - mu_t) + mu'_t (Lipman et al. 2022, arXiv:2210.02747,
theorem 3). Regressing on it in the mean over (x0, x1, t) leaves the marginal velocity, whose flow carries the source to the
data.
"""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_parts, check_positive, check_times
from genmod.core.description import Description
from genmod.core.types import Array
from genmod.denoising.schedules import Schedule


class Path(Description, abc.ABC):
    """A conditional path of one event. Subclasses say where the point is; the velocity follows.

    Attributes:
      times: the range of t to train on; a velocity may be singular at an end.
      noisy: whether the noise matters.
    """

    times: tuple[float, float] = (0.0, 1.0)
    noisy: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_times(self.times)

    @property
    @abc.abstractmethod
    def source_scale(self) -> float | None:
        """Standard deviation of the normal source that the path takes for granted; None: any source will do."""

    @abc.abstractmethod
    def interpolate(self, t: Array, x0: Array, x1: Array, noise: Array) -> Array:
        """The point x_t of ONE pair.

        Args:
          t: the time, a scalar.
          x0: the draw of the source. x1: the datum. noise: N(0, I), for paths that are `noisy`; all of event shape.
        """

    def sizes(self, t: Array) -> tuple[Array, Array]:
        """(point, velocity): the root mean squares of x_t and of its velocity for data of unit variance, of the shape of t, by
        which a field is scaled and its error weighed; 1 on paths that stay about there."""
        return jnp.ones_like(t), jnp.ones_like(t)

    def point_and_velocity(self, t: Array, x0: Array, x1: Array, noise: Array) -> tuple[Array, Array]:
        """(x_t, d x_t / dt) of ONE pair; the arguments are those of `interpolate`."""
        return jax.jvp(lambda t: self.interpolate(t, x0, x1, noise), (t,), (jnp.ones_like(t),))


class GaussianPath(Path, abc.ABC):
    """N(mu_t(x1), sigma_t(x1)^2), from N(0, source_scale^2) to the data."""

    @abc.abstractmethod
    def mean(self, t: Array, x1: Array) -> Array:
        """mu_t(x1), event shape."""

    @abc.abstractmethod
    def scale(self, t: Array, x1: Array) -> Array:
        """sigma_t(x1), a scalar or event shape."""

    @property
    def source_scale(self):
        return 1.0

    def interpolate(self, t, x0, x1, noise):
        return self.mean(t, x1) + self.scale(t, x1) * (x0 / self.source_scale)

    def conditional_velocity(self, t: Array, x: Array, x1: Array) -> Array:
        """u_t(x | x1) of one event; singular where sigma_t = 0."""
        one = jnp.ones_like(t)
        mean, mean_rate = jax.jvp(lambda t: self.mean(t, x1), (t,), (one,))
        scale, scale_rate = jax.jvp(lambda t: jnp.broadcast_to(self.scale(t, x1), x.shape), (t,), (one,))
        return scale_rate / scale * (x - mean) + mean_rate


@dataclasses.dataclass(frozen=True)
class OptimalTransport(GaussianPath):
    """mu = t x1, sigma = 1 - (1 - sigma_min) t: straight lines at constant speed (Lipman et al. 2022, eqs. 20-22)."""

    sigma_min: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check(0 <= self.sigma_min < 1, f"sigma_min must be in [0, 1), got {self.sigma_min}")

    def mean(self, t, x1):
        return t * x1

    def scale(self, t, x1):
        return 1.0 - (1.0 - self.sigma_min) * t


@dataclasses.dataclass(frozen=True)
class Scheduled(GaussianPath):
    """A diffusion run backwards: mu = alpha(1 - t) x1, sigma = sigma(1 - t) of a schedule (Lipman et al. 2022, eqs. 15-19).

    schedule: a `gm.denoising.Schedule`; the source is its N(0, prior_scale^2). times: None for those of the schedule, whose
    ends may be singular.
    """

    schedule: Schedule
    times: tuple[float, float] | None = None  # type: ignore[assignment]

    def __post_init__(self):
        check_parts(self, schedule=Schedule)
        if self.times is None:
            low, high = self.schedule.times
            object.__setattr__(self, "times", (1.0 - high, 1.0 - low))
        super().__post_init__()

    @property
    def source_scale(self):
        return self.schedule.prior_scale

    def mean(self, t, x1):
        return self.schedule.alpha(1.0 - t) * x1

    def scale(self, t, x1):
        return self.schedule.sigma(1.0 - t)

    def sizes(self, t):
        if self.source_scale == 1.0:  # variance is about kept: weighed by its speed, the end at the data would count too little
            return super().sizes(t)
        # An ODE is solved up to ends at which the rates may be infinite.
        u = jnp.clip(1.0 - t, *self.schedule.times)
        alpha_rate, sigma_rate = self.schedule.rates(u)
        return jnp.hypot(self.schedule.alpha(u), self.schedule.sigma(u)), jnp.hypot(alpha_rate, sigma_rate)


@dataclasses.dataclass(frozen=True)
class CustomGaussian(GaussianPath):
    """A Gaussian path of your own: `mean_fn(t, x1)` and `scale_fn(t, x1)`, with scale 1 and mean about 0 at t = 0.

    Pass module-level functions: equal paths are then equal descriptions, and nothing is compiled twice.
    """

    mean_fn: Callable[[Array, Array], Array]
    scale_fn: Callable[[Array, Array], Array]
    times: tuple[float, float] = (0.0, 1.0)

    def mean(self, t, x1):
        return self.mean_fn(t, x1)

    def scale(self, t, x1):
        return self.scale_fn(t, x1)


@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """x_t = (1 - t) x0 + t x1 + sigma noise, velocity x1 - x0, from any source.

    Conditional flow matching (Tong et al. 2023, arXiv:2302.00482, eqs. 14-15); with sigma = 0 rectified flow (Liu et al. 2022,
    arXiv:2209.03003, eq. 1). With sigma > 0 the flow ends at the data blurred by that much.
    """

    sigma: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check(self.sigma >= 0, f"sigma must be >= 0, got {self.sigma}")

    @property
    def noisy(self):
        return self.sigma > 0

    @property
    def source_scale(self):
        return None

    def interpolate(self, t, x0, x1, noise):
        return (1.0 - t) * x0 + t * x1 + (self.sigma * noise if self.noisy else 0.0)


@dataclasses.dataclass(frozen=True)
class Trigonometric(Path):
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) x1: the variance is kept where both ends have the same (Albergo &
    Vanden-Eijnden 2022, arXiv:2209.15571, eq. 5)."""

    @property
    def source_scale(self):
        return None

    def interpolate(self, t, x0, x1, noise):
        return jnp.cos(0.5 * jnp.pi * t) * x0 + jnp.sin(0.5 * jnp.pi * t) * x1


@dataclasses.dataclass(frozen=True)
class BrownianBridge(Path):
    """x_t = (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) noise: with entropic pairs the Schroedinger bridge (Tong et al.
    2023, arXiv:2302.00482, sec. 3.2.4). Its velocity is singular at both ends, where training stops short."""

    sigma: float = 0.5
    times: tuple[float, float] = (1e-3, 1.0 - 1e-3)
    noisy = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(sigma=self.sigma)

    @property
    def source_scale(self):
        return None

    def interpolate(self, t, x0, x1, noise):
        return (1.0 - t) * x0 + t * x1 + self.sigma * jnp.sqrt(t * (1.0 - t)) * noise


@dataclasses.dataclass(frozen=True)
class CustomInterpolant(Path):
    """A stochastic interpolant of your own, x_t = `mean_fn(t, x0, x1)` + `scale_fn(t)` noise (Albergo et al. 2023,
    arXiv:2303.08797, def. 1): mean_fn is x0 at t = 0 and x1 at t = 1, scale_fn is 0 at both. None: no noise."""

    mean_fn: Callable[[Array, Array, Array], Array]
    scale_fn: Callable[[Array], Array] | None = None
    times: tuple[float, float] = (0.0, 1.0)

    @property
    def noisy(self):
        return self.scale_fn is not None

    @property
    def source_scale(self):
        return None

    def interpolate(self, t, x0, x1, noise):
        mean = self.mean_fn(t, x0, x1)
        return mean if self.scale_fn is None else mean + self.scale_fn(t) * noise
