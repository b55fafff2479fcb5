"""What a noise schedule is: how data turn into noise between t = 0 (data) and t = 1 (noise).

    x_t = alpha(t) x_0 + sigma(t) eps,  eps ~ N(0, I)                       the marginal given x_0
    x_t = a x_s + v eps,  a = alpha_t / alpha_s,  v^2 = sigma_t^2 - a^2 sigma_s^2,  s < t        the transition
    dx  = f(t) x dt + g(t) dw,  f = alpha' / alpha,  g^2 = 2 sigma sigma' - 2 f sigma^2          the forward SDE
    lambda(t) = 2 log(alpha / sigma), the log signal-to-noise ratio, falls with t, and g^2 = -sigma^2 lambda'

(Song et al. 2021, arXiv:2011.13456, sec. 3; Kingma et al. 2021, arXiv:2107.00630, sec. 3.) A schedule says alpha and sigma;
the rest follows by autodiff. Times may be arrays: everything here is elementwise.
"""

import abc

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from genmod.core.checks import check, check_times
from genmod.core.description import Description
from genmod.core.numerics import real
from genmod.core.types import Array, Shape
from genmod.densities import Normal


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
        check_times(self.times)

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """The factor of the data, of the shape of t."""

    @abc.abstractmethod
    def sigma(self, t: Array) -> Array:
        """The standard deviation of the noise, of the shape of t."""

    def rates(self, t: Array) -> tuple[Array, Array]:
        """(alpha', sigma')."""
        t = real(t)
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]

    def log_snr(self, t: Array) -> Array:
        """lambda = 2 log(alpha / sigma)."""
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def log_snr_rate(self, t: Array) -> Array:
        """lambda' < 0."""
        t = real(t)
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

    def time(self, log_snr: ArrayLike) -> Array:
        """The t in `times` at which lambda(t) = log_snr, by bisection to rounding; an end where there is none.

        In float32 at least. Its derivative in log_snr is 1 / lambda', to first order, and 0 beyond the ends.
        """
        wanted = jnp.asarray(log_snr)
        wanted = wanted.astype(jnp.promote_types(wanted.dtype, jnp.float32))
        log_snr = jax.lax.stop_gradient(wanted)
        low, high = (jnp.full_like(log_snr, end) for end in self.times)

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            before = self.log_snr(middle) > log_snr  # lambda falls: the time lies further on
            return jnp.where(before, middle, low), jnp.where(before, high, middle)

        low, high = jax.lax.fori_loop(0, jnp.finfo(log_snr.dtype).nmant + 8, halve, (low, high))
        t = jax.lax.stop_gradient(0.5 * (low + high))
        rate = jax.lax.stop_gradient(self.log_snr_rate(t))
        data, noise = (self.log_snr(jnp.asarray(end, log_snr.dtype)) for end in self.times)
        known = jnp.isfinite(rate) & (rate != 0) & jnp.isfinite(log_snr) & (log_snr <= data) & (log_snr >= noise)
        return t + jnp.where(known, (wanted - log_snr) / jnp.where(known, rate, 1.0), 0.0)


def check_schedule(schedule: Schedule) -> None:
    """Raises ValueError unless alpha and sigma are positive and finite inside `times`, of the shape of t, and the
    signal-to-noise ratio falls there; as seen at 64 times."""
    with jax.ensure_compile_time_eval():
        t = jnp.linspace(*schedule.times, 66)[1:-1]
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if isinstance(alpha, Tracer) or isinstance(sigma, Tracer):  # of a schedule that is being learned
        return
    alpha, sigma = np.asarray(alpha), np.asarray(sigma)
    check(alpha.shape == sigma.shape == t.shape, "alpha and sigma must return the shape of t")
    # alpha = 0 may be what float32 makes of a small number, and neighbours may be equal to rounding.
    positive = (alpha >= 0).all() and alpha[0] > 0 and (sigma > 0).all() and np.isfinite(alpha).all() and np.isfinite(sigma).all()
    check(positive, f"alpha and sigma must be positive and finite inside times={schedule.times}")
    ratio = alpha / sigma
    rises = np.flatnonzero(np.diff(ratio) > 1e-6 * ratio[:-1])
    if rises.size == 0 and not ratio[-1] < ratio[0]:
        rises = np.array([0])
    if rises.size:
        raise ValueError(f"the signal-to-noise ratio must fall with t; it does not at t = {float(t[rises[0]]):.3f}")
