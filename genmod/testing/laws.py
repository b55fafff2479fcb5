"""The Gaussian and the mixture of Gaussians of the kit: moments, draws, densities and flow map in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.types import Array, Key
from genmod.denoising.schedules import Schedule

# A Gaussian of which no coordinate axis is special, one direction narrow and one wide; and a mixture of weights that differ.
MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[0.58, 0.8], [0.8, 1.78]])
WEIGHTS, MEANS, VARIANCES = np.array([0.2, 0.5, 0.3]), np.array([[-3.0, 0.0], [2.0, 2.0], [2.0, -3.0]]), np.array([0.1, 0.2, 0.3])


def alpha_sigma(schedule: Schedule, t: float) -> tuple[float, float]:
    """alpha and sigma at t as numbers."""
    return float(schedule.alpha(jnp.asarray(t, float))), float(schedule.sigma(jnp.asarray(t, float)))


def moments(schedule: Schedule, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the Gaussian at time t."""
    alpha, sigma = alpha_sigma(schedule, t)
    return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(2)


def gaussian_draws(key: Key, schedule: Schedule, t: float, num: int) -> Array:
    """Draws of the Gaussian.

    Args:
      key: of the draws. num: how many.
      schedule: of the noise. t: at this time.

    Returns an array (num, 2).
    """
    mean, covariance = moments(schedule, t)
    z = jax.random.normal(key, (num, 2), float)
    return jnp.asarray(mean)[None] + jnp.matmul(z, jnp.asarray(np.linalg.cholesky(covariance).T), precision="highest")


def gaussian_log_prob(mean: np.ndarray, covariance: np.ndarray, x: Array) -> Array:
    """log N(x; mean, covariance) of one event, in nats."""
    factor = np.linalg.cholesky(covariance)
    z = jax.scipy.linalg.solve_triangular(jnp.asarray(factor), x - jnp.asarray(mean), lower=True)
    return -0.5 * jnp.sum(z**2) - math.log(2 * math.pi) - np.log(np.diag(factor)).sum()


def flow_map(schedule: Schedule, x: Array) -> Array:
    """Where the probability flow takes x from the high to the low end: the map along the covariance's axes."""
    variances, basis = np.linalg.eigh(COVARIANCE)
    (low_mean, _), (high_mean, _) = (moments(schedule, t) for t in schedule.times)

    def std(t):
        alpha, sigma = alpha_sigma(schedule, t)
        return np.sqrt(alpha**2 * variances + sigma**2)

    gain = basis @ np.diag(std(schedule.times[0]) / std(schedule.times[1])) @ basis.T
    return jnp.asarray(low_mean)[None] + jnp.matmul(x - jnp.asarray(high_mean)[None], jnp.asarray(gain.T), precision="highest")


def mixture_log_prob(alpha: float, sigma: float, x: Array) -> Array:
    """Log-density of the mixture, scaled by alpha and blurred by sigma, at one event, in nats."""
    variances = alpha**2 * VARIANCES + sigma**2
    square = jnp.sum((x[None] - jnp.asarray(alpha * MEANS)) ** 2, 1)
    log_parts = jnp.asarray(np.log(WEIGHTS) - np.log(2 * np.pi * variances)) - 0.5 * square / jnp.asarray(variances)
    return jax.nn.logsumexp(log_parts)


def mixture_draws(key: Key, weights: ArrayLike, means: ArrayLike, variances: ArrayLike, num: int) -> Array:
    """Draws of a mixture.

    Args:
      key: of the draws. num: how many.
      weights, means, variances: as in `denoisers.gaussian_mixture`.

    Returns an array (num,) + event shape.
    """
    keys = jax.random.split(key)
    means, variances = jnp.asarray(means, float), jnp.asarray(variances, float)
    which = jax.random.choice(keys[0], means.shape[0], (num,), p=jnp.asarray(weights, float))
    spread = (
        jnp.sqrt(variances[which]).reshape(num, *(1,) * (means.ndim - 1)) if variances.ndim == 1 else jnp.sqrt(variances[which])
    )
    return means[which] + spread * jax.random.normal(keys[1], (num, *means.shape[1:]), float)
