"""Noise schedules: how data turn into noise between t = 0 (data) and t = 1 (noise).

    x_t = alpha(t) x_0 + sigma(t) eps,  eps ~ N(0, I)                       the marginal given x_0
    x_t = a x_s + v eps,  a = alpha_t / alpha_s,  v^2 = sigma_t^2 - a^2 sigma_s^2,  s < t        the transition
    dx  = f(t) x dt + g(t) dw,  f = alpha' / alpha,  g^2 = 2 sigma sigma' - 2 f sigma^2          the forward SDE
    lambda(t) = 2 log(alpha / sigma), the log signal-to-noise ratio, falls with t, and g^2 = -sigma^2 lambda'

(Song et al. 2021, arXiv:2011.13456, sec. 3; Kingma et al. 2021, arXiv:2107.00630, sec. 3.) A schedule says alpha and sigma;
the rest follows by autodiff. Times may be arrays: everything here is elementwise.

What a network predicts at x_t is always a combination of the two unknowns, p x_0 + q eps, so that one formula converts
between all kinds (`convert`):

    x0        p = 1,          q = 0
    eps       p = 0,          q = 1
    score     p = 0,          q = -1 / sigma           the score of p(x_t | x_0); its mean is the score of p(x_t)
    v         p = -sigma,     q = alpha                Salimans & Ho 2022, arXiv:2202.00512, app. D
    velocity  p = alpha',     q = sigma'               dx/dt of the probability flow, with diffusion's time; flow matching's is
                                                       its negative, as its time runs the other way
    edm       p = r / (d S),  q = -d / S               r = sigma / alpha, S^2 = r^2 + d^2, d the `data_scale`: what EDM's network
                                                       sees (Karras et al. 2022, arXiv:2206.00364, eq. 7), v up to sign for d = 1
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from genmod.base import Array, Description, Shape, check_positive
from genmod.densities import Normal

Kind = Literal["x0", "eps", "score", "v", "velocity", "edm"]
KINDS: tuple[Kind, ...] = ("x0", "eps", "score", "v", "velocity", "edm")


class Schedule(Description, abc.ABC):
    """alpha and sigma of t in [0, 1].

    Attributes:
      times: (low, high), the range in which times are trained on and sampled: a schedule may be singular at an end.
      prior_scale: standard deviation of the noise at t = 1 from which samplers start.
    """

    times: tuple[float, float] = (0.0, 1.0)
    prior_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        in_order = len(self.times) == 2 and 0 <= self.times[0] < self.times[1] <= 1
        _check(in_order, f"times must be (low, high) with 0 <= low < high <= 1, got {self.times}")

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """The factor of the data, of the shape of t."""

    @abc.abstractmethod
    def sigma(self, t: Array) -> Array:
        """The standard deviation of the noise, of the shape of t."""

    def rates(self, t: Array) -> tuple[Array, Array]:
        """(alpha', sigma')."""
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]

    def log_snr(self, t: Array) -> Array:
        """lambda = 2 log(alpha / sigma)."""
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def log_snr_rate(self, t: Array) -> Array:
        """lambda' < 0."""
        return jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))[1]

    def drift(self, t: Array) -> Array:
        """f of the forward SDE."""
        return self.rates(t)[0] / self.alpha(t)

    def diffusion(self, t: Array) -> Array:
        """g >= 0 of the forward SDE."""
        alpha_rate, sigma_rate = self.rates(t)
        sigma = self.sigma(t)
        return jnp.sqrt(jnp.maximum(2.0 * sigma * (sigma_rate - alpha_rate / self.alpha(t) * sigma), 0.0))

    def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
        """(a, v) of x_t = a x_s + v eps, s <= t."""
        scale = self.alpha(t) / self.alpha(s)
        return scale, jnp.sqrt(jnp.maximum(self.sigma(t) ** 2 - (scale * self.sigma(s)) ** 2, 0.0))

    def perturb(self, t: Array, x0: Array, eps: Array) -> Array:
        """x_t of one event at one time."""
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def prior(self, event_shape: Shape) -> Normal:
        """N(0, prior_scale^2), from which samplers start."""
        return Normal(event_shape, self.prior_scale)

    def time(self, log_snr: Array) -> Array:
        """The t in `times` at which lambda(t) = log_snr, by bisection to rounding; an end where there is none."""
        log_snr = jnp.asarray(log_snr)
        low, high = (jnp.full_like(log_snr, end) for end in self.times)

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            before = self.log_snr(middle) > log_snr  # lambda falls: the time lies further on
            return jnp.where(before, middle, low), jnp.where(before, high, middle)

        low, high = jax.lax.fori_loop(0, jnp.finfo(log_snr.dtype).nmant + 8, halve, (low, high))
        return 0.5 * (low + high)


