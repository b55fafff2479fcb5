"""Rejection sampling: x ~ q is kept with probability f(x) / (M q(x)), which gives exact draws of f / Z if f <= M q everywhere.

A share Z / M of the proposals is kept, so log Z = log M + log of the acceptance rate. Where M is too small the draws follow
min(f, M q) instead. Every proposal tells log f - log q - log M, so that a bound which is broken is seen if a proposal falls
where it is; what is never proposed is never seen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_count, check_function
from genmod.core.keys import check_key
from genmod.core.types import Array, Key
from genmod.samplers.base import Position, scalar, scalar_fn


class Rejection(NamedTuple):
    """Draws by rejection, and what was seen of the bound.

    Attributes:
      positions: with a leading axis of `num_draws`; those after the first `num_accepted` are NaN, or 0 where they are integers.
      num_accepted: how many of the draws were found, at most `num_draws`.
      num_attempts: proposals made. acceptance_rate: the share of them that was accepted. acceptance_sem: its standard error.
      log_bound: log M, in nats; the last one, where it was raised on the way.
      largest_excess: the largest log f - log q - log M of all proposals, in nats, M the bound of their time: above zero the worst
        violation. All proposals keep the bound log_bound + largest_excess, if log_bound was given. -inf: none was in the support.
      num_violations: proposals at which the bound was broken. num_failed: at which log f - log q was NaN, which are rejected.
    """

    positions: Position
    num_accepted: Array
    num_attempts: Array
    acceptance_rate: Array
    acceptance_sem: Array
    log_bound: Array
    largest_excess: Array
    num_violations: Array
    num_failed: Array

    @property
    def is_complete(self) -> bool:
        """Whether all draws that were asked for were found."""
        return bool(self.num_accepted == jax.tree.leaves(self.positions)[0].shape[0])

    @property
    def is_exact(self) -> bool:
        """False where the draws are known not to be exact: the bound was broken or is not finite, or a density was NaN."""
        return bool(jnp.isfinite(self.log_bound)) and not (bool(self.num_violations) or bool(self.num_failed))

    @property
    def log_normalizer(self) -> Array:
        """log Z = log of the integral of f, in nats, of a normalised q."""
        return self.log_bound + jnp.log(self.acceptance_rate)

    def __str__(self):
        rate = f"acceptance {float(self.acceptance_rate):.4g} +- {float(self.acceptance_sem):.2g}"
        parts = [f"{int(self.num_accepted):,} draws of {int(self.num_attempts):,} proposals", rate]
        if not self.is_complete:
            parts.append("INCOMPLETE: the attempts ran out")
        if not jnp.isfinite(self.log_bound):
            parts.append(f"NOT EXACT: the bound is {float(self.log_bound)} nats, by which nothing is accepted")
        if self.num_failed:
            parts.append(f"NOT EXACT: {int(self.num_failed)} densities are NaN")
        if self.num_violations:
            worst = float(self.largest_excess)
            parts.append(f"NOT EXACT: {int(self.num_violations)} proposals break the bound, by up to {worst:.3g} nats")
        if self.largest_excess == -jnp.inf:
            parts.append("no proposal was in the support, so that nothing is known of the bound")
        elif self.is_exact:
            parts.append(f"no violation of the bound seen, {-float(self.largest_excess):.3g} nats to spare")
        return ", ".join(parts)


def rejection_sample(
    key: Key,
    log_prob_fn: Callable[[Position], Array],
    sample_and_log_prob_fn: Callable[[Key], tuple[Position, Array]],
    log_bound: ArrayLike,
    *,
    num_draws: int,
    max_attempts: int = 1_000_000,
    block_size: int = 1_000,
) -> Rejection:
    """Independent draws of f / Z, exact where log f - log q <= log_bound. Compiled at every call; print the result.

    Args:
      log_prob_fn: log f of one position, up to a constant that the bound shares; -inf outside of the support.
      sample_and_log_prob_fn: key -> (a draw of q, its log q), as `proposal_of(...)` gives it.
      log_bound: log M, one finite number in nats; `find_log_bound` looks for it. Traced, one that is not finite accepts nothing.
      num_draws: how many draws are wanted. max_attempts: proposals after which the search for them ends, rounded up to blocks.
      block_size: proposals that are made at once.

    Returns a `Rejection`. Raises TypeError for what is no function or number, ValueError for counts below 1, a bound that is not
    one finite number, and functions that do not return one number.
    """
    log_bound = jnp.asarray(log_bound, float)
    if log_bound.shape:
        raise ValueError(f"log_bound must be one number, got shape {log_bound.shape}")
    if not isinstance(log_bound, Tracer) and not np.isfinite(np.asarray(log_bound)):
        raise ValueError(f"log_bound must be finite, got {log_bound}; no density has such a bound")
    block = _block_of(log_prob_fn, sample_and_log_prob_fn, block_size)
    return _compiled(key, block, lambda key: log_bound, _kept, num_draws, max_attempts, block_size)


def empirical_supremum_rejection(
    key: Key,
    log_prob_fn: Callable[[Position], Array],
    sample_and_log_prob_fn: Callable[[Key], tuple[Position, Array]],
    *,
    num_draws: int,
    max_attempts: int = 1_000_000,
    block_size: int = 1_000,
) -> Rejection:
    """Rejection without a known bound: log M is the largest log f - log q so far (Caffo et al. 2002, 10.1093/biomet/89.4.745).

    It starts with the largest of one block, whose proposals are thrown away, and rises where a later one exceeds it; draws that
    were accepted before stay. Where that block misses the support, it starts with the largest of the first block that does not.
    So the draws are not quite exact: their law converges to f / Z as the largest weight is found, if there is a largest one.
    `num_violations` counts the proposals that broke the bound of their time.

    Args: as in `rejection_sample`. Returns a `Rejection`, whose `log_bound` is the last. Raises as there.
    """
    block = _block_of(log_prob_fn, sample_and_log_prob_fn, block_size)
    return _compiled(key, block, lambda key: _largest(block(key)[1]), jnp.maximum, num_draws, max_attempts, block_size)


def find_log_bound(
    key: Key,
    log_prob_fn: Callable[[Array], Array],
    sample_and_log_prob_fn: Callable[[Key], tuple[Array, Array]],
    proposal_log_prob_fn: Callable[[Array], Array],
    *,
    num_draws: int = 1_000,
    num_starts: int = 8,
    num_steps: int = 50,
) -> Array:
    """The largest log f - log q that is found: by draws of q, and by L-BFGS from the best of them. Compiled at every call.

    A local search proves nothing: `rejection_sample` reports where a proposal exceeds what it found.

    Args:
      log_prob_fn, proposal_log_prob_fn: log f and log q of one position, differentiable; positions are floating point.
      sample_and_log_prob_fn: key -> (a draw of q, its log q).
      num_draws: of q. num_starts: the best of them, from each of which num_steps steps are made.

    Returns log M, one number in nats. Raises TypeError for what is no function, ValueError for counts below 1, more starts than
    draws, and (not while tracing) where no draw lies in the support, or log f - log q is infinite at one.
    """
    check_count(num_starts=num_starts, num_steps=num_steps)
    if num_starts > num_draws:
        raise ValueError(f"num_starts must be at most num_draws={num_draws}, got {num_starts}")
    block = _block_of(log_prob_fn, sample_and_log_prob_fn, num_draws)
    log_prob_fn, log_q = scalar_fn("log_prob_fn", log_prob_fn), scalar_fn("proposal_log_prob_fn", proposal_log_prob_fn)

    def search(key):
        positions, log_weights = block(key)
        log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
        best = jax.lax.top_k(log_weights, num_starts)[1]
        starts = jax.tree.map(lambda leaf: check_array("draws of the proposal", leaf)[best], positions)
        found = jax.vmap(lambda x: _climb(lambda x: log_prob_fn(x) - log_q(x), x, num_steps))(starts)
        return jnp.maximum(log_weights.max(), found.max())

    bound = jax.jit(search)(check_key(key))
    if not isinstance(bound, Tracer) and bound == -jnp.inf:
        raise ValueError(
            f"no draw lies in the support: log_prob_fn is -inf or NaN at all num_draws={num_draws} draws of the proposal; "
            "raise num_draws, or take a proposal that is nearer to it"
        )
    if not isinstance(bound, Tracer) and bound == jnp.inf:
        raise ValueError("log_prob_fn must be finite relative to the proposal, got a log f - log q of inf; take a wider proposal")
    return bound


def _climb(fn: Callable[[Position], Array], start: Position, num_steps: int) -> Array:
    """The largest value of fn on the way of L-BFGS from a start."""
    flat, unravel = ravel_pytree(start)
    optimizer = optax.lbfgs()

    def negative(x):
        return jnp.negative(fn(unravel(x)))

    def step(carry, _):
        x, state, best = carry
        value, gradient = optax.value_and_grad_from_state(negative)(x, state=state)
        moves, state = optimizer.update(gradient, state, x, value=value, grad=gradient, value_fn=negative)
        return (x + moves, state, jnp.maximum(best, _largest(jnp.negative(value)))), None

    begin = flat, optimizer.init(flat), jnp.asarray(-jnp.inf, jax.eval_shape(negative, flat).dtype)
    (x, _, best), _ = jax.lax.scan(step, begin, length=num_steps)
    return jnp.maximum(best, _largest(fn(unravel(x))))


def _kept(log_bound: Array, largest: Array) -> Array:
    return log_bound


def _largest(values: Array) -> Array:
    return jnp.where(jnp.isnan(values), -jnp.inf, values).max()


def _block_of(log_prob_fn: Any, sample_and_log_prob_fn: Any, size: int) -> Callable[[Key], tuple[Position, Array]]:
    """key -> (positions, log f - log q) of a block of proposals."""
    check_function(sample_and_log_prob_fn=sample_and_log_prob_fn)
    check_count(block_size=size)
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)

    def one(key):
        position, log_q = sample_and_log_prob_fn(key)
        return position, log_prob_fn(position) - scalar("sample_and_log_prob_fn", log_q)

    return lambda key: jax.vmap(one)(jax.random.split(key, size))


class _Progress(NamedTuple):
    key: Key
    positions: Position
    num_accepted: Array
    num_blocks: Array
    log_bound: Array
    largest_excess: Array
    num_violations: Array
    num_failed: Array


def _compiled(key, block, first_bound, next_bound, num_draws, max_attempts, block_size) -> Rejection:
    check_count(num_draws=num_draws, max_attempts=max_attempts)
    num_blocks = -(-max_attempts // block_size)

    def sample(key):
        keys = jax.random.split(key)
        end = jax.lax.while_loop(
            lambda state: (state.num_accepted < num_draws) & (state.num_blocks < num_blocks),
            lambda state: _advance(block, next_bound, num_draws, state),
            _begin(keys[0], block, first_bound(keys[1]), num_draws),
        )
        num = end.num_blocks * block_size
        rate = end.num_accepted / num
        sem = jnp.sqrt(rate * (1 - rate) / num)
        found = jnp.minimum(end.num_accepted, num_draws)
        return Rejection(end.positions, found, num, rate, sem, *end[4:])

    return jax.jit(sample)(check_key(key))


def _begin(key, block, log_bound, num_draws) -> _Progress:
    form, log_ratio = jax.eval_shape(block, key)

    def empty(leaf):
        fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
        return jnp.full((num_draws, *leaf.shape[1:]), fill, leaf.dtype)

    zero, bound = jnp.zeros((), int), log_bound.astype(log_ratio.dtype)
    return _Progress(key, jax.tree.map(empty, form), zero, zero, bound, jnp.full_like(bound, -jnp.inf), zero, zero)


def _advance(block, next_bound, num_draws, state: _Progress) -> _Progress:
    keys = jax.random.split(state.key, 3)
    positions, log_ratio = block(keys[0])
    known = jnp.isfinite(state.log_bound)
    # Rounding of the densities is no violation.
    scale = 1 + jnp.abs(jnp.where(jnp.isfinite(log_ratio), log_ratio, 0.0)) + jnp.abs(jnp.where(known, state.log_bound, 0.0))
    violated = known & (log_ratio > state.log_bound + 16 * jnp.finfo(log_ratio.dtype).eps * scale)
    largest = _largest(log_ratio)
    log_bound = next_bound(state.log_bound, largest)
    uniform = jax.random.uniform(keys[1], log_ratio.shape, log_ratio.dtype)
    accepted = jnp.isfinite(log_bound) & (jnp.log(uniform) < log_ratio - log_bound)  # never where it is NaN
    place = jnp.where(accepted, state.num_accepted + jnp.cumsum(accepted) - 1, num_draws)
    return _Progress(
        keys[2],
        jax.tree.map(lambda held, new: held.at[place].set(new, mode="drop"), state.positions, positions),
        state.num_accepted + accepted.sum(),
        state.num_blocks + 1,
        log_bound,
        jnp.maximum(state.largest_excess, jnp.where(known, largest - state.log_bound, -jnp.inf)),
        state.num_violations + violated.sum(),
        state.num_failed + jnp.isnan(log_ratio).sum(),
    )
