"""Discrete optimal transport: which of n source draws belongs to which of n data, for the pairs of flow matching.

Two samples x0 (n of them) and x1 (m) with uniform weights and a cost c_ij, here |x0_i - x1_j|^2. A plan p >= 0 has the
marginals sum_j p_ij = 1/n and sum_i p_ij = 1/m, and

    exact     min_p sum_ij p_ij c_ij                        for n = m solved by a permutation over n (Birkhoff): the assignment
    entropic  min_p sum_ij p_ij c_ij - e H(p)               p_ij = exp(u_i + v_j - c_ij / e), by Sinkhorn (Cuturi 2013,
                                                            arXiv:1306.0895), alternating between the two marginals

A **coupling** turns independent draws into pairs: `coupling(x0, x1, context, key)` are indices, and row i of the data is
paired with `x0[indices[i]]`. Data are never reordered or dropped, so with a plan of right marginals the pair still has both
laws, and flow matching learns the same marginals along straighter paths (OT-CFM, Tong et al. 2023, arXiv:2302.00482;
Pooladian et al. 2023, arXiv:2304.14772). The plan is that of the batch: it approaches that of the laws as the batch grows.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from genmod.base import Array, Context, Description, Key
from genmod.checks import check_count, check_event
from genmod.keys import check_key

_HIGHEST = jax.lax.Precision.HIGHEST  # else a GPU multiplies float32 with 10 bits


def squared_distances(x0: ArrayLike, x1: ArrayLike) -> Array:
    """|x0_i - x1_j|^2 of every pair, (n,) + event shape and (m,) + event shape -> (n, m), in at least float32.

    Up to 8 dimensions each term is a difference, squared: right to rounding. Above, |a|^2 - 2 a.b + |b|^2 about the mean of
    x1, which errs by a few eps times |a|^2 + |b|^2 and is cut at 0. Raises ValueError for different event shapes.
    """
    x0, x1 = check_event("x0", x0, None, batched=True), check_event("x1", x1, None, batched=True)
    if x0.shape[1:] != x1.shape[1:]:
        raise ValueError(f"x0 and x1 must have one event shape to have distances, got {x0.shape[1:]} and {x1.shape[1:]}")
    dtype = jnp.promote_types(jnp.promote_types(x0.dtype, x1.dtype), jnp.float32)
    a, b = (x.reshape(x.shape[0], -1).astype(dtype) for x in (x0, x1))
    if a.shape[1] <= 8:
        return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
    center = b.mean(0, keepdims=True)
    a, b = a - center, b - center
    products = jnp.matmul(a, b.T, precision=_HIGHEST)
    return jnp.maximum(jnp.sum(a**2, axis=1, keepdims=True) - 2.0 * products + jnp.sum(b**2, axis=1)[None], 0.0)


# --- exact --------------------------------------------------------------------------------------------------------------------


def assignment(cost: ArrayLike) -> Array:
    """The permutation s that minimises sum_i cost[i, s(i)]: (n, n) -> (n,) int32, the column of each row. No gradient.

    Solved in float64 on the host, within jit, scan and vmap too (there one after another). +inf forbids a pair. Raises
    ValueError for a cost that is not square, holds nan or -inf, or forbids every permutation; of these, a traced function can
    see only the shape, and answers the identity to the others: the batch goes on unpaired, and the nan shows where it arose.
    """
    cost = jax.lax.stop_gradient(jnp.asarray(cost))
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be square, (n, n), got shape {cost.shape}; n source draws are assigned to n data")
    if not isinstance(cost, Tracer):
        return jnp.asarray(host_assignment(np.array(cost, np.float64)), jnp.int32)
    columns = jax.ShapeDtypeStruct(cost.shape[:1], jnp.int32)
    return jax.pure_callback(_assignment_or_identity, columns, cost, vmap_method="sequential")


def _assignment_or_identity(cost: Array) -> np.ndarray:
    try:
        return host_assignment(np.array(cost, np.float64)).astype(np.int32)
    except ValueError:
        return np.arange(cost.shape[0], dtype=np.int32)


def host_assignment(cost: np.ndarray) -> np.ndarray:
    """`assignment` of a NumPy array, float64 (n, n), which it OVERWRITES to need no second one: (n,) columns.

    Raises ValueError for nan, -inf, or where +inf forbids every permutation.
    """
    # Constants of a row or a column change no minimiser. With potentials near the dual optimum taken off, the shortest
    # augmenting paths of SciPy are short: at n = 5,000 seconds instead of a minute or two.
    if cost.shape[0] > 200 and math.isfinite(cost.sum()):
        _reduce(cost)
    try:
        return linear_sum_assignment(cost)[1]
    except ValueError as error:
        raise ValueError(f"cost has no assignment: {error}; entries must be numbers, or +inf for a forbidden pair") from None


def _reduce(cost: np.ndarray) -> None:
    """Takes potentials off in place, such that the cost is >= 0, near 0 along its assignment: Sinkhorn with falling epsilon."""
    cost -= cost.mean(axis=1, keepdims=True)
    cost -= cost.mean(axis=0)
    scale = math.sqrt(np.vdot(cost, cost) / cost.size)
    potential = np.zeros(cost.shape[0], np.float32)
    kernel = np.empty(cost.shape, np.float32)
    for epsilon in (scale * fraction for fraction in (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003) if scale > 0):
        np.multiply(cost, -1.0 / epsilon, out=kernel, casting="unsafe")
        kernel += potential / np.float32(epsilon)
        kernel -= kernel.max(axis=1, keepdims=True)
        np.exp(np.maximum(kernel, -60.0, out=kernel), out=kernel)  # no denormals, which are slow
        kernel /= kernel.sum(axis=1, keepdims=True)
        a = b = np.ones(cost.shape[0], np.float32)
        for _ in range(20):
            b = 1.0 / np.maximum(a @ kernel, 1e-30)
            a = 1.0 / np.maximum(kernel @ b, 1e-30)
        potential += np.float32(epsilon) * np.log(b)
    cost -= potential
    cost -= cost.min(axis=1, keepdims=True)
    cost -= cost.min(axis=0)


# --- entropic -----------------------------------------------------------------------------------------------------------------


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
    _check_sinkhorn(epsilon, num_iters)
    return _sinkhorn(cost.astype(jnp.promote_types(cost.dtype, jnp.float32)), epsilon, num_iters)


@functools.partial(jax.jit, static_argnums=2)
def _sinkhorn(cost: Array, epsilon: ArrayLike, num_iters: int) -> Array:
    n, m = cost.shape
    allowed = jnp.isfinite(cost)
    scale = jnp.where(allowed, cost, 0.0).sum() / allowed.sum()
    score = -cost / (epsilon * jnp.where(scale == 0, 1.0, scale))

    def fit_rows(v):
        return -jax.nn.logsumexp(score + v[None], axis=1) - math.log(n)

    def iterate(u, length):
        """`length` updates of the columns and then the rows. Of them only the last is in the log domain.

        The others scale the kernel of the potentials at the start: products instead of exponentials, 3 to 6 times as fast.
        A scale that would leave float32 is cut; that slows the convergence, but (u, v) stays valid (Schmitzer 2019,
        arXiv:1610.06519, section 3.1).
        """
        logits = score + u[:, None]
        top = logits.max(0)
        kernel = jnp.exp(logits - top[None])
        total = m * kernel.sum(0)
        kernel = kernel / total[None]

        def scale_both(_, b):
            a = 1.0 / jnp.maximum(n * jnp.matmul(kernel, b, precision=_HIGHEST), 1e-30)
            return 1.0 / jnp.maximum(m * jnp.matmul(a, kernel, precision=_HIGHEST), 1e-30)

        b = jax.lax.fori_loop(0, length - 1, scale_both, jnp.ones(m, cost.dtype))
        return fit_rows(jnp.log(b) - top - jnp.log(total)), None

    lengths = [min(10, num_iters - 1 - done) for done in range(0, num_iters - 1, 10)]
    u, _ = jax.lax.scan(iterate, fit_rows(jnp.zeros(m, cost.dtype)), jnp.array(lengths, jnp.int32))
    return jax.nn.log_softmax(score + u[:, None], axis=0) - math.log(m)


def _check_sinkhorn(epsilon: float, num_iters: int) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, a fraction of the mean cost, got {epsilon!r}")
    check_count(num_iters=num_iters)


def _draw_rows(log_plan: Array, key: Key) -> Array:
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


# --- couplings ----------------------------------------------------------------------------------------------------------------


class Coupling(Description, abc.ABC):
    """Which source draw goes with which datum: (x0, x1, context, key) -> indices (n,) int32; x1[i] goes with x0[indices[i]].

    `context`, None or (n, ...), belongs to x1 row by row. A conditional model starts x0[i] for context[i], too, and a plan
    that ignores this gives each context the source draws nearest to ITS data: the source of the pairs, given the context, is
    no longer the one that sampling starts from. The cost |x0_i - x1_j|^2 + context_weight |c_i - c_j|^2 amends it (C2OT,
    Cheng & Schwing 2025, arXiv:2503.10636): `context_weight=float("inf")` pairs equal contexts only, right for classes and
    other contexts that repeat (one that never does leaves every row with itself); a finite weight is for continuous contexts,
    and trades. At 0, the default, a context changes nothing, with the skew above.
    """

    def __call__(self, x0: ArrayLike, x1: ArrayLike, context: ArrayLike | None, key: Key) -> Array:
        """Indices (n,) int32 into x0, one for each row of x1; x0 and x1 are (n,) + event shape. No gradient.

        Raises ValueError for unequal n, and, where there is a cost, for unequal event shapes.
        """
        x0, x1 = check_event("x0", x0, None, batched=True), check_event("x1", x1, None, batched=True)
        if x0.shape[0] != x1.shape[0]:
            raise ValueError(f"x0 and x1 must have the same number of rows to be paired, got {x0.shape[0]} and {x1.shape[0]}")
        if context is not None:
            context = jnp.asarray(context)
            if context.shape[:1] != x1.shape[:1]:
                raise ValueError(f"context must have one row for each of the {x1.shape[0]} of x1, got shape {context.shape}")
        return self._indices(*jax.lax.stop_gradient((x0, x1, context)), key)

    @abc.abstractmethod
    def _indices(self, x0: Array, x1: Array, context: Context, key: Key) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Independent(Coupling):
    """Every datum keeps its draw: 0, ..., n - 1, the coupling p0 x p1 of plain flow matching. Uses no key."""

    def _indices(self, x0, x1, context, key):
        return jnp.arange(x1.shape[0], dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class ExactAssignment(Coupling):
    """The permutation of least cost, on the host (`assignment`): both marginals exact. Uses no key.

    Some 4 ms at n = 256, 12 at 512, 80 at 1,024, about n^2.3. For `context_weight` see `Coupling`.
    Raises ValueError where it is negative.
    """

    context_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check_weight(self.context_weight)

    def _indices(self, x0, x1, context, key):
        return assignment(_conditional_cost(x0, x1, context, self.context_weight).T)


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Coupling):
    """Draws from the entropic plan: datum j gets draw i with probability m p_ij (`sinkhorn`), independently.

    Every datum occurs once: its marginal is exact. A source draw may occur twice or never: its marginal is right in
    expectation, up to the error that `num_iters` leave in the rows. Stays on the device. For `context_weight` see
    `Coupling`. Raises ValueError for epsilon <= 0, num_iters < 1 or a negative weight.
    """

    epsilon: float = 0.05
    num_iters: int = 50
    context_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _check_sinkhorn(self.epsilon, self.num_iters)
        _check_weight(self.context_weight)

    def _indices(self, x0, x1, context, key):
        cost = _conditional_cost(x0, x1, context, self.context_weight)
        return _draw_rows(sinkhorn(cost, self.epsilon, self.num_iters), check_key(key))


def _conditional_cost(x0: Array, x1: Array, context: Context, weight: float) -> Array:
    """|x0_i - x1_j|^2 + weight |c_i - c_j|^2, (n, n); at weight inf, +inf where c_i != c_j."""
    cost = squared_distances(x0, x1)
    if context is None or weight == 0:
        return cost
    if weight == math.inf:
        c = context.reshape(context.shape[0], -1)
        return jnp.where(jnp.all(c[:, None] == c[None], axis=-1), cost, jnp.inf)
    context = context.astype(cost.dtype)
    return cost + weight * squared_distances(context, context)


def _check_weight(weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"context_weight must be >= 0 (inf pairs equal contexts only), got {weight!r}")
