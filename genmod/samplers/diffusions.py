"""Langevin dynamics: x' = x + e score(x) + sqrt(2 e) z, with score = grad log p, z ~ N(0, I) and the step size e.

The Euler-Maruyama step of dx = score dt + sqrt(2) dW, whose law at rest is p (Roberts & Tweedie 1996, 10.2307/3318418). Papers
that write x + e/2 score + sqrt(e) z mean the same chain at twice the e. Alone the step has a bias: on N(0, s^2) its variance
at rest is s^2 / (1 - e / (2 s^2)), and it diverges for e >= 2 s^2. As the proposal of a Metropolis step (`mala`) it has none.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_count, check_function
from genmod.core.types import Array, Key
from genmod.samplers.base import Kernel, Position, check_form, check_scalar, real_position, scalar_fn
from genmod.samplers.metropolis import accept, normal_like


class LangevinState(NamedTuple):
    """Where the chain is."""

    position: Position


class LangevinInfo(NamedTuple):
    """One step: the Euclidean norm of the score at its start."""

    score_norm: Array


class MalaState(NamedTuple):
    """Where the chain is, log p there, and its gradient."""

    position: Position
    log_prob: Array
    score: Position


def langevin_step(key: Key, position: Position, score: Position, step_size: ArrayLike) -> Position:
    """x + e score + sqrt(2 e) z: one step from x = `position`, given the VALUE of the score there."""

    def move(x, s, z):
        e = jnp.asarray(step_size, x.dtype)
        return x + e * s + jnp.sqrt(2.0 * e) * z

    return jax.tree.map(move, position, score, normal_like(key, position))


def langevin(log_prob_fn: Callable[[Position], Array], step_size: ArrayLike) -> Kernel:
    """The unadjusted Langevin kernel of a log-density: x + e grad log p(x) + sqrt(2 e) z, e = `step_size`.

    Its law at rest is not quite p: on N(0, s^2) the variance is s^2 / (1 - e / (2 s^2)). Raises ValueError or TypeError for a
    step size that is not one positive number; `init` for a position that is not floating point.
    """
    return score_langevin(jax.grad(scalar_fn("log_prob_fn", log_prob_fn)), step_size)


def score_langevin(score_fn: Callable[[Position], Position], step_size: ArrayLike) -> Kernel:
    """`langevin`, of a score instead of a log-density: score_fn(position) has the form of the position.

    Raises as `langevin`, and ValueError in the first step where the score has another form.
    """
    check_scalar(step_size=step_size)
    check_function(score_fn=score_fn)

    def init(position):
        return LangevinState(real_position(position))

    def step(key, state):
        score = score_fn(state.position)
        check_form("score_fn", score, state.position)
        info = LangevinInfo(jnp.sqrt(_sum_of_squares(score)))
        return LangevinState(langevin_step(key, state.position, score, step_size)), info

    return Kernel(init, step)


def mala(log_prob_fn: Callable[[Position], Array], step_size: ArrayLike) -> Kernel:
    """The Metropolis-adjusted Langevin kernel: the Langevin step as a proposal, accepted so that the law at rest is p.

    Efficient where it accepts about 0.57 of the proposals (Roberts & Rosenthal 1998, 10.1111/1467-9868.00123). Raises as
    `langevin`.
    """
    check_scalar(step_size=step_size)
    value_and_score = jax.value_and_grad(scalar_fn("log_prob_fn", log_prob_fn))

    def init(position):
        position = real_position(position)
        return MalaState(position, *value_and_score(position))

    def log_proposal(start, end):
        """log q(end | start) up to a constant."""
        drift = jax.tree.map(
            lambda y, x, s: y - x - jnp.asarray(step_size, x.dtype) * s, end.position, start.position, start.score
        )
        return -_sum_of_squares(drift) / (4.0 * step_size)

    def step(key, state):
        keys = jax.random.split(key)
        position = langevin_step(keys[0], state.position, state.score, step_size)
        proposed = MalaState(position, *value_and_score(position))
        log_ratio = proposed.log_prob - state.log_prob + log_proposal(proposed, state) - log_proposal(state, proposed)
        return accept(keys[1], log_ratio.astype(state.log_prob.dtype), proposed, state)

    return Kernel(init, step)


def langevin_chain(key: Key, score_fn: Callable[[Array], Array], x: Array, *, step_size: ArrayLike, num_steps: int) -> Array:
    """The end of a chain of `num_steps` steps of `score_langevin` from x; `run` also gives the way there.

    Args:
      score_fn: x -> the score, of the form of x; x may hold one event or many.
      step_size: e > 0, in x + e score + sqrt(2 e) z.

    Raises as `score_langevin`, and ValueError for a num_steps that is not an integer >= 1.
    """
    check_count(num_steps=num_steps)
    kernel = score_langevin(score_fn, step_size)
    keys = jax.random.split(key, num_steps)
    return jax.lax.scan(lambda state, key: (kernel.step(key, state)[0], None), kernel.init(x), keys)[0].position


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

    Args:
      score_fn: (x, sigma) -> the score of the data blurred by sigma, of the shape of x.
      x: where the chain starts; sigmas: the noise levels, (num_levels,).
      step_size: at sigma the step is e = step_size (sigma / sigma_last)^2, in the form of this module; the paper's epsilon is
        2 step_size.
      num_steps: steps at each level.

    Returns the last state, of the shape of x. Raises ValueError unless the sigmas fall and are positive.
    """
    known = np.asarray(sigmas)
    if known.ndim != 1 or not (np.diff(known) < 0).all() or not (known > 0).all():
        raise ValueError(f"sigmas must be positive and fall, got {sigmas}")
    x = check_array("x", x)
    sigmas = jnp.asarray(known, x.dtype)
    sizes = step_size * (sigmas / sigmas[-1]) ** 2

    def level(x, each):
        key, sigma, size = each
        return langevin_chain(key, lambda x: score_fn(x, sigma), x, step_size=size, num_steps=num_steps), None

    return jax.lax.scan(level, x, (jax.random.split(key, sigmas.shape[0]), sigmas, sizes))[0]


def _sum_of_squares(tree: Position) -> Array:
    """In at least float32."""
    squares = jax.tree.map(lambda leaf: jnp.sum(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) ** 2), tree)
    return jax.tree.reduce(jnp.add, squares)
