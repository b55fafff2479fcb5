"""Regression on conditional velocities: flow matching in all its forms, without a solve.

    E_{t, (x0, x1), noise} |v(x_t, t) - d x_t / dt|^2

has the same gradient as the regression on the marginal velocity, which cannot be computed (Lipman et al. 2022,
arXiv:2210.02747, theorem 2). Its minimum is not zero: what is left is the variance of the conditional velocities.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genmod.core.checks import check_time
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array


def flow_matching(
    velocity_fn: Callable[[Array, Array], Array],
    path_fn: Callable[[Array, Array, Array, Array], tuple[Array, Array]],
    x0: Array,
    x1: Array,
    t: Array,
    noise: Array,
    *,
    sizes: Array | None = None,
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the velocity, summed over the event, mean over the batch.

    Args:
      velocity_fn: (x_t, t) -> velocities of the batch, (n,) + event shape and (n,) to (n,) + event shape.
      path_fn: (t, x0, x1, noise) -> (x_t, velocity) of ONE event, as `transport.Path.point_and_velocity`.
      x0, x1, noise: (n,) + event shape, row i of x0 paired with row i of x1. t: (n,) in [0, 1].
      sizes: (n,), of the velocities at t, by which the errors are divided (`transport.Path.sizes`); None: 1.
      weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"velocity_error": loss, "velocity_error_sem": its standard error}).
    Raises ValueError where the shapes differ, or t is known to lie outside [0, 1].
    """
    if not (x0.shape == x1.shape == noise.shape and t.shape == x1.shape[:1]):
        raise ValueError(
            f"x0, x1 and noise must have one shape (n,) + event shape and t shape (n,), got {x0.shape}, {x1.shape}, "
            f"{noise.shape} and {t.shape}"
        )
    t = check_time(t)
    points, target = jax.vmap(path_fn)(t, x0, x1, noise)
    velocity = velocity_fn(points, t)
    if velocity.shape != x1.shape:
        raise ValueError(f"velocity_fn must return shape {x1.shape}, got {velocity.shape}")
    error = jnp.sum(((velocity - target) ** 2).reshape(x1.shape[0], -1), 1)
    error = error if sizes is None else error / sizes**2
    mean, sem = mean_and_sem(error, weight)
    return mean, {"velocity_error": mean, "velocity_error_sem": sem}
