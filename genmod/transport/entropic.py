"""The entropic plan between uniform marginals, by Sinkhorn's iterations (Cuturi 2013, arXiv:1306.0895).

min_p sum_ij p_ij c_ij - e H(p),    p_ij = exp(u_i + v_j - c_ij / e)
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_count, check_positive
from genmod.core.types import Array, Key

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU multiplies float32 with 10 bits


def sinkhorn(cost: ArrayLike, epsilon: float = 0.05, num_iters: int = 50) -> Array:
    """log p of the entropic plan between uniform marginals, (n, m) -> (n, m). No gradient.

    `epsilon` is a FRACTION of the mean (finite) cost, so the plan does not change with the units. Each of `num_iters`
    iterations fits the rows, then the columns: sum_i p_ij = 1/m holds to rounding, sum_j p_ij = 1/n once converged, which
    takes the more iterations the smaller epsilon is (about 1/epsilon). +inf forbids a pair; each row and column wants one
    finite entry, else it becomes nan. Raises ValueError for a cost that is no matrix, epsilon <= 0, num_iters < 1.
    """
    cost = jax.lax.stop_gradient(jnp.asarray(cost))
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(f"cost must be a matrix, (n, m), got shape {cost.shape}")
    check_sinkhorn(epsilon, num_iters)
    return _sinkhorn(cost.astype(jnp.promote_types(cost.dtype, jnp.float32)), epsilon, num_iters)


def converged_sinkhorn(
    cost: ArrayLike, epsilon: float, tolerance: float, max_iters: int, *, scale: ArrayLike | None = None
) -> tuple[Array, Array]:
    """`sinkhorn`, iterated until the rows are right too: (log p, the error of the rows that is left).

    The error is the largest |n sum_j p_ij - 1|. Epsilon falls to its value by factors of 4, ten iterations each (Schmitzer 2019,
    arXiv:1610.06519, section 3.2); then come as many iterations as bring the error to `tolerance`, at most `max_iters`. `scale`:
    of what epsilon is a fraction; None: the mean cost. Raises as `sinkhorn`, and for a tolerance that is not positive.
    """
    check_sinkhorn(epsilon, max_iters)
    check_positive(tolerance=tolerance)
    cost = jax.lax.stop_gradient(jnp.asarray(cost))
    cost = cost.astype(jnp.promote_types(cost.dtype, jnp.float32))
    return _converged(cost, float(epsilon), float(tolerance), max_iters, scale)


@functools.partial(jax.jit, static_argnums=2)
def _sinkhorn(cost: Array, epsilon: ArrayLike, num_iters: int) -> Array:
    score = _unit_score(cost) / epsilon
    lengths = [min(10, num_iters - 1 - done) for done in range(0, num_iters - 1, 10)]
    start = _fit_rows(score, jnp.zeros(cost.shape[1], cost.dtype))
    u, _ = jax.lax.scan(lambda u, length: (_iterate(score, u, length), None), start, jnp.array(lengths, jnp.int32))
    return _fit_columns(score, u)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _converged(cost: Array, epsilon: float, tolerance: float, max_iters: int, scale: ArrayLike | None) -> tuple[Array, Array]:
    unit = _unit_score(cost) if scale is None else -cost / jnp.where(jnp.asarray(scale) == 0, 1.0, scale)
    epsilons = [epsilon * 4.0**k for k in range(max(0, math.ceil(math.log(0.05 / epsilon, 4))), -1, -1)]

    def anneal(potential, epsilon):
        u = _iterate(unit / epsilon, potential / epsilon, 10)
        return u * epsilon, None

    start = epsilons[0] * _fit_rows(unit / epsilons[0], jnp.zeros(cost.shape[1], cost.dtype))
    potential, _ = jax.lax.scan(anneal, start, jnp.array(epsilons, cost.dtype))
    score = unit / epsilon

    def error(u):
        rows = jnp.exp(_fit_columns(score, u)).sum(1)
        return jnp.abs(cost.shape[0] * rows - 1).max()

    def unfinished(loop):
        u, left, done = loop
        return (left > tolerance) & (done < max_iters)

    def more(loop):
        u, _, done = loop
        u = _iterate(score, u, 10)
        return u, error(u), done + 10

    u = potential / epsilon
    u, left, _ = jax.lax.while_loop(unfinished, more, (u, error(u), jnp.int32(10 * len(epsilons))))
    return _fit_columns(score, u), left


def _unit_score(cost: Array) -> Array:
    """-cost in units of its mean (finite) entry."""
    allowed = jnp.isfinite(cost)
    scale = jnp.where(allowed, cost, 0.0).sum() / allowed.sum()
    return -cost / jnp.where(scale == 0, 1.0, scale)


def _fit_rows(score: Array, v: Array) -> Array:
    return -jax.nn.logsumexp(score + v[None], axis=1) - math.log(score.shape[0])


def _fit_columns(score: Array, u: Array) -> Array:
    """log p of these potentials of the rows."""
    return jax.nn.log_softmax(score + u[:, None], axis=0) - math.log(score.shape[1])


def _iterate(score: Array, u: Array, length: ArrayLike) -> Array:
    """`length` updates of the columns and then the rows. Of them only the last is in the log domain.

    The others scale the kernel of the potentials at the start: products instead of exponentials, 3 to 6 times as fast. A scale
    that would leave float32 is cut; that slows the convergence, but (u, v) stays valid (Schmitzer 2019, arXiv:1610.06519,
    section 3.1).
    """
    n, m = score.shape
    logits = score + u[:, None]
    top = logits.max(0)
    kernel = jnp.exp(logits - top[None])
    total = m * kernel.sum(0)
    kernel = kernel / total[None]

    def scale_both(_, b):
        a = 1.0 / jnp.maximum(n * jnp.matmul(kernel, b, precision=_HIGHEST), 1e-30)
        return 1.0 / jnp.maximum(m * jnp.matmul(a, kernel, precision=_HIGHEST), 1e-30)

    b = jax.lax.fori_loop(0, length - 1, scale_both, jnp.ones(m, score.dtype))
    return _fit_rows(score, jnp.log(b) - top - jnp.log(total))


def check_sinkhorn(epsilon: float, num_iters: int) -> None:
    """Raises ValueError for settings that make no plan."""
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, a fraction of the mean cost, got {epsilon!r}")
    check_count(num_iters=num_iters)


def draw_rows(log_plan: Array, key: Key) -> Array:
    """One row ~ plan[:, j] for every column j, (n, m) -> (m,), by inversion: m uniforms, not the n m of a Gumbel maximum."""
    plan = jnp.exp(log_plan)
    zeros = jnp.zeros_like(plan[0])
    # The total is summed in the same order as below, so that no rounding lets a draw pass the last row of positive weight.
    total = jax.lax.scan(lambda total, row: (total + row, None), zeros, plan)[0]
    level = jax.random.uniform(key, total.shape, total.dtype) * total

    def count(carry, row):
        total, index = carry
        total = total + row
        return (total, index + (total <= level)), None

    return jax.lax.scan(count, (zeros, jnp.zeros(total.shape, jnp.int32)), plan)[0][1]
