"""The Bayesian mixture of Gaussians by mean-field variational inference (Bishop 2006, sec. 10.2).

    pi ~ Dir(a0),  Lambda_k ~ W(W0, nu0),  mu_k | Lambda_k ~ N(m0, (b0 Lambda_k)^-1),  x_n ~ sum_k pi_k N(mu_k, Lambda_k^-1)

    q(z, pi, mu, Lambda) = q(z) q(pi) prod_k q(mu_k, Lambda_k),  each of the family of its prior

A sweep of coordinate ascent sets q(z), then the rest (eq. 10.46 - 10.67). The bound on log p(x) is the full one, in nats, with
every constant: with q(z) at its optimum

    L = sum_n log sum_k rho_nk - KL(q(pi) || p(pi)) - sum_k KL(q(mu_k, Lambda_k) || p(mu_k, Lambda_k))

which is eq. 10.70 in fewer terms. At K = 1 nothing is approximated, and L is the evidence.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import digamma, gammaln
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_count, check_positive
from genmod.core.keys import check_key
from genmod.core.spread import spread_rows
from genmod.core.types import Array, Key

_LOG_2, _LOG_PI = math.log(2.0), math.log(math.pi)


class MixtureLaw(NamedTuple):
    """A law of the parameters of a mixture: Dirichlet weights, and normal-Wishart means and precisions.

    Attributes:
      concentration: a of the Dirichlet, (K,).
      mean: m, (K, D). strength: b, the number of observations that the mean is worth, (K,).
      dof: nu, above D - 1, (K,). scatter: W^-1, (K, D, D): the expected precision is nu W.
    """

    concentration: Array
    mean: Array
    strength: Array
    dof: Array
    scatter: Array


class MixtureFit(NamedTuple):
    """The best of several runs of coordinate ascent.

    Attributes:
      posterior: its law of the parameters. bound: on the log-evidence, in nats.
      bounds: of all runs after every sweep, (num_restarts, num_sweeps + 1), NaN after the end of a run.
      converged: whether the best run ended because its bound rose no more.
    """

    posterior: MixtureLaw
    bound: Array
    bounds: Array
    converged: Array


def mixture_prior(
    num_components: int,
    mean: ArrayLike,
    scatter: ArrayLike,
    *,
    concentration: float = 1.0,
    strength: float = 1.0,
    dof: float | None = None,
) -> MixtureLaw:
    """A prior that is equal for all components.

    Args:
      num_components: K.
      mean: m0 of every component, (D,). scatter: W0^-1, (D, D): with `dof` = nu0 the expected precision is nu0 W0.
      concentration: a0 of every weight; below 1 it prefers few components.
      strength: b0, how many observations m0 is worth. dof: nu0 > D - 1; None: D + 1.

    Raises ValueError or TypeError for arguments that make no law.
    """
    check_count(num_components=num_components)
    mean, scatter = check_array("mean", mean), check_array("scatter", scatter)
    if mean.ndim != 1 or scatter.shape != 2 * mean.shape:
        raise ValueError(f"mean must have shape (D,) and scatter (D, D), got {mean.shape} and {scatter.shape}")
    dim = mean.size
    dof = dim + 1.0 if dof is None else dof
    check_positive(concentration=concentration, strength=strength)
    if not dof > dim - 1:
        raise ValueError(f"dof must be > D - 1 = {dim - 1}, where the Wishart law is proper, got {dof}")
    if not isinstance(scatter, Tracer):
        known = np.asarray(scatter)
        if not np.allclose(known, known.T) or not np.linalg.eigvalsh(known)[0] > 0:
            raise ValueError("scatter must be symmetric and positive definite")
    one = MixtureLaw(*(jnp.asarray(value, mean.dtype) for value in (concentration, mean, strength, dof, scatter)))
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num_components, *a.shape)), one)


def fit_mixture(
    x: ArrayLike,
    prior: MixtureLaw,
    *,
    key: Key,
    num_restarts: int = 8,
    num_sweeps: int = 500,
    tolerance: float = 1e-6,
) -> MixtureFit:
    """Coordinate ascent for the posterior of a Gaussian mixture (CAVI), from several starts. One compiled program.

    Args:
      x: (n, D). prior: of `mixture_prior`; its number of components is that of the mixture.
      key: of the starts: K data each, spread as those of k-means++, to the nearest of which the others belong.
      num_restarts: how many starts; the best bound wins. num_sweeps: at most so many of each.
      tolerance: a run ends when a sweep raises the bound by no more nats per datum.

    Returns a `MixtureFit`. Raises ValueError or TypeError for data that do not fit the prior.
    """
    x, prior = check_mixture(x, prior)
    check_count(num_restarts=num_restarts, num_sweeps=num_sweeps)
    check_positive(tolerance=tolerance)
    return best_of(num_sweeps, tolerance, jax.random.split(check_key(key), num_restarts), x, prior)


@functools.partial(jax.jit, static_argnums=(0, 1))
def best_of(num_sweeps: int, tolerance: float, keys: Key, x: Array, prior: MixtureLaw) -> MixtureFit:
    """`fit_mixture` of arguments that have been checked, with a start for each of the keys."""

    def run(key):
        law = spread_start(key, x, prior)
        log_rho = log_responsibilities(law, x)
        first = mixture_bound(law, prior, log_rho)
        bounds = jnp.full(num_sweeps + 1, jnp.nan, first.dtype).at[0].set(first)

        def unfinished(loop):
            _, _, _, num, rise = loop
            return (num < num_sweeps) & (rise > tolerance * x.shape[0])

        def sweep(loop):
            _, log_rho, bounds, num, _ = loop
            law = mixture_update(prior, x, jax.nn.softmax(log_rho, axis=1))
            log_rho = log_responsibilities(law, x)
            bound = mixture_bound(law, prior, log_rho)
            return law, log_rho, bounds.at[num + 1].set(bound), num + 1, bound - bounds[num]

        loop = (law, log_rho, bounds, jnp.int32(0), jnp.asarray(jnp.inf, first.dtype))
        law, _, bounds, num, rise = jax.lax.while_loop(unfinished, sweep, loop)
        return law, bounds[num], bounds, rise <= tolerance * x.shape[0]

    laws, ends, bounds, converged = jax.lax.map(run, keys)
    best = jnp.argmax(ends)
    return MixtureFit(jax.tree.map(lambda a: a[best], laws), ends[best], bounds, converged[best])


# --- the steps of coordinate ascent --------------------------------------------------------------------------------------------


def spread_start(key: Key, x: Array, prior: MixtureLaw) -> MixtureLaw:
    """The law after every datum went to the nearest of K data, drawn as by k-means++ (`spread_rows`), in units of the prior's
    scatter."""
    num_components = prior.mean.shape[0]
    white = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(prior.scatter[0]), x.T, lower=True).T
    nearest = spread_rows(key, white, num_components).nearest
    return mixture_update(prior, x, jax.nn.one_hot(nearest, num_components, dtype=x.dtype))


def mixture_update(prior: MixtureLaw, x: Array, counts: Array) -> MixtureLaw:
    """The optimal law given how much of every datum each component has, (n, K) (Bishop 2006, eq. 10.51 - 10.63)."""

    def one(prior, count):
        total = count.sum()
        centre = jnp.matmul(count, x) / jnp.maximum(total, jnp.finfo(x.dtype).tiny)
        deviation = x - jnp.broadcast_to(centre, x.shape)  # centred: no difference of large squares
        scatter = jnp.matmul(deviation.T * jnp.broadcast_to(count, deviation.T.shape), deviation, precision="highest")
        strength = prior.strength + total
        offset = centre - prior.mean
        shrunk = prior.strength * total / strength
        return MixtureLaw(
            prior.concentration + total,
            (prior.strength * prior.mean + total * centre) / strength,
            strength,
            prior.dof + total,
            prior.scatter + scatter + shrunk * jnp.outer(offset, offset),
        )

    return jax.vmap(one)(prior, counts.T)


def log_responsibilities(law: MixtureLaw, x: Array) -> Array:
    """log rho_nk, (n, K): the softmax over components is q(z_n = k) (Bishop 2006, eq. 10.46, 10.64 - 10.66)."""
    dim = x.shape[1]
    log_weight = digamma(law.concentration) - digamma(law.concentration.sum())

    def one(mean, strength, dof, scatter):
        factor = jnp.linalg.cholesky(scatter)
        z = jax.scipy.linalg.solve_triangular(factor, (x - jnp.broadcast_to(mean, x.shape)).T, lower=True)
        quadratic = dim / strength + dof * jnp.sum(z**2, 0)
        return 0.5 * (_expected_log_det(factor, dof) - dim * (_LOG_2 + _LOG_PI) - quadratic)

    rows = jax.vmap(one)(law.mean, law.strength, law.dof, law.scatter)
    return rows.T + jnp.broadcast_to(log_weight, rows.T.shape)


def mixture_bound(law: MixtureLaw, prior: MixtureLaw, log_rho: Array) -> Array:
    """L of this law with q(z) at its optimum, in nats, of the log-responsibilities of all data."""
    return jax.nn.logsumexp(log_rho, axis=1).sum() - mixture_divergence(law, prior)


def mixture_divergence(law: MixtureLaw, prior: MixtureLaw) -> Array:
    """KL(law || prior) in nats: of the Dirichlet, and of the normal-Wishart of every component."""
    return _dirichlet(law.concentration, prior.concentration) + jax.vmap(_normal_wishart)(law, prior).sum()


def _dirichlet(a: Array, b: Array) -> Array:
    excess = jnp.sum((a - b) * (digamma(a) - digamma(a.sum())))
    return gammaln(a.sum()) - gammaln(a).sum() - gammaln(b.sum()) + gammaln(b).sum() + excess


def _normal_wishart(q: MixtureLaw, p: MixtureLaw) -> Array:
    """Of one component: E_q KL(q(mu | Lambda) || p(mu | Lambda)) + KL(q(Lambda) || p(Lambda)) (Bishop 2006, eq. B.78 - B.81)."""
    dim = q.mean.size
    factor, other = jnp.linalg.cholesky(q.scatter), jnp.linalg.cholesky(p.scatter)
    offset = jax.scipy.linalg.solve_triangular(factor, q.mean - p.mean, lower=True)
    ratio = p.strength / q.strength
    means = 0.5 * (dim * (ratio - 1.0 - jnp.log(ratio)) + p.strength * q.dof * jnp.sum(offset**2))
    trace = jnp.sum(jax.scipy.linalg.solve_triangular(factor, other, lower=True) ** 2)
    normalizers = _wishart_normalizer(factor, q.dof) - _wishart_normalizer(other, p.dof)
    return means + normalizers + 0.5 * ((q.dof - p.dof) * _expected_log_det(factor, q.dof) + q.dof * (trace - dim))


def _expected_log_det(factor: Array, dof: Array) -> Array:
    """E log |Lambda|, with the Cholesky factor of the scatter W^-1 (Bishop 2006, eq. 10.65)."""
    dim = factor.shape[0]
    return digamma(0.5 * (dof - jnp.arange(dim, dtype=factor.dtype))).sum() + dim * _LOG_2 - _log_det(factor)


def _wishart_normalizer(factor: Array, dof: Array) -> Array:
    """log B(W, nu) (Bishop 2006, eq. B.79)."""
    dim = factor.shape[0]
    gammas = gammaln(0.5 * (dof - jnp.arange(dim, dtype=factor.dtype))).sum()
    return 0.5 * dof * (_log_det(factor) - dim * _LOG_2) - 0.25 * dim * (dim - 1) * _LOG_PI - gammas


def _log_det(factor: Array) -> Array:
    return 2.0 * jnp.log(jnp.diagonal(factor)).sum()


def check_mixture(x: ArrayLike, prior: MixtureLaw) -> tuple[Array, MixtureLaw]:
    """The data and the prior in one precision; raises TypeError or ValueError where they do not fit."""
    x = check_array("x", x, batched=True)
    if not isinstance(prior, MixtureLaw):
        raise TypeError(f"prior must be a MixtureLaw, made by mixture_prior, got a {type(prior).__name__}")
    if x.ndim != 2 or x.shape[1] != prior.mean.shape[1]:
        raise ValueError(f"x must have shape (n, {prior.mean.shape[1]}), that of the prior's means, got {x.shape}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x, jax.tree.map(lambda a: jnp.asarray(a, x.dtype), prior)
