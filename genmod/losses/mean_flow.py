"""Regression on the mean velocity of a flow, without a solve (Geng et al. 2025, arXiv:2505.13447).

With flow matching's times, noise at 0 and data at 1, and v the velocity of the flow x(t), the mean velocity over [t, r] is

    u(x(t), t, r) = 1 / (r - t) int_t^r v(x(a), a) da,         x(r) = x(t) + (r - t) u(x(t), t, r),     u(x, t, t) = v(x, t)

The derivative of (r - t) u along the flow in its begin t, at fixed r, is -v:

    u(x, t, r) = v(x, t) + (r - t) (v . grad_x u + du/dt)

(the paper's eq. 6, whose times run from data to noise and whose sign of the last term is therefore the other). One forward-mode
derivative in the direction (v, 1) of (x, t) gives the bracket. It and the target are constants to the gradient, so that the
target is linear in v, and the velocity of a random path through x may stand for its mean v (ibid., eqs. 9-11).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_function, check_positive
from genmod.core.statistics import mean_and_sem
from genmod.core.types import Array


def mean_velocity_matching(
    mean_velocity_fn: Callable[[Array, Array, Array], Array],
    x: Array,
    velocity: Array,
    t: Array,
    r: Array,
    *,
    direction: Array | None = None,
    power: float = 0.0,
    offset: float = 1e-3,
    weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared residual of the identity, adaptively weighed, summed over the event, mean over the batch.

    Args:
      mean_velocity_fn: u, (x, t, r) -> mean velocities of the batch, (n,) + event shape, (n,) and (n,) to (n,) + event shape;
        differentiable in forward mode.
      x: points of paths at times t. velocity: of these paths, there. Both (n,) + event shape.
      t, r: begin and end, (n,).
      direction: v in the bracket, (n,) + event shape; None: `velocity`, as in the paper. An estimate of the velocity of the flow,
        u(x, t, t), has the same mean and spares the bracket the noise of single paths, which grad_x u multiplies.
      power: p of the weight 1 / (|residual|^2 + offset)^p, a constant to the gradient (ibid., eq. 22; 1 there). With p = 0 u is
        the mean over the paths through x; p > 0 moves it towards their bulk, the less the more dimensions an event has.
      offset: of the weight. weight: (n,), of the rows in the mean; None: all equal.

    Returns (loss, {"mean_velocity_error": the unweighed mean, "mean_velocity_error_sem": its standard error}).
    Raises ValueError where shapes differ, for power < 0 and an offset that is not positive; TypeError for what is no function.
    """
    check_function(mean_velocity_fn=mean_velocity_fn)
    check(power >= 0, f"power must be >= 0, got {power}")
    check_positive(offset=offset)
    if not (x.shape == velocity.shape and t.shape == r.shape == x.shape[:1]):
        raise ValueError(
            f"x and velocity must have one shape (n,) + event shape and t and r shape (n,), got {x.shape}, {velocity.shape}, "
            f"{t.shape} and {r.shape}"
        )
    direction = velocity if direction is None else direction
    if direction.shape != x.shape:
        raise ValueError(f"direction must have the shape of x, {x.shape}, got {direction.shape}")
    tangents = jax.lax.stop_gradient(direction).astype(x.dtype), jnp.ones_like(t)
    found, rate = jax.jvp(lambda x, t: mean_velocity_fn(x, t, r), (x, t), tangents)
    if found.shape != x.shape:
        raise ValueError(f"mean_velocity_fn must return shape {x.shape}, got {found.shape}")
    duration = (r - t).reshape(-1, *[1] * (x.ndim - 1))
    residual = found - jax.lax.stop_gradient(velocity + duration * rate)
    squared = jnp.sum((residual**2).reshape(x.shape[0], -1), 1)
    mean, sem = mean_and_sem(squared, weight)
    metrics = {"mean_velocity_error": mean, "mean_velocity_error_sem": sem}
    if power == 0:
        return mean, metrics
    return mean_and_sem(squared * jax.lax.stop_gradient(squared + offset) ** -power, weight)[0], metrics
