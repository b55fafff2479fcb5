"""Annealing: ratios of normalising constants along a bridge of densities f_0, ..., f_T, each known up to its constant Z_t.

Importance sampling along a chain (Neal 2001, arXiv:physics/9803008), whose kernel at t leaves f_t invariant:

    x_0 ~ f_0;  log w += log f_t(x) - log f_{t-1}(x),  x moves by the kernel of f_t,  t = 1, ..., T;     E[w] = Z_T / Z_0

The same chain backwards from an EXACT draw of f_T, by kernels that are reversible, has E[w] = Z_0 / Z_T: the log of the one is a
lower bound on log Z_T / Z_0 in expectation, minus the log of the other an upper bound (Grosse et al. 2015, arXiv:1511.02543).
With resampling between the levels the first is sequential Monte Carlo (Del Moral et al. 2006, 10.1111/j.1467-9868.2006.00553.x).

For the evidence p(x) of a latent z, f_0 is a law of z that is normalised, such as the prior, and f_T the JOINT p(x, z).

    bridge = geometric_bridge(log_prior, log_joint)
    kernel_fn = lambda log_prob_fn, level: mala(log_prob_fn, 0.1)
    chains = jax.vmap(lambda key, z: annealed_importance(key, z, bridge, kernel_fn, sigmoid_levels(100)))(keys, prior_draws)
    chains.log_weight
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.checks import check_count, check_function, check_positive
from genmod.core.types import Array, Key
from genmod.samplers.base import Position, scalar, walk
from genmod.samplers.resampling import systematic_resampling

Level = Any
BridgeFn = Callable[[Position, Level], Array]
KernelFn = Callable[[Callable[[Position], Array], Level], Any]


class Annealed(NamedTuple):
    """The end of one annealed chain.

    Attributes:
      position: where it ended. log_weight: log w, in nats.
      infos: of the last kernel step at every level, with a leading axis of levels.
    """

    position: Position
    log_weight: Array
    infos: Any


class Population(NamedTuple):
    """The end of a sequential Monte Carlo run of N particles.

    Attributes:
      positions: with a leading axis of N. log_weights: of the particles, (N,), normalised to sum to one.
      log_ratio: the estimate of log Z_T / Z_0, whose exponential has the expectation Z_T / Z_0.
      effective_sizes: 1 / sum of the squared weights at every level, before resampling, (T,).
      infos: of the last kernel step at every level, with leading axes of levels and particles.
    """

    positions: Position
    log_weights: Array
    log_ratio: Array
    effective_sizes: Array
    infos: Any


def geometric_bridge(start_fn: Callable[[Position], Array], end_fn: Callable[[Position], Array]) -> BridgeFn:
    """(x, beta) -> (1 - beta) log f_0(x) + beta log f_T(x), whose levels are betas from 0 to 1."""
    check_function(start_fn=start_fn, end_fn=end_fn)

    def bridge(position, beta):
        start, end = scalar("start_fn", start_fn(position)), scalar("end_fn", end_fn(position))
        # 0 times the log-density of what one end excludes is 0.
        low, high = jnp.where(beta < 1, 1 - beta, 1.0) * start, jnp.where(beta > 0, beta, 1.0) * end
        return jnp.where(beta < 1, low, 0.0) + jnp.where(beta > 0, high, 0.0)

    return bridge


def sequence_bridge(*log_prob_fns: Callable[[Position], Array]) -> BridgeFn:
    """(x, t) -> log f_t(x) of densities given one by one, whose levels are `jnp.arange(len(log_prob_fns))`."""
    check_function(**{f"log_prob_fns[{i}]": fn for i, fn in enumerate(log_prob_fns)})
    branches = [lambda x, i=i, fn=fn: scalar(f"log_prob_fns[{i}]", fn(x)) for i, fn in enumerate(log_prob_fns)]
    return lambda position, index: jax.lax.switch(index, branches, position)


def sigmoid_levels(num_levels: int, steepness: float = 4.0) -> np.ndarray:
    """Betas from 0 to 1, (num_levels + 1,), dense at both ends (Grosse et al. 2015).

    sigmoid(s u) for u from -1 to 1, s = `steepness`, shifted and scaled onto [0, 1]. Raises ValueError for a num_levels below 1
    or a steepness that is not positive.
    """
    check_count(num_levels=num_levels)
    check_positive(steepness=steepness)
    rising = np.tanh(0.5 * steepness * np.linspace(-1.0, 1.0, num_levels + 1))
    return 0.5 * (1.0 + rising / rising[-1])


def annealed_importance(
    key: Key, position: Position, log_prob_fn: BridgeFn, kernel_fn: KernelFn, levels: Any, *, num_steps: int = 1
) -> Annealed:
    """One chain of annealed importance sampling: E[exp(log_weight)] = Z_T / Z_0.

    Args:
      position: an exact draw of f_0.
      log_prob_fn: (position, level) -> log f at that level, one number. `geometric_bridge` makes one.
      kernel_fn: (log_prob_fn of one level, level) -> a kernel that leaves this density invariant: a `Kernel`, or a BlackJAX
        algorithm. It may use either argument alone, as Gibbs sampling does the level.
      levels: an array, or a pytree of arrays, with a leading axis of T + 1 entries, from f_0 to f_T.
      num_steps: kernel steps at each level.

    `jax.vmap` over keys and positions makes many chains. Raises TypeError or ValueError for arguments of another kind.
    """
    pairs, keys = _prepared(key, log_prob_fn, kernel_fn, levels, (num_steps,), backwards=False)

    def level(position, each):
        keys, before, here = each
        log_weight = _log_ratio(log_prob_fn, position, before, here)
        position, info = _move(keys, position, log_prob_fn, kernel_fn, here)
        return position, (log_weight, info)

    position, (log_weights, infos) = jax.lax.scan(level, position, (keys, *pairs))
    return Annealed(position, log_weights.sum(), infos)


def reverse_annealed_importance(
    key: Key, position: Position, log_prob_fn: BridgeFn, kernel_fn: KernelFn, levels: Any, *, num_steps: int = 1
) -> Annealed:
    """The chain of `annealed_importance` backwards, from f_T to f_0: E[exp(log_weight)] = Z_0 / Z_T.

    Args:
      position: an EXACT draw of f_T: of a posterior, the latent from which x was simulated.
      kernel_fn: as there; its kernels must be reversible, as those of Metropolis-Hastings are, or be the reversals of the
        forward ones: Gibbs sampling in the opposite order.
      log_prob_fn, levels, num_steps: as there; levels from f_0 to f_T too.

    Raises as `annealed_importance`.
    """
    pairs, keys = _prepared(key, log_prob_fn, kernel_fn, levels, (num_steps,), backwards=True)

    def level(position, each):
        keys, here, below = each
        position, info = _move(keys, position, log_prob_fn, kernel_fn, here)
        return position, (_log_ratio(log_prob_fn, position, here, below), info)

    position, (log_weights, infos) = jax.lax.scan(level, position, (keys, *pairs))
    return Annealed(position, log_weights.sum(), infos)


def sequential_monte_carlo(
    key: Key,
    positions: Position,
    log_prob_fn: BridgeFn,
    kernel_fn: KernelFn,
    levels: Any,
    *,
    num_steps: int = 1,
    resample_below: float = 0.5,
) -> Population:
    """Annealed importance sampling of a population, resampled (systematically) where its weights have become unequal.

    Args:
      positions: exact draws of f_0, with a leading axis of N.
      log_prob_fn, kernel_fn, levels, num_steps: as in `annealed_importance`.
      resample_below: the share of N below which an effective sample size calls for resampling; 0: never, 1: always.

    Raises as `annealed_importance`, and ValueError for a share outside [0, 1].
    """
    if not 0 <= resample_below <= 1:
        raise ValueError(f"resample_below must be a share of the particles in [0, 1], got {resample_below}")
    key, resample_key = jax.random.split(key)
    num = int(jax.tree.leaves(positions)[0].shape[0])
    pairs, keys = _prepared(key, log_prob_fn, kernel_fn, levels, (num, num_steps), backwards=False)

    def level(population, each):
        positions, log_weights = population
        keys, resample_key, before, here = each
        raised = log_weights + jax.vmap(lambda x: _log_ratio(log_prob_fn, x, before, here))(positions)
        increment = jax.nn.logsumexp(raised)
        log_weights = raised - increment
        size = jnp.exp(-jax.nn.logsumexp(2 * log_weights))
        poor = size <= resample_below * num if resample_below else jnp.bool_(False)
        chosen = jnp.where(poor, systematic_resampling(resample_key, log_weights, num), jnp.arange(num))
        log_weights = jnp.where(poor, jnp.full_like(log_weights, -jnp.log(num)), log_weights)
        positions = jax.tree.map(lambda leaf: leaf[chosen], positions)
        positions, infos = jax.vmap(lambda keys, x: _move(keys, x, log_prob_fn, kernel_fn, here))(keys, positions)
        return (positions, log_weights), (increment, size, infos)

    first = jax.eval_shape(lambda: _log_ratio(log_prob_fn, _first(positions), *_first(pairs)))
    begin = positions, jnp.full(num, -jnp.log(num), first.dtype)
    each = (keys, jax.random.split(resample_key, keys.shape[0]), *pairs)
    (positions, log_weights), (increments, sizes, infos) = jax.lax.scan(level, begin, each)
    return Population(positions, log_weights, increments.sum(), sizes, infos)


def _prepared(key, log_prob_fn, kernel_fn, levels, sizes, backwards):
    """((levels left, levels reached), keys (T,) + sizes), in the order in which a chain goes through them."""
    check_function(log_prob_fn=log_prob_fn, kernel_fn=kernel_fn)
    check_count(num_steps=sizes[-1])
    levels = jax.tree.map(jnp.asarray, levels)
    given = sorted({leaf.shape[:1] for leaf in jax.tree.leaves(levels)})
    if len(given) != 1 or given[0] < (2,):
        raise ValueError(f"levels must have a leading axis of at least two levels, the same in all arrays, got {given}")
    low, high = jax.tree.map(lambda leaf: leaf[:-1], levels), jax.tree.map(lambda leaf: leaf[1:], levels)
    pairs = jax.tree.map(lambda leaf: leaf[::-1], (high, low)) if backwards else (low, high)
    return pairs, jax.random.split(key, (given[0][0] - 1, *sizes))


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _log_ratio(log_prob_fn, position, here, there):
    """log f_there - log f_here; a position that has left the support stays outside."""
    now = scalar("log_prob_fn", log_prob_fn(position, here))
    return jnp.where(now == -jnp.inf, -jnp.inf, scalar("log_prob_fn", log_prob_fn(position, there)) - now)


def _move(keys, position, log_prob_fn, kernel_fn, level):
    """The position after one kernel step for each key, and the info of the last."""
    kernel = kernel_fn(lambda x: log_prob_fn(x, level), level)
    state, info = walk(kernel.step, kernel.init(position), keys)
    return state.position, info
