"""One step of a reverse diffusion, from time t to s < t: x_s from x_t and the denoiser, D(x, t) = E[x_0 | x_t = x].

Throughout eps = (x - alpha D) / sigma. Everything is elementwise in x, whose shape is what the denoiser takes.

    stepper                order  noise  what it discretises
    DDIM(eta)              1      eta    x_0 and eps held fixed over the step; eta = 1 is `Ancestral`
    Ancestral              1      yes    q(x_s | x_t, x_0) at x_0 = D
    Euler                  1      no     the probability flow dx = (f x - g^2 score / 2) dt, in t
    Heun                   2      no     the same flow, d(x / alpha) = eps d(sigma / alpha), by the trapezoidal rule
    DPMSolverPlusPlus      2      no     the same flow, exponential integrator in log-SNR, two points
    EulerMaruyama          1      yes    the reverse SDE dx = (f x - g^2 score) dt + g dw
    PredictorCorrector            yes    any of these, then Langevin steps at s
    AnnealedLangevin              yes    Langevin steps at s alone
"""

import abc
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_parts, check_positive
from genmod.core.description import Description
from genmod.core.types import Array, Key
from genmod.denoising.denoisers import Denoiser, score_fn
from genmod.denoising.schedules import Schedule, convert
from genmod.samplers.diffusions import langevin_chain

Carry = Any


class Stepper(Description, abc.ABC):
    """A step from t to s.

    Attributes:
      num_evaluations: how often a step evaluates the denoiser. noisy: whether it draws noise.
    """

    num_evaluations: int = 1
    noisy: bool = False

    def init(self, x: Array) -> Carry:
        """What the first step is given to remember; nothing but for multistep methods."""
        return ()

    @abc.abstractmethod
    def step(
        self, key: Key, denoiser: Denoiser, schedule: Schedule, x: Array, t: Array, s: Array, carry: Carry
    ) -> tuple[Array, Carry]:
        """One step of ONE event.

        Args:
          key: of the noise; steppers without noise do not use it.
          denoiser: D, (x, t) -> x_0. schedule: that of the denoiser.
          x: the event at time t. s: the time to go to, s < t; both are scalars.
          carry: what the step before returned; of the first, `init(x)`.

        Returns (x_s, what the next step remembers).
        """


@dataclasses.dataclass(frozen=True)
class DDIM(Stepper):
    """x_s = alpha_s D + sqrt(sigma_s^2 - v^2) eps + v noise, v = eta times that of q(x_s | x_t, x_0).

    Song et al. 2020, arXiv:2010.02502, eqs. 12, 16. eta = 0 is deterministic: Euler's method for the probability flow in
    sigma / alpha.
    """

    eta: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    @property
    def noisy(self):
        return self.eta > 0

    def step(self, key, denoiser, schedule, x, t, s, carry):
        data, eps = _unknowns(denoiser, schedule, x, t)
        if self.eta == 0:
            return schedule.alpha(s) * data + schedule.sigma(s) * eps, carry
        sigma, noise = schedule.sigma(s), self.eta * _posterior_scale(schedule, t, s)
        rest = jnp.sqrt(jnp.maximum(sigma**2 - noise**2, 0.0))
        return schedule.alpha(s) * data + rest * eps + noise * _normal(key, x), carry


@dataclasses.dataclass(frozen=True)
class Ancestral(Stepper):
    """DDPM's sampler: the mean of q(x_s | x_t, x_0 = D), and noise (Ho et al. 2020, arXiv:2006.11239, alg. 2 and sec. 3.2).

    variance: "posterior", that of q(x_s | x_t, x_0), right for data in one point; "forward", that of q(x_t | x_s), right for
    data N(0, I) under a variance preserving schedule.
    """

    variance: Literal["posterior", "forward"] = "posterior"
    noisy = True

    def __post_init__(self):
        super().__post_init__()
        if self.variance not in ("posterior", "forward"):
            raise ValueError(f"variance must be 'posterior' or 'forward', got {self.variance!r}")

    def step(self, key, denoiser, schedule, x, t, s, carry):
        data, eps = _unknowns(denoiser, schedule, x, t)
        posterior = _posterior_scale(schedule, t, s)
        rest = jnp.sqrt(jnp.maximum(schedule.sigma(s) ** 2 - posterior**2, 0.0))
        noise = posterior if self.variance == "posterior" else schedule.transition(s, t)[1]
        return schedule.alpha(s) * data + rest * eps + noise * _normal(key, x), carry


