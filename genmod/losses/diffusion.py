"""Losses of diffusions: regression at random noise levels, and the variational bound by parts.

    denoising   E_t,x0,eps[w(t) |eps - eps^(x_t, t)|^2],   x_t = alpha x0 + sigma eps
    bound       -log p(x0) <= prior + diffusion + reconstruction

(Ho et al. 2020, arXiv:2006.11239, eqs. 5, 14; Kingma et al. 2021, arXiv:2107.00630, eqs. 11-15.)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.checks import check_count
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array, Key
from genmod.denoising.levels import SimpleWeighting, Weighting
from genmod.denoising.schedules import Kind, Schedule, noise_error, target_of


def denoising(
    predict_fn: Callable[[Array, Array], Array],
    schedule: Schedule,
    x0: Array,
    t: Array,
    eps: Array,
    *,
    kind: Kind = "eps",
    weighting: Weighting = SimpleWeighting(),
    weights: Array | None = None,
    data_scale: float = 1.0,
    row_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the noise that the prediction implies, times w(t), summed over the event, mean over the batch.

    Args:
      predict_fn: (x_t, t) -> predictions of `kind` for the batch, (n,) + event shape and (n,) to (n,) + event shape.
      schedule: of the noise.
      x0: the data. eps: their noise. Both (n,) + event shape.
      t: (n,) in `schedule.times`.
      kind: what predict_fn predicts. data_scale: standard deviation of the data, for the kind "edm".
      weighting: w(t).
      weights: (n,), of the draws of t (`TimeSampler`); None: 1.
      row_weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"denoising_error": loss, "denoising_error_sem": its standard error}).
    Raises ValueError where shapes differ, TypeError for what is not a Weighting.
    """
    if x0.shape != eps.shape or t.shape != x0.shape[:1]:
        raise ValueError(
            f"x0 and eps must have one shape (n,) + event shape and t shape (n,), got {x0.shape}, {eps.shape}, {t.shape}"
        )
    if not isinstance(weighting, Weighting):
        raise TypeError(f"weighting must be a Weighting such as denoising.SimpleWeighting(), got {weighting!r}")
    if weights is not None and weights.shape != t.shape:
        raise ValueError(f"weights must have the shape of t, {t.shape}, got {weights.shape}")
    noised = jax.vmap(schedule.perturb)(t, x0, eps)
    wanted = jax.vmap(lambda t, x0, eps: target_of(schedule, t, x0, eps, kind, data_scale=data_scale))(t, x0, eps)
    predicted = predict_fn(noised, t)
    if predicted.shape != x0.shape:
        raise ValueError(f"predict_fn must return shape {x0.shape}, got {predicted.shape}")
    error = jnp.sum(((predicted - wanted) ** 2).reshape(x0.shape[0], -1), 1)
    factor = weighting(schedule, t) * noise_error(schedule, t, kind, data_scale=data_scale) ** 2
    mean, sem = mean_and_sem(error * factor * (1.0 if weights is None else weights), row_weight)
    return mean, {"denoising_error": mean, "denoising_error_sem": sem}


