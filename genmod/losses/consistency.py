"""Consistency of a function along the probability flow: two points of one path must be mapped to the same end of it.

    E[w d(f(x_t, t), stop_gradient f(x_s, s))],   s < t neighbours

Distillation takes x_s from x_t by a step of a teacher's flow (Song et al. 2023, arXiv:2303.01469, alg. 2); training from data
takes both from one datum and one noise, which in the mean over the data is the same as the steps become small (ibid., theorem 2
and alg. 3). With d the pseudo-Huber distance and no average of the parameters in the target: Song & Dhariwal 2023,
arXiv:2310.14189, secs. 3.2, 3.3; its weight is one over the gap of the two levels (sec. 3.1), that of the first paper 1.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_function
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array


def pseudo_huber(error: Array, scale: float) -> Array:
    """sqrt(|e|^2 + c^2) - c of each row, (n, ...) to (n,), c = `scale` > 0: |e|^2 / 2 c where small, |e| where large; |e|^2 for
    c = inf. Raises ValueError for another c."""
    check(scale > 0, f"scale must be > 0, inf for the squared error, got {scale}")
    squared = jnp.sum((error**2).reshape(error.shape[0], -1), 1)
    return squared if math.isinf(scale) else squared / (jnp.sqrt(squared + scale**2) + scale)


def consistency_matching(
    consistency_fn: Callable[[Array, Array], Array],
    later: tuple[Array, Array],
    earlier: tuple[Array, Array],
    *,
    scale: float,
    weights: Array | None = None,
    target_fn: Callable[[Array, Array], Array] | None = None,
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Distance of the function at neighbouring points, weighed, mean over the batch.

    Args:
      consistency_fn: f, (x, t) -> ends of the paths, (n,) + event shape and (n,) to (n,) + event shape.
      later: (x_t, t). earlier: (x_s, s), nearer to the data.
      scale: of the pseudo-Huber distance.
      weights: w, (n,), such as one over the gaps of the levels; None: 1.
      target_fn: in the place of f at the earlier points, such as one of averaged parameters. No gradient passes either.
      weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"consistency_error": loss, "consistency_error_sem": its standard error}).
    Raises ValueError where shapes differ, TypeError for what is no function.
    """
    check_function(consistency_fn=consistency_fn)
    (x, t), (y, s) = later, earlier
    if not (x.shape == y.shape and t.shape == s.shape == x.shape[:1]):
        raise ValueError(
            f"later and earlier must be (points, times) of one shape, (n,) + event shape and (n,), got "
            f"{x.shape}, {t.shape}, {y.shape} and {s.shape}"
        )
    found = consistency_fn(x, t)
    wanted = jax.lax.stop_gradient((target_fn or consistency_fn)(y, s))
    if not found.shape == wanted.shape == x.shape:
        raise ValueError(f"consistency_fn and target_fn must return shape {x.shape}, got {found.shape} and {wanted.shape}")
    distance = pseudo_huber(found - wanted, scale)
    if weights is not None:
        if weights.shape != t.shape:
            raise ValueError(f"weights must have the shape of t, {t.shape}, got {weights.shape}")
        distance = weights * distance
    mean, sem = mean_and_sem(distance, weight)
    return mean, {"consistency_error": mean, "consistency_error_sem": sem}