@dataclasses.dataclass(frozen=True)
class Euler(Stepper):
    """Euler's method for the probability flow in t (Song et al. 2021, arXiv:2011.13456, eq. 13)."""

    def step(self, key, denoiser, schedule, x, t, s, carry):
        return x + (s - t) * convert(schedule, t, x, denoiser(x, t), "x0", "velocity"), carry


@dataclasses.dataclass(frozen=True)
class Heun(Stepper):
    """EDM's sampler (Karras et al. 2022, arXiv:2206.00364, algs. 1, 2), in y = x / alpha and r = sigma / alpha: dy = eps dr.

    churn: gamma, by what share r is first raised with fresh noise (S_churn over the number of steps in the paper), where r
    lies in `churn_range`, (S_tmin, S_tmax); noise_scale: S_noise of that noise. A step to r = 0 is Euler's.
    """

    churn: float = 0.0
    noise_scale: float = 1.0
    churn_range: tuple[float, float] = (0.0, math.inf)
    num_evaluations = 2

    def __post_init__(self):
        super().__post_init__()
        check_positive(noise_scale=self.noise_scale)
        if not 0 <= self.churn <= math.sqrt(2) - 1:
            raise ValueError(f"churn must be in [0, sqrt(2) - 1], got {self.churn}")
        if not (len(self.churn_range) == 2 and 0 <= self.churn_range[0] < self.churn_range[1]):
            raise ValueError(f"churn_range must be (low, high) with 0 <= low < high, got {self.churn_range}")

    @property
    def noisy(self):
        return self.churn > 0

    def step(self, key, denoiser, schedule, x, t, s, carry):
        if self.churn:
            x, t = self._raise_noise(key, schedule, x, t)
        _, eps = _unknowns(denoiser, schedule, x, t)
        before, after = schedule.sigma(t) / schedule.alpha(t), schedule.sigma(s) / schedule.alpha(s)
        y = x / schedule.alpha(t)
        guess = schedule.alpha(s) * (y + (after - before) * eps)
        sigma = schedule.sigma(s)
        last = sigma == 0
        there = (guess - schedule.alpha(s) * denoiser(guess, s)) / jnp.where(last, 1.0, sigma)
        slope = jnp.where(last, eps, 0.5 * (eps + there))
        return schedule.alpha(s) * (y + (after - before) * slope), carry

    def _raise_noise(self, key, schedule, x, t):
        ratio = schedule.sigma(t) / schedule.alpha(t)
        end = jnp.asarray(schedule.times[1], t.dtype)
        low, high = self.churn_range
        share = jnp.where((low <= ratio) & (ratio <= high), self.churn, 0.0)
        raised = jnp.minimum(ratio * (1.0 + share), schedule.sigma(end) / schedule.alpha(end))
        later = jnp.where(share > 0, schedule.time(-2.0 * jnp.log(raised)), t)
        fresh = jnp.sqrt(jnp.maximum(raised**2 - ratio**2, 0.0)) * self.noise_scale
        return schedule.alpha(later) * (x / schedule.alpha(t) + fresh * _normal(key, x)), later


