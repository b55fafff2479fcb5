"""Denoisers D(x, t) = E[x_0 | x_t = x]: what every sampler of a diffusion takes, in closed form, and wrapped.

A denoiser is a function (x, t) -> x_0 of one event x and one time t, an array of the shape of x. Tweedie's formula ties it to
the score (Efron 2011, 10.1198/jasa.2011.tm11181, eq. 1.4),

    score(x, t) = (alpha D(x, t) - x) / sigma^2

`gaussian`, `gaussian_mixture` and `empirical` are the exact denoisers of laws in closed form: with them a sampler or a
likelihood can be tested without a network. `guided` and `posterior` make new denoisers of old ones, so that any sampler draws
from a sharpened or a conditional law.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_function, check_positive
from genmod.core.types import Array
from genmod.denoising.schedules import Kind, Schedule, convert

Denoiser = Callable[[Array, Array], Array]


def score_fn(denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """(x, t) -> grad log p_t(x), of a denoiser."""
    return lambda x, t: convert(schedule, t, x, denoiser(x, t), "x0", "score")


def from_prediction(fn: Callable[[Array, Array], Array], schedule: Schedule, kind: Kind, *, data_scale: float = 1.0) -> Denoiser:
    """The denoiser of a function that predicts something else.

    Args:
      fn: (x, t) -> the prediction, of the shape of x.
      schedule: of the noise.
      kind: what fn predicts, "eps", "score", "v", ...
      data_scale: standard deviation of the data, for the kind "edm".
    """
    return lambda x, t: convert(schedule, t, x, fn(x, t), kind, "x0", data_scale=data_scale)


def gaussian(schedule: Schedule, mean: ArrayLike, covariance: ArrayLike) -> Denoiser:
    """Of data N(mean, covariance): m + alpha S (alpha^2 S + sigma^2 I)^-1 (x - alpha m).

    mean: event shape (any). covariance: (D, D) with D the size of the event, or a scalar or event-shaped variance. Raises
    ValueError for other shapes and for a covariance that is not positive semidefinite.
    """
    mean = np.asarray(mean)
    variances, basis = _spectrum(covariance, mean.shape)

    def denoiser(x, t):
        centre, spread = jnp.asarray(mean, x.dtype), jnp.asarray(variances, x.dtype)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        gain = alpha * spread / (alpha**2 * spread + sigma**2)
        centred = (x - alpha * centre).reshape(-1)
        if basis is None:
            return centre + (gain * centred).reshape(x.shape)
        axes = jnp.asarray(basis, x.dtype)
        return centre + _dot(axes, gain * _dot(axes.T, centred)).reshape(x.shape)

    return denoiser


def gaussian_mixture(schedule: Schedule, weights: ArrayLike, means: ArrayLike, variances: ArrayLike) -> Denoiser:
    """Of data sum_k w_k N(m_k, s_k^2): the components' denoisers, weighted by their posterior probabilities at x.

    Args:
      schedule: of the noise.
      weights: (K,), >= 0, of sum 1.
      means: (K,) + event shape.
      variances: s_k^2 >= 0, (K,), or (K,) + event shape.

    Raises ValueError for other shapes, weights or variances.
    """
    weights, means, variances = np.asarray(weights), np.asarray(means), np.asarray(variances)
    num = means.shape[0]
    if weights.shape != (num,) or variances.shape not in ((num,), means.shape):
        raise ValueError(
            f"means (K,) + event shape want weights (K,) and variances (K,) or those of means, got {means.shape}, "
            f"{weights.shape}, {variances.shape}"
        )
    if not np.isclose(float(weights.sum()), 1.0, atol=1e-4) or not (weights >= 0).all():
        raise ValueError(f"weights must be >= 0 and sum to 1, got {weights}")
    if not (variances >= 0).all():
        raise ValueError(f"variances must be >= 0, got {variances}")
    centres = means.reshape(num, -1)
    with np.errstate(divide="ignore"):
        known = centres, np.broadcast_to(variances.reshape(num, -1), centres.shape), np.log(weights)

    def denoiser(x, t):
        flat, spread, log_weights = (jnp.asarray(a, x.dtype) for a in known)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        total = alpha**2 * spread + sigma**2
        centred = x.reshape(1, -1) - alpha * flat
        log_joint = log_weights - 0.5 * jnp.sum(centred**2 / total + jnp.log(total), 1)
        each = flat + alpha * spread / total * centred
        return _dot(jax.nn.softmax(log_joint), each).reshape(x.shape)

    return denoiser


def empirical(schedule: Schedule, points: ArrayLike) -> Denoiser:
    """Of data that are exactly `points`, (n,) + event shape: their mean, weighted by N(x; alpha point, sigma^2).

    What a network that fits its training set perfectly would learn: samples are then training points.
    """
    points = np.asarray(points)
    if points.ndim < 1 or len(points) == 0:
        raise ValueError(f"points must be (n,) + event shape, n >= 1, got shape {points.shape}")
    return gaussian_mixture(schedule, np.full(points.shape[0], 1.0 / points.shape[0]), points, np.zeros(points.shape[0]))


def guided(conditional: Denoiser, unconditional: Denoiser, weight: float) -> Denoiser:
    """Classifier-free guidance, D_u + weight (D_c - D_u) (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, weight = 1 + w)."""
    check_function(conditional=conditional, unconditional=unconditional)

    def denoiser(x, t):
        without = unconditional(x, t)
        return without + weight * (conditional(x, t) - without)

    return denoiser


def clipped(denoiser: Denoiser, low: ArrayLike, high: ArrayLike) -> Denoiser:
    """D cut to [low, high], the range of the data (Ho et al. 2020, arXiv:2006.11239, whose samplers do it for images).

    Where there is all but no signal a network that predicts eps divides its error by alpha; cut, the error stays bounded. Raises
    ValueError unless low < high.
    """
    check_function(denoiser=denoiser)
    if not (np.asarray(low) < np.asarray(high)).all():
        raise ValueError(f"clipping wants low < high, got {low} and {high}")
    return lambda x, t: jnp.clip(denoiser(x, t), low, high)


def wide_range(x: Array) -> tuple[Array, Array]:
    """(low, high) for `kept_in_range`: the range of all numbers of a batch and as much again on both sides; all that floats hold
    where it has no width."""
    low, high = x.min(), x.max()
    width, largest = high - low, jnp.finfo(x.dtype).max
    return jnp.where(width > 0, low - width, -largest), jnp.where(width > 0, high + width, largest)


def kept_in_range(denoiser: Denoiser, schedule: Schedule, low: ArrayLike, high: ArrayLike) -> Denoiser:
    """D cut to [low, high] where the noise is wider than that range of the data, sigma > alpha (high - low).

    There D is all but the mean of the data, which lies inside whatever else the range has missed, and the error of a network that
    predicts eps is multiplied by sigma / alpha. Where there is signal D stays as it is.
    """
    check_function(denoiser=denoiser)
    low, high = jnp.asarray(low), jnp.asarray(high)

    def cut(x, t):
        data = denoiser(x, t)
        blind = schedule.sigma(t) > schedule.alpha(t) * (high - low)
        return jnp.where(blind, jnp.clip(data, low, high), data)

    return cut


def dynamically_clipped(denoiser: Denoiser, quantile: float = 0.995, limit: float = 1.0) -> Denoiser:
    """D cut to [-s, s] and divided by s / limit, s the quantile of |D| over the event, at least `limit`.

    Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3), for data in [-limit, limit] under strong guidance.
    Raises ValueError for a quantile outside (0, 1], and for a limit that is not positive.
    """
    check_function(denoiser=denoiser)
    check_positive(limit=limit)
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")

    def cut(x, t):
        data = denoiser(x, t)
        size = jnp.maximum(jnp.quantile(jnp.abs(data), quantile), limit)
        return jnp.clip(data, -size, size) * (limit / size)

    return cut


def posterior(
    denoiser: Denoiser,
    schedule: Schedule,
    observe: Callable[[Array], Array],
    y: ArrayLike,
    noise_std: ArrayLike,
    *,
    num_iterations: int = 5,
) -> Denoiser:
    """The denoiser of x_0 given y = observe(x_0) + noise_std eps: E[x_0 | x_t, y] by moment matching.

    Args:
      denoiser: of x_0 alone. schedule: of the noise.
      observe: event -> observation, differentiable. Inpainting is `lambda x: mask * x`, with y masked too.
      y: what was observed, of the shape that `observe` returns.
      noise_std: standard deviation of its noise.
      num_iterations: of the solver; as many as there are observations make it exact.

    x_0 given x_t is taken for Gaussian, with mean D and covariance V = sigma^2 / alpha dD/dx (Rozet et al. 2024,
    arXiv:2405.13712, eqs. 18-21), and `observe` is linearised at D, A its derivative; both are exact for Gaussian data seen
    through an affine map, given an iteration for each observation:

        D + V A^T (noise_std^2 I + A V A^T)^-1 (y - observe(D))

    solved in `num_iterations` steps of GMRES, each one vector-Jacobian product of the denoiser (conjugate gradients, as in the
    paper, diverge now and then: a network's Jacobian is neither symmetric nor positive). Any sampler then draws from the
    posterior. Raises ValueError where y has not the shape that `observe` returns, and for noise_std <= 0.
    """
    check_function(denoiser=denoiser, observe=observe)
    check_positive(noise_std=noise_std)
    check_count(num_iterations=num_iterations)
    y = jnp.asarray(y)

    def conditional(x, t):
        t = jnp.asarray(t)
        mean, pull = jax.vjp(lambda x: denoiser(x, t).astype(x.dtype), x)
        seen, push = jax.linearize(observe, mean)
        transpose = jax.linear_transpose(push, mean)
        if seen.shape != y.shape:
            raise ValueError(f"y must have the shape that observe returns, {seen.shape}, got {y.shape}")
        scale = (schedule.sigma(t) ** 2 / schedule.alpha(t)).astype(x.dtype)
        single = jnp.promote_types(seen.dtype, jnp.float32)  # there is no linear algebra in half precision
        noise = jnp.asarray(noise_std, single)

        def covariance(u):  # V A^T u, the Jacobian of D being symmetric
            return scale * pull(transpose(u.astype(seen.dtype))[0])[0]

        residual = y.astype(single) - seen.astype(single)
        solved, _ = jax.scipy.sparse.linalg.gmres(
            lambda u: noise**2 * u + push(covariance(u)).astype(single), residual, tol=1e-6, restart=num_iterations, maxiter=1
        )
        return mean + covariance(solved)

    return conditional


def _spectrum(covariance: ArrayLike, event_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    """(variances along a basis, the basis as columns or None for the coordinates)."""
    covariance, size = np.asarray(covariance), int(np.prod(event_shape, dtype=int))
    if covariance.shape == () or covariance.shape == event_shape:
        variances, basis = np.broadcast_to(covariance, event_shape).reshape(-1), None
    elif covariance.shape == (size, size):
        variances, basis = np.linalg.eigh(covariance)
    else:
        raise ValueError(
            f"covariance must be a scalar, of the event's shape {event_shape} or ({size}, {size}), got {covariance.shape}"
        )
    if not (variances > -1e-6 * np.abs(variances).max()).all():
        raise ValueError("covariance must be positive semidefinite")
    return np.maximum(variances, 0.0), basis


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
