"""Pairings: which of n source draws belongs to which of n data, by discrete optimal transport, for flow matching.

Two samples x0 (n of them) and x1 (m) with uniform weights and a cost c_ij, here |x0_i - x1_j|^2. A plan p >= 0 has the
marginals sum_j p_ij = 1/n and sum_i p_ij = 1/m, and

    exact     min_p sum_ij p_ij c_ij                        for n = m a permutation, over n (Birkhoff): `assignment`
    entropic  min_p sum_ij p_ij c_ij - e H(p)               p_ij = exp(u_i + v_j - c_ij / e): `sinkhorn`

A **pairing** turns independent draws into pairs: `pairing(x0, x1, context, key)` are indices, and row i of the data is
paired with `x0[indices[i]]`. Data are never reordered or dropped, so with a plan of right marginals the pair still has both
laws, and flow matching learns the same marginals along straighter paths (OT-CFM, Tong et al. 2023, arXiv:2302.00482;
Pooladian et al. 2023, arXiv:2304.14772). The plan is that of the batch: it approaches that of the laws as the batch grows.
"""

import abc
import dataclasses
import math
import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_positive
from genmod.core.description import Description
from genmod.core.keys import check_key
from genmod.core.types import Array, Context, Info, Key
from genmod.transport.costs import squared_distances
from genmod.transport.entropic import check_sinkhorn, converged_sinkhorn, draw_rows
from genmod.transport.exact import assignment

_SLOW = 2_048  # rows from which an exact assignment takes seconds


class Pairing(Description, abc.ABC):
    """Which source draw goes with which datum: x1[i] with x0[indices[i]].

    `context`, None or (n, ...), belongs to x1 row by row. A conditional model starts x0[i] for context[i], too, and a plan
    that ignores this gives each context the source draws nearest to ITS data: the source of the pairs, given the context, is
    no longer the one that sampling starts from. So the cost is |x0_i - x1_j|^2 + weight |c_i - c_j|^2 (C2OT, Cheng & Schwing
    2025, arXiv:2503.10636), with what `context_weight` says:

        None, the default   where most contexts of a batch repeat (classes) only equal ones are paired, which is exact; else the
                            weight makes the mean of the second term 100 times that of the first
        inf                 equal contexts only; one that never repeats leaves every row with itself
        a number            that weight; 0 ignores the context, with the skew above
    """

    def __call__(self, x0: ArrayLike, x1: ArrayLike, context: ArrayLike | None, key: Key) -> Array:
        """`with_info`, the indices alone."""
        return self.with_info(x0, x1, context, key)[0]

    def with_info(self, x0: ArrayLike, x1: ArrayLike, context: ArrayLike | None, key: Key) -> tuple[Array, Info]:
        """Indices (n,) int32 into x0, one for each row of x1, and how the plan went: {} or scalars by name. No gradient.

        Args:
          x0: draws of the source. x1: data. Both (n,) + event shape.
          context: of the rows of x1, (n, ...), or None.
          key: for pairings that draw.

        Raises ValueError for unequal n, and, where there is a cost, for unequal event shapes.
        """
        x0, x1 = check_array("x0", x0, batched=True), check_array("x1", x1, batched=True)
        if x0.shape[0] != x1.shape[0]:
            raise ValueError(f"x0 and x1 must have the same number of rows to be paired, got {x0.shape[0]} and {x1.shape[0]}")
        if context is not None:
            context = jnp.asarray(context)
            if context.shape[:1] != x1.shape[:1]:
                raise ValueError(f"context must have one row for each of the {x1.shape[0]} of x1, got shape {context.shape}")
        return self._indices(*jax.lax.stop_gradient((x0, x1, context)), key)

    @abc.abstractmethod
    def _indices(self, x0: Array, x1: Array, context: Context, key: Key) -> tuple[Array, Info]: ...


@dataclasses.dataclass(frozen=True)
class Independent(Pairing):
    """Every datum keeps its draw: 0, ..., n - 1, the coupling p0 x p1 of plain flow matching. Uses no key."""

    def _indices(self, x0, x1, context, key):
        return jnp.arange(x1.shape[0], dtype=jnp.int32), {}


@dataclasses.dataclass(frozen=True)
class ExactAssignment(Pairing):
    """The permutation of least cost, on the host (`assignment`): both marginals exact. Uses no key.

    Some 4 ms at n = 256, 12 at 512, 80 at 1,024, seconds from 2,048 on, of which it warns: `Sinkhorn` stays on the device. For
    `context_weight` see `Pairing`. Raises ValueError where it is negative.
    """

    context_weight: float | None = None

    def __post_init__(self):
        super().__post_init__()
        _check_weight(self.context_weight)

    def _indices(self, x0, x1, context, key):
        if x0.shape[0] >= _SLOW:
            warnings.warn(
                f"an exact assignment of {x0.shape[0]:,} rows takes seconds of the host in every step; Sinkhorn() is faster",
                stacklevel=2,
            )
        return assignment(_conditional_cost(x0, x1, context, self.context_weight).T), {}


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Pairing):
    """Draws from the entropic plan: datum j gets draw i with probability m p_ij (`sinkhorn`), independently.

    Every datum occurs once: its marginal is exact. A source draw may occur twice or never: its marginal is right in
    expectation, up to the error of the rows, the largest |n sum_j p_ij - 1|, which the iterations bring to `tolerance` or, after
    `num_iters` of them, leave; it is reported as "marginal_error". Stays on the device. For `context_weight` see `Pairing`.
    Raises ValueError for an epsilon or a tolerance that is not positive, num_iters < 1 or a negative weight.
    """

    epsilon: float = 0.05
    num_iters: int = 2_000
    context_weight: float | None = None
    tolerance: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        check_sinkhorn(self.epsilon, self.num_iters)
        check_positive(tolerance=self.tolerance)
        _check_weight(self.context_weight)

    def _indices(self, x0, x1, context, key):
        cost = _conditional_cost(x0, x1, context, self.context_weight)
        # A context in the cost must not blur the plan of the events.
        scale = jnp.mean(squared_distances(x0, x1), where=jnp.isfinite(cost))
        log_plan, error = converged_sinkhorn(cost, self.epsilon, self.tolerance, self.num_iters, scale=scale)
        return draw_rows(log_plan, check_key(key)), {"marginal_error": error}


def _conditional_cost(x0: Array, x1: Array, context: Context, weight: float | None) -> Array:
    """|x0_i - x1_j|^2 + weight |c_i - c_j|^2, (n, n); at weight inf, +inf where c_i != c_j. None: see `Pairing`."""
    cost = squared_distances(x0, x1)
    if context is None or weight == 0:
        return cost
    flat = context.reshape(context.shape[0], -1)
    if weight is not None and weight != math.inf:
        return cost + weight * squared_distances(*(flat.astype(cost.dtype),) * 2)
    equal = jnp.all(flat[:, None] == flat[None], axis=-1)
    within = jnp.where(equal, cost, jnp.inf)
    if weight == math.inf:
        return within
    between = squared_distances(*(flat.astype(cost.dtype),) * 2)
    mean = between.mean()
    near = cost + 100.0 * cost.mean() / jnp.where(mean == 0, 1.0, mean) * between
    return jnp.where((equal.sum(1) > 1).mean() > 0.5, within, near)


def _check_weight(weight: float | None) -> None:
    if weight is not None and not weight >= 0:
        raise ValueError(f"context_weight must be None or >= 0 (inf pairs equal contexts only), got {weight!r}")