@dataclasses.dataclass(frozen=True)
class DPMSolverPlusPlus(Stepper):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, alg. 2), with l = log(alpha / sigma), h = l_s - l_t:

    x_s = sigma_s / sigma_t x + alpha_s (1 - e^-h) D~,   D~ = D + h / (2 h_before) (D - D_before)

    The first step, and one to sigma_s = 0, take D~ = D.
    """

    def init(self, x):
        return jnp.zeros_like(x), jnp.zeros((), x.dtype)

    def step(self, key, denoiser, schedule, x, t, s, carry):
        before, h_before = carry
        data = denoiser(x, t)
        h = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
        known = (h_before > 0) & jnp.isfinite(h)
        weight = jnp.where(known, h / jnp.where(known, 2.0 * h_before, 1.0), 0.0)
        corrected = data + weight * (data - before)
        x = schedule.sigma(s) / schedule.sigma(t) * x - schedule.alpha(s) * jnp.expm1(-h) * corrected
        return x, (data, h)


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Stepper):
    """The reverse SDE dx = (f x - g^2 score) dt + g dw, time running down (Song et al. 2021, arXiv:2011.13456, eq. 6)."""

    noisy = True

    def step(self, key, denoiser, schedule, x, t, s, carry):
        score, g = score_fn(denoiser, schedule)(x, t), schedule.diffusion(t)
        mean = x + (s - t) * (schedule.drift(t) * x - g**2 * score)
        return mean + g * jnp.sqrt(t - s) * _normal(key, x), carry


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Stepper):
    """A step of `predictor`, then `num_corrections` of Langevin at time s (Song et al. 2021, arXiv:2011.13456, algs. 2-5).

    Their size is e = 2 (alpha_t / alpha_s)^2 (snr sigma_s)^2 in x + e score + sqrt(2 e) z. The paper has |z| / |score|, averaged
    over a batch, in the place of sigma, its size near data in one point; norms of the event itself would make the step
    depend on the state, and the chain converge to another law.
    """

    predictor: Stepper = EulerMaruyama()
    num_corrections: int = 1
    snr: float = 0.16
    noisy = True

    def __post_init__(self):
        super().__post_init__()
        check_count(num_corrections=self.num_corrections)
        check_parts(self, predictor=Stepper)
        check_positive(snr=self.snr)

    @property
    def num_evaluations(self):
        return self.predictor.num_evaluations + self.num_corrections

    def init(self, x):
        return self.predictor.init(x)

    def step(self, key, denoiser, schedule, x, t, s, carry):
        keys = jax.random.split(key)
        x, carry = self.predictor.step(keys[0], denoiser, schedule, x, t, s, carry)
        # (alpha_t / alpha_s)^2 is the paper's alpha_i = 1 - beta_i (VE: 1).
        size = 2.0 * (schedule.alpha(t) / schedule.alpha(s) * self.snr) ** 2
        return _corrected(keys[1], denoiser, schedule, x, s, size, self.num_corrections), carry


@dataclasses.dataclass(frozen=True)
class AnnealedLangevin(Stepper):
    """NCSN's sampler (Song & Ermon 2019, arXiv:1907.05600, alg. 1): `num_steps` Langevin steps at each noise level s.

    x + a/2 score + sqrt(a) z with a = step_size sigma^2: `step_size` is the paper's epsilon / sigma_last^2, 0.2 there, and must
    be below 4 for the chain to be stable. For schedules with alpha = 1; the first level of a grid is where its start is drawn.
    """

    step_size: float = 0.2
    num_steps: int = 100
    noisy = True

    def __post_init__(self):
        super().__post_init__()
        check_count(num_steps=self.num_steps)
        if not 0 < self.step_size < 4:
            raise ValueError(f"step_size must be in (0, 4), relative to sigma^2, got {self.step_size}")

    @property
    def num_evaluations(self):
        return self.num_steps

    def step(self, key, denoiser, schedule, x, t, s, carry):
        return _corrected(key, denoiser, schedule, x, s, 0.5 * self.step_size, self.num_steps), carry


def _unknowns(denoiser: Denoiser, schedule: Schedule, x: Array, t: Array) -> tuple[Array, Array]:
    """(D, eps) at x."""
    data = denoiser(x, t)
    return data, (x - schedule.alpha(t) * data) / schedule.sigma(t)


def _corrected(key: Key, denoiser: Denoiser, schedule: Schedule, x: Array, s: Array, size: ArrayLike, num_steps: int) -> Array:
    """x after Langevin steps of size `size` sigma^2 at time s; where sigma = 0, x itself."""
    score, noisy = score_fn(denoiser, schedule), schedule.sigma(s) > 0
    s = jnp.where(noisy, s, sum(schedule.times) / 2)  # where it is not used, but finite, and so is its gradient
    moved = langevin_chain(key, lambda x: score(x, s), x, step_size=size * schedule.sigma(s) ** 2, num_steps=num_steps)
    return jnp.where(noisy, moved, x)


def _posterior_scale(schedule: Schedule, t: Array, s: Array) -> Array:
    """Standard deviation of q(x_s | x_t, x_0)."""
    return schedule.sigma(s) * schedule.transition(s, t)[1] / schedule.sigma(t)


def _normal(key: Key, x: Array) -> Array:
    return jax.random.normal(key, x.shape, x.dtype)
