"""Entropy, Renyi's divergence and the Wasserstein distance in closed form, where one is known; `kl_one` has the KL.

With q and p for the densities of Gaussians N(m, S) and N(n, T), masses q_k and p_k, rates l and r:

entropy     (D log 2 pi e + log det S) / 2,    -sum_k q_k log q_k,    the log of the volume of a box
Renyi       log int q^a p^(1 - a) / (a - 1)                                        (Gil et al. 2013, 10.1016/j.ins.2013.06.018)
            a/2 d' V^-1 d - log(det V / (det S^(1 - a) det T^a)) / (2 (a - 1)),    V = (1 - a) S + a T,  d = m - n; inf where V
                                                                                   is not positive definite
            log sum_k q_k^a p_k^(1 - a) / (a - 1)
            (l^a r^(1 - a) - a l - (1 - a) r) / (a - 1)
W_2^2       |m - n|^2 + tr(S + T - 2 (T^1/2 S T^1/2)^1/2)                          (Dowson & Landau 1982)
W_1         E|m - n + (s - t) z|, z ~ N(0, 1), on the line
"""

import math

import jax
import jax.numpy as jnp

from genmod.core.distribution import Distribution
from genmod.core.types import Array, Context, Params
from genmod.densities.divergence import gaussian_one, log_masses_one, log_rates_one
from genmod.densities.standard import Uniform


def entropy_one(law: Distribution, params: Params, context: Context = None) -> Array | None:
    """-E[log p] of ONE context, a scalar in nats; None where no closed form is known."""
    if isinstance(law, Uniform):
        return jnp.asarray(math.prod(law.shape) * math.log(law.high - law.low))
    if (gaussian := gaussian_one(law, params, context)) is not None:
        mean, factor = gaussian
        return 0.5 * mean.size * (1 + math.log(2 * math.pi)) + _log_diagonal(factor)
    if (masses := log_masses_one(law, params, context)) is not None:
        return jnp.sum(jax.scipy.special.entr(jnp.exp(masses)))
    return None


def renyi_one(
    q: Distribution,
    q_params: Params,
    q_context: Context,
    p: Distribution,
    p_params: Params,
    p_context: Context = None,
    *,
    alpha: float,
) -> Array | None:
    """Renyi's divergence of order alpha of q from p, a scalar in nats; None where no closed form is known.

    The order is positive and not 1; that of 2 is log(1 + chi^2). Other arguments as those of `kl_one`.
    """
    laws = (q, q_params, q_context), (p, p_params, p_context)
    gaussians = [gaussian_one(*law) for law in laws]
    if gaussians[0] is not None and gaussians[1] is not None:
        return _gaussian_renyi(*gaussians[0], *gaussians[1], alpha)
    masses = [log_masses_one(*law) for law in laws]
    if masses[0] is not None and masses[1] is not None:
        possible = masses[0] > -jnp.inf  # levels without mass under q add nothing, whatever p says of them
        q_mass, p_mass = jnp.where(possible, masses[0], 0.0), jnp.where(possible, masses[1], 0.0)
        crossed = jnp.where(possible, alpha * q_mass + (1 - alpha) * p_mass, -jnp.inf)
        return jnp.sum(jax.nn.logsumexp(crossed, -1)) / (alpha - 1)
    rates = [log_rates_one(*law) for law in laws]
    if rates[0] is not None and rates[1] is not None:
        crossed = jnp.exp(alpha * rates[0] + (1 - alpha) * rates[1])
        return jnp.sum(crossed - alpha * jnp.exp(rates[0]) - (1 - alpha) * jnp.exp(rates[1])) / (alpha - 1)
    return None


def wasserstein_one(
    q: Distribution,
    q_params: Params,
    q_context: Context,
    p: Distribution,
    p_params: Params,
    p_context: Context = None,
    *,
    order: float,
) -> Array | None:
    """The Wasserstein distance of Gaussians, of order 2, and of order 1 on the line, a scalar in the units of x; None of others.

    Arguments as those of `kl_one`.
    """
    this, other = gaussian_one(q, q_params, q_context), gaussian_one(p, p_params, p_context)
    if this is None or other is None:
        return None
    (mean, factor), (other_mean, other_factor) = this, other
    offset = mean - other_mean
    if order == 2:
        # The trace of the root is the sum of the singular values of L' M.
        crossed = jnp.linalg.svd(jnp.matmul(factor.T, other_factor, precision="highest"), compute_uv=False).sum()
        squares = jnp.sum(offset**2) + jnp.sum(factor**2) + jnp.sum(other_factor**2) - 2 * crossed
        return jnp.sqrt(jnp.maximum(squares, 0.0))
    if order == 1 and mean.size == 1:
        return _folded_mean(offset[0], factor[0, 0] - other_factor[0, 0])
    return None


def _folded_mean(mean: Array, scale: Array) -> Array:
    """E|mean + scale z|."""
    scale = jnp.maximum(jnp.abs(scale), jnp.finfo(scale.dtype).tiny)
    z = mean / scale
    return mean * (1 - 2 * jax.scipy.stats.norm.cdf(-z)) + 2 * scale * jax.scipy.stats.norm.pdf(z)


def _gaussian_renyi(mean: Array, factor: Array, other_mean: Array, other_factor: Array, alpha: float) -> Array:
    # In the coordinates where the other is N(0, I), V = a I + (1 - a) S.
    ratio = jax.scipy.linalg.solve_triangular(other_factor, factor, lower=True)
    offset = jax.scipy.linalg.solve_triangular(other_factor, mean - other_mean, lower=True)
    covariance = jnp.matmul(ratio, ratio.T, precision="highest")
    values, vectors = jnp.linalg.eigh(alpha * jnp.eye(mean.size, dtype=mean.dtype) + (1 - alpha) * covariance)
    finite = (values > 0).all()
    values = jnp.where(finite, values, 1.0)
    squares = jnp.sum(jnp.matmul(vectors.T, offset, precision="highest") ** 2 / values)
    log_dets = jnp.sum(jnp.log(values)) - 2 * (1 - alpha) * _log_diagonal(ratio)
    return jnp.where(finite, 0.5 * alpha * squares - 0.5 * log_dets / (alpha - 1), jnp.inf)


def _log_diagonal(factor: Array) -> Array:
    return jnp.log(jnp.abs(jnp.diagonal(factor))).sum()