class BoundParts(NamedTuple):
    """The parts of the variational bound of one event, in nats; their sum is at least -log p(x0) in expectation."""

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The bound on -log p(x0)."""
        return self.prior + self.diffusion + self.reconstruction


def variational_bound(
    denoiser: Callable[[Array, Array], Array],
    schedule: Schedule,
    x0: Array,
    key: Key,
    *,
    times: np.ndarray | None = None,
    num_times: int = 1,
) -> BoundParts:
    """An unbiased draw of the variational bound on -log p(x0) of ONE event, in nats.

    Args:
      denoiser: D, (x, t) -> x_0. schedule: that of the denoiser.
      x0: the event. key: of the noise.
      times: the chain, falling from noise to data (`Grid.times`), each of whose steps is evaluated once; None: the limit of
        infinitely many steps, half the range of log-SNR times E|eps - eps^|^2 at `num_times` stratified uniform log-SNRs.
      num_times: of the limit; with `times` it is not used.

    The model: x at the high end is N(0, prior_scale^2), each step q(x_s | x_t, x_0 = D(x_t, t)), and at the low end
    x_0 ~ N(D, r^2) with r = sigma / alpha there.

        prior           KL(q(x_high | x0) || N(0, prior_scale^2))
        diffusion       sum over the steps of (SNR(s) - SNR(t)) / 2 E|x0 - D(x_t, t)|^2
        reconstruction  -E log N(x0; D(x_low, low), r^2)

    DDPM's weight of the eps error in step t, beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha-bar_t)), is (SNR(s) / SNR(t) - 1) / 2
    for its posterior variance. Raises ValueError for times that do not fall within [0, 1], for an end without noise or without
    data, for num_times < 1, and for a denoiser that returns another shape.
    """
    check_count(num_times=num_times)
    ends = _ends(schedule, times)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))  # the signal-to-noise ratio does not fit into less
    keys = jax.random.split(key, 3)

    def error(key, t):
        """|x0 - D(x_t, t)|^2 at one draw of x_t."""
        x = schedule.perturb(t, x0, jax.random.normal(key, x0.shape, x0.dtype))
        data = denoiser(x, t)
        if data.shape != x0.shape:
            raise ValueError(f"the denoiser must return the shape of its input, {x0.shape}, got {data.shape}")
        return jnp.sum((x0 - data) ** 2)

    low, high = (jnp.asarray(end, x0.dtype) for end in ends)
    alpha, variance, wide = schedule.alpha(high), schedule.sigma(high) ** 2, schedule.prior_scale**2
    prior = 0.5 * jnp.sum((alpha * x0) ** 2) / wide + 0.5 * x0.size * (variance / wide - 1.0 - jnp.log(variance / wide))
    ratio = schedule.sigma(low) / schedule.alpha(low)
    reconstruction = 0.5 * error(keys[0], low) / ratio**2 + x0.size * (jnp.log(ratio) + 0.5 * np.log(2.0 * np.pi))
    if times is None:
        t, weights = _stratified(schedule, keys[2], jnp.asarray(ends, x0.dtype), num_times)
    else:
        known = jnp.asarray(times, x0.dtype)
        t, weights = known[:-1], jnp.diff(jnp.exp(schedule.log_snr(known)))
    errors = jax.lax.map(lambda each: error(*each), (jax.random.split(keys[1], t.shape[0]), t))
    return BoundParts(prior, 0.5 * jnp.sum(weights * errors), reconstruction)


def _ends(schedule: Schedule, times: np.ndarray | None) -> np.ndarray:
    """(low, high), checked."""
    if times is not None:
        fall = np.ndim(times) == 1 and len(times) > 1 and (np.diff(times) < 0).all()
        if not (fall and times[-1] >= 0 and times[0] <= 1):
            raise ValueError(f"times must fall from noise to data, within [0, 1], got {times}")
    ends = np.asarray(schedule.times if times is None else (times[-1], times[0]))
    with jax.ensure_compile_time_eval():
        log_snr = schedule.log_snr(jnp.asarray(ends, float))
    if not isinstance(log_snr, Tracer):  # as that of a learned schedule is
        low, high = np.asarray(log_snr)
        # A chain may end in pure noise; the limit of infinitely many steps needs some data there.
        if not (np.isfinite(low) and (np.isfinite(high) or (times is not None and high == -np.inf))):
            raise ValueError(f"the bound wants noise and data at both of its ends, but the log-SNR at {ends} is {low}, {high}")
    return ends


def _stratified(schedule: Schedule, key: Key, ends: Array, num: int) -> tuple[Array, Array]:
    """Times and weights whose weighted sum of |x0 - D|^2 is, in the mean, the integral of SNR |x0 - D|^2 over log-SNR."""
    data, noise = schedule.log_snr(ends)
    log_snr = noise + (data - noise) * (jax.random.uniform(key, (), ends.dtype) + jnp.arange(num, dtype=ends.dtype)) / num
    return schedule.time(log_snr), (data - noise) / num * jnp.exp(log_snr)
