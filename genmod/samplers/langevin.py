"""Unadjusted Langevin dynamics: x <- x + e score(x) + sqrt(2 e) z, z ~ N(0, I).

(Roberts & Tweedie 1996, 10.2307/3318418; the same chain as x + e/2 score + sqrt(e) z at twice the e.) Without a Metropolis step
it has a bias: on N(0, s^2) its stationary variance is s^2 / (1 - e / (2 s^2)).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.base import Array, Key
from genmod.checks import check_count, check_event, check_positive


def langevin(
    key: Key,
    score_fn: Callable[[Array], Array],
    x: Array,
    *,
    step_size: ArrayLike,
    num_steps: int,
    trajectory: bool = False,
) -> Array:
    """`num_steps` steps of size e = `step_size` from x (any shape that `score_fn` takes).

    Returns the last state, or with `trajectory` all of them, (num_steps,) + the shape of x. Raises TypeError where x is not
    floating point, ValueError where the score has another shape.
    """
    check_count(num_steps=num_steps)
    check_positive(step_size=step_size)
    x = check_event("x", x, None)
    step_size = jnp.asarray(step_size, x.dtype)

    def step(x, key):
        z, score = jax.random.normal(key, x.shape, x.dtype), score_fn(x)
        if score.shape != x.shape:
            raise ValueError(f"score_fn must return the shape of its input, {x.shape}, got {score.shape}")
        x = x + step_size * score + jnp.sqrt(2.0 * step_size) * z
        return x, x if trajectory else None

    last, states = jax.lax.scan(step, x, jax.random.split(key, num_steps))
    return last if states is None else states


def annealed_langevin(
    key: Key,
    score_fn: Callable[[Array, Array], Array],
    x: Array,
    sigmas: ArrayLike,
    *,
    step_size: float = 1e-5,
    num_steps: int = 100,
) -> Array:
    """Langevin at one noise level after another, sigmas falling (Song & Ermon 2019, arXiv:1907.05600, alg. 1).

    score_fn: (x, sigma) -> the score of the data blurred by sigma. At sigma the step is e = step_size (sigma / sigma_last)^2, in
    the form of this module; the paper's epsilon is 2 step_size. Raises ValueError unless the sigmas fall and are positive.
    """
    known = np.asarray(sigmas)
    if known.ndim != 1 or not (np.diff(known) < 0).all() or not (known > 0).all():
        raise ValueError(f"sigmas must be positive and fall, got {sigmas}")
    x = check_event("x", x, None)
    sigmas = jnp.asarray(known, x.dtype)
    sizes = step_size * (sigmas / sigmas[-1]) ** 2

    def level(x, each):
        key, sigma, size = each
        return langevin(key, lambda x: score_fn(x, sigma), x, step_size=size, num_steps=num_steps), None

    return jax.lax.scan(level, x, (jax.random.split(key, sigmas.shape[0]), sigmas, sizes))[0]