def convert(
    schedule: Schedule, t: Array, x: Array, value: Array, source: Kind, target: Kind, *, data_scale: float = 1.0
) -> Array:
    """What `value`, a prediction of kind `source` at the event x and the time t, says of kind `target`.

    Solves [x; value] = [[alpha, sigma], [p, q]] [x0; eps] for (x0, eps). Raises ValueError for an unknown kind.
    """
    _check_kinds(source=source, target=target)
    _check(jnp.shape(value) == jnp.shape(x), f"a prediction must have the shape of x, {jnp.shape(x)}, got {jnp.shape(value)}")
    if source == target:
        return value
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = _weights(schedule, t, source, data_scale)
    determinant = alpha * q - sigma * p
    x0 = (q * x - sigma * value) / determinant
    eps = (alpha * value - p * x) / determinant
    p, q = _weights(schedule, t, target, data_scale)
    return p * x0 + q * eps


def target_of(schedule: Schedule, t: Array, x0: Array, eps: Array, kind: Kind, *, data_scale: float = 1.0) -> Array:
    """p x0 + q eps: what a predictor of this kind regresses on, for one event."""
    _check_kinds(kind=kind)
    p, q = _weights(schedule, t, kind, data_scale)
    return p * x0 + q * eps


def noise_error(schedule: Schedule, t: Array, kind: Kind, *, data_scale: float = 1.0) -> Array:
    """|d eps / d prediction| at a fixed x_t: what an error of this kind is as an error of eps."""
    _check_kinds(kind=kind)
    alpha = schedule.alpha(t)
    p, q = _weights(schedule, t, kind, data_scale)
    return jnp.abs(alpha / (alpha * q - schedule.sigma(t) * p))


