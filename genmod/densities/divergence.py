"""KL(q || p) in closed form, where one is known.

Gaussian     log(s_p / s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1 / 2,  and with full covariances
             (tr(S_p^-1 S_q) + |L_p^-1 (m_p - m_q)|^2 - D + log det S_p - log det S_q) / 2
Bernoulli, categorical     sum_k q_k log(q_k / p_k)
Poisson      l log(l / r) + r - l                                       of rates l and r
von Mises    A(k) (k - l cos(m - n)) - log I_0(k) + log I_0(l)          of concentrations k and l, directions m and n;
             A = I_1 / I_0, and the uniform law on the circle has l = 0 (Davidson et al. 2018, arXiv:1804.00891)
"""

import math

import jax
import jax.numpy as jnp

from genmod.core.distribution import Distribution
from genmod.core.types import Array, Context, Params
from genmod.densities import circular
from genmod.densities.amortized import Amortized
from genmod.densities.factorized import Factorized
from genmod.densities.heads import BernoulliHead, CategoricalHead, NormalHead, PoissonHead, normal_kl
from genmod.densities.learned import FullNormal
from genmod.densities.random_function import RandomFunctionPosterior, normal_moments
from genmod.densities.relaxed import StraightThrough
from genmod.densities.standard import Normal, Uniform
from genmod.densities.stepwise import Stepwise
from genmod.densities.von_mises import VonMises, VonMisesHead


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
    angles = _angles(q, q_params), _angles(p, p_params)
    if angles[0] is not None and angles[1] is not None:
        return circular.divergence(angles[0], angles[1])
    if isinstance(q, Factorized) and isinstance(p, Factorized):
        return q.head.kl(q_params["raw"], p.head, p_params["raw"])
    if isinstance(q, StraightThrough) and isinstance(p, StraightThrough):
        return q.relaxed.head.kl(q_params["raw"], p.relaxed.head, p_params["raw"])
    diagonal = _diagonal(q, q_params, q_context), _diagonal(p, p_params, p_context)
    if diagonal[0] is not None and diagonal[1] is not None:
        return normal_kl(*diagonal[0], *diagonal[1])
    full = _full(q, q_params, diagonal[0]), _full(p, p_params, diagonal[1])
    if full[0] is None or full[1] is None:
        return None
    return _full_gaussian(*full[0], *full[1])


def _plain(law: Distribution, params: Params, context: Context) -> tuple[Distribution, Params]:
    """Without a context where that moves parameters alone, and a standard normal as one whose raw numbers are zero."""
    if isinstance(law, Stepwise) and isinstance(law.law, Amortized) and isinstance(law.law.distribution, Factorized):
        return Factorized(law.law.distribution.head, law.event_shape), jax.vmap(law.law.at, (None, 0))(params, context)
    if isinstance(law, Amortized):
        return law.distribution, law.at(params, context)
    if isinstance(law, Normal):
        return Factorized(NormalHead(law.scale), law.shape), {"raw": jnp.zeros((*law.shape, 1))}
    return law, params


def _angles(law: Distribution, params: Params) -> Array | None:
    """The natural parameters of independent angles, shape + (2,)."""
    if isinstance(law, VonMises):
        return params["natural"]
    if isinstance(law, Factorized) and isinstance(law.head, VonMisesHead):
        return law.head.natural(params["raw"])
    if isinstance(law, Uniform) and law.support == (-math.pi, math.pi):
        return jnp.zeros((*law.shape, 2))
    return None


def _diagonal(law: Distribution, params: Params, context: Context) -> tuple[Array, Array] | None:
    """Mean and log of the standard deviation of a Gaussian of independent entries."""
    if isinstance(law, RandomFunctionPosterior):
        return law.moments(params, context)
    if isinstance(law, Factorized) and isinstance(law.head, NormalHead):
        return normal_moments(law, params)
    return None


def _full(law: Distribution, params: Params, diagonal: tuple[Array, Array] | None) -> tuple[Array, Array] | None:
    """Mean and Cholesky factor of a Gaussian of vectors, whose `_diagonal` is known where there is one."""
    if isinstance(law, FullNormal):
        return params["mean"], law.factor(params)
    if diagonal is None or diagonal[0].ndim != 1:
        return None
    return diagonal[0], jnp.diag(jnp.exp(diagonal[1]))


def _full_gaussian(mean: Array, factor: Array, other_mean: Array, other_factor: Array) -> Array:
    ratio = jax.scipy.linalg.solve_triangular(other_factor, factor, lower=True)
    offset = jax.scipy.linalg.solve_triangular(other_factor, mean - other_mean, lower=True)
    log_det = jnp.log(jnp.diagonal(other_factor)).sum() - jnp.log(jnp.diagonal(factor)).sum()
    return 0.5 * (jnp.sum(ratio**2) + jnp.sum(offset**2) - mean.size) + log_det


def gaussian_one(law: Distribution, params: Params, context: Context = None) -> tuple[Array, Array] | None:
    """Mean, (D,), and Cholesky factor of the covariance, (D, D), of the entries in one row, of ONE context.

    None of a law that is no Gaussian.
    """
    law, params = _plain(law, params, context)
    diagonal = _diagonal(law, params, context)
    if diagonal is None or diagonal[0].ndim == 1:
        return _full(law, params, diagonal)
    return diagonal[0].reshape(-1), jnp.diag(jnp.exp(diagonal[1].reshape(-1)))


def log_masses_one(law: Distribution, params: Params, context: Context = None) -> Array | None:
    """log P of every level of independent entries, shape + (levels,), of ONE context; None of a law of another kind."""
    law, params = _plain(law, params, context)
    head = law.relaxed.head if isinstance(law, StraightThrough) else law.head if isinstance(law, Factorized) else None
    if isinstance(head, CategoricalHead):
        return jax.nn.log_softmax(params["raw"])
    if isinstance(head, BernoulliHead):
        return jnp.concatenate([jax.nn.log_sigmoid(-params["raw"]), jax.nn.log_sigmoid(params["raw"])], -1)
    return None


def log_rates_one(law: Distribution, params: Params, context: Context = None) -> Array | None:
    """The log-rates of independent Poisson counts, of the event's shape, of ONE context; None of a law of another kind."""
    law, params = _plain(law, params, context)
    if isinstance(law, Factorized) and isinstance(law.head, PoissonHead):
        return law.head.log_rate(params["raw"])
    return None
