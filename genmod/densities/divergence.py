"""KL(q || p) in closed form, where one is known.

Gaussian     log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1 / 2,  and with full covariances
             (tr(S_p^-1 S_q) + |L_p^-1 (m_p - m_q)|^2 - D + log det S_p - log det S_q) / 2
Bernoulli, categorical     sum_k q_k log(q_k / p_k)
Poisson      l log(l / r) + r - l                                       of rates l and r
"""

import jax
import jax.numpy as jnp

from genmod.core.distribution import Distribution
from genmod.core.types import Array, Context, Params
from genmod.densities.amortized import Amortized
from genmod.densities.factorized import Factorized
from genmod.densities.heads import NormalHead
from genmod.densities.learned import FullNormal
from genmod.densities.relaxed import StraightThrough
from genmod.densities.standard import Normal


def kl_one(
    q: Distribution,
    q_params: Params,
    q_context: Context,
    p: Distribution,
    p_params: Params,
    p_context: Context = None,
) -> Array | None:
    """KL(q || p) of ONE context, in nats; None where no closed form is known.

    Args:
      q, p: over the same events. q_params, p_params: of each. q_context, p_context: of each, None without one.

    Returns an array whose sum is the divergence, where both are independent entry by entry (of the event's shape; of one-hot
    vectors an entry is one vector); a scalar of full Gaussians. Raises ValueError for events that differ.
    """
    if q.event != p.event:
        raise ValueError(f"q and p must have the same events, got {q.event} and {p.event}")
    (q, q_params), (p, p_params) = _plain(q, q_params, q_context), _plain(p, p_params, p_context)
    if isinstance(q, Factorized) and isinstance(p, Factorized):
        return q.head.kl(q_params["raw"], p.head, p_params["raw"])
    if isinstance(q, StraightThrough) and isinstance(p, StraightThrough):
        return q.relaxed.head.kl(q_params["raw"], p.relaxed.head, p_params["raw"])
    moments = _moments(q, q_params), _moments(p, p_params)
    if moments[0] is None or moments[1] is None:
        return None
    return _full_gaussian(*moments[0], *moments[1])


def _plain(law: Distribution, params: Params, context: Context) -> tuple[Distribution, Params]:
    """Without a context, and a standard normal as one whose raw numbers are zero."""
    if isinstance(law, Amortized):
        return law.distribution, law.at(params, context)
    if isinstance(law, Normal):
        return Factorized(NormalHead(law.scale), law.shape), {"raw": jnp.zeros((*law.shape, 1))}
    return law, params


def _moments(law: Distribution, params: Params) -> tuple[Array, Array] | None:
    """Mean and Cholesky factor of a Gaussian of vectors."""
    if isinstance(law, FullNormal):
        return params["mean"], law.factor(params)
    if isinstance(law, Factorized) and isinstance(law.head, NormalHead) and len(law.shape) == 1:
        return law.head.mean(params["raw"]), jnp.diag(jnp.exp(law.head.log_scale(params["raw"])))
    return None


def _full_gaussian(mean: Array, factor: Array, other_mean: Array, other_factor: Array) -> Array:
    ratio = jax.scipy.linalg.solve_triangular(other_factor, factor, lower=True)
    offset = jax.scipy.linalg.solve_triangular(other_factor, mean - other_mean, lower=True)
    log_det = jnp.log(jnp.diagonal(other_factor)).sum() - jnp.log(jnp.diagonal(factor)).sum()
    return 0.5 * (jnp.sum(ratio**2) + jnp.sum(offset**2) - mean.size) + log_det
