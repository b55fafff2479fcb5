"""Parallel tempering: replicas of a chain at levels from a law that mixes to the target, which change places.

Neighbours swap with probability min(1, f_t(y) f_u(x) / (f_t(x) f_u(y))), x at level t and y at level u (Swendsen & Wang 1986,
10.1103/PhysRevLett.57.2607; Geyer 1991). The product of all f_t stays invariant: the last replica is a chain of f_T, which takes
what the others have found.

    kernel = parallel_tempering(bridge, lambda log_prob_fn, level: mala(log_prob_fn, 0.1), jnp.linspace(0, 1, 10))
    state = kernel.init(positions)                           # one for each level, from f_0 to f_T
    state, info = kernel.step(key, state)                    # state.position of the last entry is at f_T
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_function
from genmod.core.types import Array, Key
from genmod.samplers.annealed import BridgeFn, KernelFn
from genmod.samplers.base import Kernel, Position, scalar, walk


class TemperingState(NamedTuple):
    """Where the replicas are, with a leading axis of levels."""

    position: Position


class TemperingInfo(NamedTuple):
    """One step: the probabilities with which neighbours were to swap, (T,), and the infos of the kernels, (T + 1, ...)."""

    acceptance_rate: Array
    infos: Any


def parallel_tempering(log_prob_fn: BridgeFn, kernel_fn: KernelFn, levels: Any, *, num_steps: int = 1) -> Kernel:
    """The kernel of T + 1 replicas: each moves at its level, then the pairs (0, 1), (2, 3), ... may swap, then (1, 2), ...

    Args:
      log_prob_fn: (position, level) -> log f at that level, one number. `geometric_bridge` makes one.
      kernel_fn: (log_prob_fn of one level, level) -> a kernel that leaves this density invariant.
      levels: an array, or a pytree of arrays, with a leading axis of T + 1 entries, the target last.
      num_steps: kernel steps between swaps.

    Raises TypeError or ValueError for arguments of another kind; `init` where there is not one position for each level.
    """
    check_function(log_prob_fn=log_prob_fn, kernel_fn=kernel_fn)
    check_count(num_steps=num_steps)
    levels = jax.tree.map(jnp.asarray, levels)
    num = int(jax.tree.leaves(levels)[0].shape[0])

    def init(position):
        position = jax.tree.map(jnp.asarray, position)
        for leaf in jax.tree.leaves(position):
            if leaf.shape[:1] != (num,):
                raise ValueError(f"position must have a leading axis of {num} levels, got shape {leaf.shape}")
        return TemperingState(position)

    def move(key, position, level):
        kernel = kernel_fn(lambda x: log_prob_fn(x, level), level)
        state, info = walk(kernel.step, kernel.init(position), jax.random.split(key, num_steps))
        return state.position, info

    def log_f(positions, levels):
        return jax.vmap(lambda x, level: scalar("log_prob_fn", log_prob_fn(x, level)))(positions, levels)

    def step(key, state):
        keys = jax.random.split(key, 3)
        position, infos = jax.vmap(move)(jax.random.split(keys[0], num), state.position, levels)
        position, even = _swap(keys[1], position, log_f, levels, 0)
        position, odd = _swap(keys[2], position, log_f, levels, 1)
        rate = jnp.zeros(num - 1, jnp.result_type(even, odd)).at[0::2].set(even).at[1::2].set(odd)
        return TemperingState(position), TemperingInfo(rate, infos)

    return Kernel(init, step)


def _swap(key: Key, position: Position, log_f: Callable, levels: Any, first: int) -> tuple[Position, Array]:
    """The positions after the pairs (first, first + 1), (first + 2, first + 3), ... may have swapped, and the probabilities."""
    num = int(jax.tree.leaves(levels)[0].shape[0])
    low = jnp.arange(first, num - 1, 2)
    pairs = jnp.stack([low, low + 1])
    below, above = (jax.tree.map(lambda leaf, i=i: leaf[i], levels) for i in pairs)
    x, y = (jax.tree.map(lambda leaf, i=i: leaf[i], position) for i in pairs)
    log_ratio = log_f(y, below) + log_f(x, above) - log_f(x, below) - log_f(y, above)
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    swaps = jnp.log(jax.random.uniform(key, log_ratio.shape, log_ratio.dtype)) < log_ratio
    source = jnp.arange(num).at[low].add(swaps).at[low + 1].add(-swaps.astype(int))
    return jax.tree.map(lambda leaf: leaf[source], position), jnp.exp(jnp.minimum(log_ratio, 0.0))
