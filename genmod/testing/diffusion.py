"""A kit that holds samplers, likelihoods and scores of diffusions against closed forms; the tests of genmod are the same calls.

The laws are a Gaussian and a mixture of Gaussians, whose denoiser, score, flow map and density are known at every noise level, so
that nothing is trained. Each check takes any object of the right form, yours or ours, and returns a report; print it.

    gm.check_sampler(lambda n: Steps(Heun(), LogSNRGrid(n)), gm.denoising.EDM(), denoised=True)      # of gm.denoising
    gm.check_likelihood(my_log_prob, gm.denoising.VariancePreserving())
    gm.check_score(my_score, schedule, weights, means, variances)
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key
from genmod.denoising import denoisers
from genmod.denoising.denoisers import Denoiser
from genmod.denoising.schedules import Schedule
from genmod.testing.laws import (
    COVARIANCE,
    MEAN,
    MEANS,
    VARIANCES,
    WEIGHTS,
    alpha_sigma,
    flow_map,
    gaussian_draws,
    gaussian_log_prob,
    mixture_draws,
    mixture_log_prob,
    moments,
)
from genmod.testing.reports import LikelihoodReport, SamplerReport, ScoreReport


def check_sampler(
    sampler_of: Callable[[int], Callable[[Key, Denoiser, Schedule, Array], Array]],
    schedule: Schedule,
    *,
    num_steps: Sequence[int] = (16, 32, 64, 128),
    num_draws: int = 4_096,
    denoised: bool = False,
    key: Key | None = None,
) -> SamplerReport:
    """Holds a sampler against the Gaussian's flow map and law, and against the mixture's weights.

    Args:
      sampler_of: number of steps -> sampler(key, denoiser, schedule, x) of ONE event x at the high end of `schedule.times`,
        which it moves to the low end.
      schedule: of the noise.
      num_steps: of the samplers; the orders are observed between them, and the draws of the largest are judged.
      num_draws: so many draws, which start from the exact law at the high end.
      denoised: that the sampler ends with D at the low end.
      key: of the draws; None: always the same.

    Raises ValueError for fewer than two different numbers of steps, and for a sampler that returns another shape than that
    of x.
    """
    if len(set(num_steps)) < 2:
        raise ValueError(f"num_steps must hold at least two different numbers, got {num_steps}")
    keys = jax.random.split(jax.random.key(0) if key is None else key, 4)
    low, high = schedule.times
    denoiser = denoisers.gaussian(schedule, MEAN, COVARIANCE)

    def run(sampler, denoiser, key, x):
        keys = jax.random.split(key, x.shape[0])
        drawn = jax.jit(jax.vmap(lambda key, x: sampler(key, denoiser, schedule, x)))(keys, x)
        _check_shape("sampler", drawn, x.shape)
        return np.asarray(drawn, np.float64)

    def finish(denoiser, x):
        return jax.vmap(lambda x: denoiser(x, jnp.asarray(low, x.dtype)))(x) if denoised else x

    starts = gaussian_draws(keys[0], schedule, high, num_draws)
    some = starts[:64]
    first, second = (run(sampler_of(min(num_steps)), denoiser, k, some) for k in keys[:2])
    deterministic = np.array_equal(first, second)
    errors = {}
    if deterministic:
        truth = np.asarray(finish(denoiser, flow_map(schedule, some)), np.float64)
        errors = {n: float(np.abs(run(sampler_of(n), denoiser, keys[0], some) - truth).max()) for n in sorted(num_steps)}
    best = sampler_of(max(num_steps))
    x = run(best, denoiser, keys[1], starts)
    mean, covariance = moments(schedule, low)
    if denoised:  # D is affine in x
        gain = np.linalg.solve(covariance, alpha_sigma(schedule, low)[0] * COVARIANCE).T
        mean, covariance = MEAN, gain @ covariance @ gain.T
    return SamplerReport(errors, *_judge(x, mean, covariance), _weight_error(run, best, schedule, keys[3], num_draws))


def check_likelihood(
    log_prob_fn: Callable[[Denoiser, Schedule, Callable[[Array], Array], Array, Key], Array],
    schedule: Schedule,
    *,
    num_points: int = 256,
    num_keys: int = 8,
    key: Key | None = None,
) -> LikelihoodReport:
    """Holds a log-density against the Gaussian's and the mixture's at the low end of `schedule.times`, half the points each.

    For the Gaussian alone the divergence does not depend on x, and an error of the path would go unseen.

    Args:
      log_prob_fn: (denoiser, schedule, base_log_prob, x, key) -> log p(x) of ONE event x, in nats, with `base_log_prob` the
        exact log-density at the high end.
      schedule: of the noise.
      num_points: at which it is held against the truth. num_keys: at each point.
      key: of the points and of log_prob_fn; None: always the same.

    Raises ValueError for a log-density that is not a scalar, and for fewer than two keys or points.
    """
    if num_points < 2 or num_keys < 2:
        raise ValueError(f"num_points and num_keys must be at least 2, got {num_points}, {num_keys}")
    keys = jax.random.split(jax.random.key(0) if key is None else key, 4)
    low, high = schedule.times
    half = max(1, num_points // 2)
    (alpha, sigma), end = (alpha_sigma(schedule, t) for t in (low, high))
    x0 = mixture_draws(keys[2], WEIGHTS, MEANS, VARIANCES, half)
    laws = (
        (
            denoisers.gaussian(schedule, MEAN, COVARIANCE),
            functools.partial(gaussian_log_prob, *moments(schedule, high)),
            functools.partial(gaussian_log_prob, *moments(schedule, low)),
            gaussian_draws(keys[0], schedule, low, half),
        ),
        (
            denoisers.gaussian_mixture(schedule, WEIGHTS, MEANS, VARIANCES),
            functools.partial(mixture_log_prob, *end),
            functools.partial(mixture_log_prob, alpha, sigma),
            alpha * x0 + sigma * jax.random.normal(keys[3], x0.shape, x0.dtype),
        ),
    )
    errors = np.concatenate([_likelihood_errors(log_prob_fn, schedule, *law, keys[1], num_keys) for law in laws], 1)
    bias, sem = mean_and_sem(errors.mean(0))
    return LikelihoodReport(float(bias), float(sem), float(np.abs(errors).max()), float(errors.std(0, ddof=1).mean()))


def _likelihood_errors(log_prob_fn, schedule, denoiser, base, true_log_prob, x, key, num_keys) -> np.ndarray:
    """log_prob - truth, (num_keys, n)."""

    @jax.jit
    def values(key):
        each = jax.random.split(key, x.shape[0])
        found = jax.vmap(lambda x, key: log_prob_fn(denoiser, schedule, base, x, key))(x, each)
        _check_shape("log_prob_fn", found, x.shape[:1])
        return found

    truth = jax.vmap(true_log_prob)(x)
    return np.stack([np.asarray(values(k) - truth, np.float64) for k in jax.random.split(key, num_keys)])


def check_score(
    score_fn: Callable[[Array, Array], Array],
    schedule: Schedule,
    weights: ArrayLike = WEIGHTS,
    means: ArrayLike = MEANS,
    variances: ArrayLike = VARIANCES,
    *,
    num_times: int = 16,
    num_points: int = 1_024,
    key: Key | None = None,
) -> ScoreReport:
    """Holds a score of a mixture of Gaussians against the closed form.

    Args:
      score_fn: (x, t) -> grad log p_t(x) of ONE event.
      schedule: of the noise.
      weights, means, variances: the mixture, as in `denoisers.gaussian_mixture`.
      num_times: equally spaced in log-SNR. num_points: draws of p_t at each of them.
      key: of the draws; None: always the same.

    Raises ValueError for a score of another shape than that of x, for fewer than two times, and for a schedule whose log-SNR is
    not finite at its ends.
    """
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_times)
    low, high = schedule.times
    ends = schedule.log_snr(jnp.array([low, high]))
    if num_times < 2 or not jnp.isfinite(ends).all():
        raise ValueError(f"wants num_times >= 2 and a log-SNR that is finite at both ends, got {num_times}, {ends}")
    log_snr = jnp.linspace(ends[0], ends[1], num_times)
    t = schedule.time(log_snr)
    true_score = denoisers.score_fn(denoisers.gaussian_mixture(schedule, weights, means, variances), schedule)

    def error(key, t):
        data_key, noise_key = jax.random.split(key)
        x0 = mixture_draws(data_key, weights, means, variances, num_points)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        x = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
        found = jax.vmap(lambda x: score_fn(x, t))(x)
        _check_shape("score_fn", found, x.shape)
        gap = found - jax.vmap(lambda x: true_score(x, t))(x)
        return schedule.sigma(t) ** 2 * jnp.mean(gap**2)

    errors = np.asarray(jax.jit(lambda: jax.lax.map(lambda each: error(*each), (keys, t)))(), np.float64)
    # g^2 |s|^2 dt = -lambda' sigma^2 |s|^2 dt
    size = int(np.prod(np.shape(means)[1:], dtype=int))
    nats = 0.5 * size * float(np.trapezoid(errors, -np.asarray(log_snr, np.float64)))
    return ScoreReport(np.asarray(t), errors, nats)


def _check_shape(name: str, found: Array, wanted: tuple[int, ...]) -> None:
    if found.shape != wanted:
        raise ValueError(f"{name} must return shape {wanted[1:]} for one event, got {found.shape[1:]}")


def _judge(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float, float, float]:
    """(bias in nats, its sem, error of the mean in sem, of the covariance in sem) of draws x."""
    num, dim = x.shape
    found, spread = x.mean(0), np.cov(x.T)
    off = found - mean
    inverse = np.linalg.inv(covariance)
    ratio = inverse @ spread
    kl = 0.5 * (np.trace(ratio) - dim - np.linalg.slogdet(ratio)[1] + off @ inverse @ off)
    # 2 n KL of the moments of n draws of the law is about chi^2 with as many degrees of freedom as there are moments.
    freedom = dim + dim * (dim + 1) / 2
    variances = np.diag(covariance)
    mean_error = np.abs(off / np.sqrt(variances / num)).max()
    scale = np.sqrt((covariance**2 + np.outer(variances, variances)) / num)
    return kl - freedom / (2 * num), math.sqrt(2 * freedom) / (2 * num), mean_error, np.abs((spread - covariance) / scale).max()


def _weight_error(run, sampler, schedule: Schedule, key: Key, num: int) -> float:
    """The largest error of the share of draws near each mode of the mixture, in standard errors."""
    keys = jax.random.split(key, 3)
    high = jnp.asarray(schedule.times[1], float)
    x0 = mixture_draws(keys[0], WEIGHTS, MEANS, VARIANCES, num)
    start = schedule.alpha(high) * x0 + schedule.sigma(high) * jax.random.normal(keys[1], x0.shape, float)
    x = run(sampler, denoisers.gaussian_mixture(schedule, WEIGHTS, MEANS, VARIANCES), keys[2], start)
    nearest = np.argmin(((x[:, None] - MEANS[None]) ** 2).sum(-1), 1)
    shares = np.bincount(nearest, minlength=len(WEIGHTS)) / num
    return float(np.abs((shares - WEIGHTS) / np.sqrt(WEIGHTS * (1 - WEIGHTS) / num)).max())
