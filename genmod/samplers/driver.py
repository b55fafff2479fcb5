"""The driver: many steps of one chain, as one compiled scan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from genmod.core.checks import check_count, check_function, check_whole
from genmod.core.keys import check_key
from genmod.core.programs import program_of
from genmod.core.types import Key
from genmod.samplers.base import Position, walk


class Trace(NamedTuple):
    """What a chain left: kept positions and infos, with a leading axis of kept steps, and the state in which it ended."""

    positions: Position
    infos: Any
    state: Any


def run(key: Key, kernel: Any, state: Any, *, num_steps: int, burn_in: int = 0, thin: int = 1) -> Trace:
    """`burn_in + num_steps` steps of a kernel; of the last `num_steps`, every `thin`-th is kept. Compiled.

        kernel = mala(log_prob_fn, 0.1)                 # or blackjax.nuts(log_prob_fn, ...)
        trace = run(key, kernel, kernel.init(x), num_steps=1_000, burn_in=200)
        more = run(key_2, kernel, trace.state, num_steps=1_000)

    Many chains: `jax.vmap(lambda key, x: run(key, kernel, kernel.init(x), num_steps=1_000))(keys, positions)`.

    Args:
      key: one typed key.
      kernel: a `Kernel`, or any object with `step(key, state) -> (state, info)`, a BlackJAX SamplingAlgorithm for one. The same
        kernel does not compile again: build it once.
      state: where to begin, `kernel.init(position)` or the state of an earlier trace.
      num_steps: a multiple of `thin`.

    Returns a `Trace`: num_steps / thin positions and infos, those of the steps thin, 2 thin, ... after the burn-in; and the
    last state. Raises ValueError for counts that do not fit, TypeError for a kernel without a step and for a state without a
    position.
    """
    check_key(key)
    check_function(**{"kernel.step": getattr(kernel, "step", None)})
    if not hasattr(state, "position"):
        raise TypeError(f"state must have a position, got {type(state).__name__}; pass kernel.init(position)")
    check_count(num_steps=num_steps, thin=thin)
    check_whole(burn_in=burn_in)
    if num_steps % thin:
        raise ValueError(f"num_steps must be a multiple of thin, got num_steps={num_steps} and thin={thin}")
    step = kernel.step  # kept alive through the call
    return program_of(step, _run, num_steps // thin, burn_in, thin)(key, state)


def moved(key: Key, kernel: Any, positions: Position, *, num_steps: int = 1) -> tuple[Position, Any]:
    """(The positions of many chains after `num_steps` steps each, the infos of the last); traceable, as in a training step.

    Args:
      key: one typed key. kernel: as in `run`. positions: with a leading axis of chains.
    """
    num = jax.tree.leaves(positions)[0].shape[0]

    def one(key, position):
        state, info = walk(kernel.step, kernel.init(position), jax.random.split(key, num_steps))
        return state.position, info

    return jax.vmap(one)(jax.random.split(key, num), positions)


def _run(step: Callable, num_kept: int, burn_in: int, thin: int, key: Key, state: Any) -> Trace:
    def keep(state, keys):
        state, info = walk(step, state, keys)
        return state, (state.position, info)

    keys = jax.random.split(key, burn_in + num_kept * thin)
    if burn_in:
        state = walk(step, state, keys[:burn_in])[0]
    state, (positions, infos) = jax.lax.scan(keep, state, keys[burn_in:].reshape(num_kept, thin))
    return Trace(positions, infos, state)