def _weights(schedule: Schedule, t: Array, kind: Kind, data_scale: float) -> tuple[Array, Array]:
    """(p, q) of the table above."""
    one, zero = jnp.ones_like(t), jnp.zeros_like(t)
    if kind == "x0":
        return one, zero
    if kind == "eps":
        return zero, one
    if kind == "velocity":
        return schedule.rates(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "score":
        return zero, -1.0 / sigma
    if kind == "v":
        return -sigma, alpha
    size = jnp.sqrt(sigma**2 + (alpha * data_scale) ** 2)
    return sigma / (data_scale * size), -data_scale * alpha / size


def _check_kinds(**kinds: str) -> None:
    for name, kind in kinds.items():
        _check(kind in KINDS, f"{name} must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Schedule):
    """alpha = exp(-B(t) / 2), sigma^2 = 1 - alpha^2, B = beta_min t + (beta_max - beta_min) t^2 / 2: f = -beta / 2, g^2 = beta.

    (Song et al. 2021, arXiv:2011.13456, eqs. 32-33.) sigma' is infinite at t = 0, where training and sampling stop short; at
    t = 1 a little of the data is left (alpha = 0.0066 for the defaults).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    times: tuple[float, float] = (1e-4, 1.0)

    def __post_init__(self):
        super().__post_init__()
        _check(0 < self.beta_min <= self.beta_max, f"wants 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}")

    def alpha(self, t):
        return jnp.exp(-0.5 * _beta_integral(self, t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-_beta_integral(self, t)))


@dataclasses.dataclass(frozen=True)
class SubVariancePreserving(Schedule):
    """alpha as `VariancePreserving`, sigma = 1 - alpha^2: less noise on the way (Song et al. 2021, app. B, eq. 29)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    times: tuple[float, float] = (1e-3, 1.0)

    def __post_init__(self):
        super().__post_init__()
        _check(0 < self.beta_min <= self.beta_max, f"wants 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}")

    def alpha(self, t):
        return jnp.exp(-0.5 * _beta_integral(self, t))

    def sigma(self, t):
        return -jnp.expm1(-_beta_integral(self, t))


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
        _check(ends[0] < ends[1], f"wants log_snr_min < log_snr_max, got {ends[0]}, {ends[1]}: the noise must grow with t")

    def alpha(self, t):
        return jnp.cos(self._angle(t))

    def sigma(self, t):
        return jnp.sin(self._angle(t))

    def _angle(self, t):
        begin, end = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in (self.log_snr_max, self.log_snr_min))
        return begin + (end - begin) * t


@dataclasses.dataclass(frozen=True)
class VarianceExploding(Schedule):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t: f = 0, g^2 = d sigma^2 / dt (Song et al. 2021, app. C).

    `sigma_max` should be about the largest distance between two data points (Song & Ermon 2020, arXiv:2006.09011, sec. 3.1).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        _check_noise(self)

    @property
    def prior_scale(self):
        return self.sigma_max

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


@dataclasses.dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma^(1 / rho) linear in t between sigma_min and sigma_max (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        _check_noise(self)
        _check(self.rho > 0, f"rho must be > 0, got {self.rho}")

    @property
    def prior_scale(self):
        return self.sigma_max

    def alpha(self, t):
        return jnp.ones_like(t)

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


class Discrete(Schedule, abc.ABC):
    """DDPM's chain of T steps, q(x_i | x_i-1) = N(sqrt(1 - beta_i) x_i-1, beta_i), seen at t = i / T.

    alpha(i / T)^2 = prod_j<=i (1 - beta_j), the alpha-bar of Ho et al. 2020, arXiv:2006.11239, eq. 4; between the steps its
    logarithm is linear in t. `times` starts at the first step. T: `num_steps`.
    """

    num_steps: int

    def __post_init__(self):
        check_positive(num_steps=self.num_steps)
        super().__post_init__()
        betas = self.betas()
        _check(bool(((betas > 0) & (betas < 1)).all()), f"the betas must lie in (0, 1), got {betas.min()} to {betas.max()}")

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
        table = np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas()))])
        return jnp.interp(t, np.linspace(0.0, 1.0, self.num_steps + 1), table).astype(t.dtype)


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


@dataclasses.dataclass(frozen=True)
class Custom(Schedule):
    """A schedule of your own: `alpha_fn(t)` and `sigma_fn(t)`, elementwise.

    Pass module-level functions: equal schedules are then equal descriptions, and nothing is compiled twice. Raises ValueError
    where alpha or sigma is not positive inside `times`, or the signal-to-noise ratio does not fall.
    """

    alpha_fn: Callable[[Array], Array]
    sigma_fn: Callable[[Array], Array]
    times: tuple[float, float] = (0.0, 1.0)
    prior_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        with jax.ensure_compile_time_eval():
            t = jnp.linspace(*self.times, 66)[1:-1]
            alpha, sigma = np.asarray(self.alpha(t)), np.asarray(self.sigma(t))
        _check(alpha.shape == sigma.shape == t.shape, "alpha_fn and sigma_fn must return the shape of t")
        positive = (alpha > 0).all() and (sigma > 0).all()
        _check(bool(positive), f"alpha_fn and sigma_fn must be positive inside times={self.times}")
        ratio = alpha / sigma
        rises = np.flatnonzero(np.diff(ratio) >= 0)
        if rises.size:
            raise ValueError(f"the signal-to-noise ratio must fall with t; it does not at t = {float(t[rises[0]]):.3f}")

    def alpha(self, t):
        return self.alpha_fn(t)

    def sigma(self, t):
        return self.sigma_fn(t)


def _beta_integral(schedule: VariancePreserving | SubVariancePreserving, t: Array) -> Array:
    return schedule.beta_min * t + 0.5 * (schedule.beta_max - schedule.beta_min) * t**2


def _check_noise(schedule: VarianceExploding | EDM) -> None:
    low, high = schedule.sigma_min, schedule.sigma_max
    _check(0 < low < high, f"wants 0 < sigma_min < sigma_max, got {low}, {high}: the noise must grow with t")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
