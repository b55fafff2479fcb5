"""Metropolis-Hastings: a proposal x' ~ q(. | x) is accepted with probability min(1, p(x') q(x | x') / (p(x) q(x' | x))).

The chain then leaves p invariant, known up to a constant only (Hastings 1970, 10.1093/biomet/57.1.97). A proposal whose
log-probability is NaN is rejected.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_function
from genmod.core.types import Array, Key
from genmod.samplers.base import Kernel, Position, check_form, check_scalar, real_position, scalar, scalar_fn


class MetropolisInfo(NamedTuple):
    """One step: the probability with which its proposal was to be accepted, and whether it was (BlackJAX's names)."""

    acceptance_rate: Array
    is_accepted: Array


class RandomWalkState(NamedTuple):
    """Where the chain is, and log p there."""

    position: Position
    log_prob: Array


class IndependenceState(NamedTuple):
    """Where the chain is, and log p - log q there."""

    position: Position
    log_weight: Array


def accept(key: Key, log_ratio: Array, proposed: Any, current: Any) -> tuple[Any, MetropolisInfo]:
    """`proposed` with probability min(1, exp(log_ratio)), else `current`.

    Args:
      log_ratio: log p(x') q(x | x') - log p(x) q(x' | x), a scalar, or (n,) of chains that are decided one by one; NaN rejects.
      proposed, current: two states of the same form, of chains with their leading axis.

    Returns the chosen state and what happened.
    """
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    is_accepted = jnp.log(jax.random.uniform(key, log_ratio.shape, log_ratio.dtype)) < log_ratio

    def chosen(new, old):
        return jnp.where(jnp.expand_dims(is_accepted, tuple(range(log_ratio.ndim, jnp.ndim(new)))), new, old)

    state = jax.tree.map(chosen, proposed, current)
    return state, MetropolisInfo(jnp.exp(jnp.minimum(log_ratio, 0.0)), is_accepted)


def random_walk(log_prob_fn: Callable[[Position], Array], scale: ArrayLike) -> Kernel:
    """The Metropolis kernel with proposals x' = x + scale z, z ~ N(0, I) (Metropolis et al. 1953, 10.1063/1.1699114).

    Raises ValueError or TypeError for a scale that is not one positive number; `init` for a position that is not floating
    point, and for a log_prob_fn that does not return one number.
    """
    check_scalar(scale=scale)
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)

    def init(position):
        position = real_position(position)
        return RandomWalkState(position, log_prob_fn(position))

    def step(key, state):
        keys = jax.random.split(key)
        noise = normal_like(keys[0], state.position)
        position = jax.tree.map(lambda x, z: x + jnp.asarray(scale, x.dtype) * z, state.position, noise)
        proposed = RandomWalkState(position, log_prob_fn(position))
        return accept(keys[1], proposed.log_prob - state.log_prob, proposed, state)

    return Kernel(init, step)


def independence(
    log_prob_fn: Callable[[Position], Array],
    sample_and_log_prob_fn: Callable[[Key], tuple[Position, Array]],
    proposal_log_prob_fn: Callable[[Position], Array],
) -> Kernel:
    """The Metropolis kernel whose proposals do not depend on where the chain is, such as draws of a trained flow.

        independence(log_prob_fn, lambda key: flow.sample_and_log_prob(params, key), lambda x: flow.log_prob(params, x))

    It accepts with probability min(1, w(x') / w(x)), w = p / q, and converges geometrically if and only if w is bounded
    (Tierney 1994, 10.1214/aos/1176325750): q must have the heavier tails.

    Args:
      log_prob_fn: log p of one position, up to a constant.
      sample_and_log_prob_fn: key -> (a draw of q, its log q, up to the constant of `proposal_log_prob_fn`).
      proposal_log_prob_fn: log q of one position; needed once, where the chain starts.

    Raises TypeError for what is no function; the chain raises ValueError where a function does not return one number, and
    where draws have another form than the position.
    """
    check_function(sample_and_log_prob_fn=sample_and_log_prob_fn)
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)
    proposal_log_prob_fn = scalar_fn("proposal_log_prob_fn", proposal_log_prob_fn)

    def init(position):
        position = jax.tree.map(jnp.asarray, position)
        return IndependenceState(position, log_prob_fn(position) - proposal_log_prob_fn(position))

    def step(key, state):
        keys = jax.random.split(key)
        position, log_q = sample_and_log_prob_fn(keys[0])
        check_form("sample_and_log_prob_fn", position, state.position)
        log_weight = (log_prob_fn(position) - scalar("sample_and_log_prob_fn", log_q)).astype(state.log_weight.dtype)
        return accept(keys[1], log_weight - state.log_weight, IndependenceState(position, log_weight), state)

    return Kernel(init, step)


def normal_like(key: Key, tree: Position) -> Position:
    """Independent N(0, 1) in the form of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noise = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)
