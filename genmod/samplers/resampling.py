"""Resampling: indices of N weighted draws, so that what is chosen is a sample without weights.

With replacement, each index is chosen w_i num times in expectation, w normalised; the schemes differ in how far the numbers stray
(Douc, Cappe & Moulines 2005, arXiv:cs/0507025):

    multinomial     independent choices
    stratified      one uniform point in each of `num` equal strata: by less than 2
    systematic      one uniform point, shifted to each stratum: by less than 1; hardly any theory, and the usual choice

Without replacement (`gumbel_top_k`) the indices differ: those of drawing one after the other in proportion to the weights left.

A log-weight that is NaN counts as a weight of zero. All raise ValueError for log-weights that are known (not while tracing) to
hold no weight above zero, or one of inf. Cumulative sums are exact integers in units of 2^-32 of a stratum: what is rounded is
each weight and their total, relatively by a few eps of the weights' type.

**Sampling-importance-resampling** (Rubin 1987, 10.2307/2289460) chooses among N draws of a proposal q by their weights p / q. Its
law converges to p with N, with an error of order 1/N for bounded weights; for a given N it lies between q and p.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.core.checks import check_count, check_function
from genmod.core.types import Array, Key
from genmod.samplers.base import Position
from genmod.samplers.importance import WeightedDraws

Resampler = Callable[[Key, Array, int], Array]
_MULTINOMIAL_BITS = 16  # of the stratum, to which 32 bits within it are added


class Resampled(NamedTuple):
    """Draws without weights, with a leading axis, and which of the weighted draws each of them is."""

    positions: Position
    indices: Array


def multinomial_resampling(key: Key, log_weights: Array, num: int) -> Array:
    """`num` independent indices, (num,), with probabilities in proportion to exp(log_weights)."""
    strata, within = jax.random.bits(key, (2, num), jnp.uint32)
    whole = (strata >> (32 - _MULTINOMIAL_BITS)).astype(jnp.int32)
    return _at(_weights("log_weights", log_weights), 2**_MULTINOMIAL_BITS, whole, within)


def stratified_resampling(key: Key, log_weights: Array, num: int) -> Array:
    """`num` rising indices, (num,), by a uniform point in each of `num` strata."""
    weights = _weights("log_weights", log_weights)
    within = _fixed_point(jax.random.uniform(key, (num,), weights.dtype))
    return _at(weights, num, jnp.arange(num, dtype=jnp.int32), within)


def systematic_resampling(key: Key, log_weights: Array, num: int) -> Array:
    """`num` rising indices, (num,), by one uniform point that is shifted to each of `num` strata."""
    weights = _weights("log_weights", log_weights)
    within = _fixed_point(jax.random.uniform(key, (), weights.dtype))
    return _at(weights, num, jnp.arange(num, dtype=jnp.int32), jnp.full(num, within))


def gumbel_top_k(key: Key, log_weights: Array, num: int) -> Array:
    """`num` different indices, (num,), in the order of drawing without replacement (Kool et al. 2019, arXiv:1903.06059).

    Where fewer than `num` have a weight, the rest are of weight zero. Raises ValueError for more than there are.
    """
    if num > log_weights.shape[0]:
        raise ValueError(f"num must be at most the number of draws, {log_weights.shape[0]}, got {num}; draw more, or replace")
    _check_weights("log_weights", log_weights)
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    return jax.lax.top_k(log_weights + jax.random.gumbel(key, log_weights.shape, log_weights.dtype), num)[1]


def sampling_importance_resampling(
    key: Key, draws: WeightedDraws, num_draws: int, *, resampler: Resampler = systematic_resampling
) -> Resampled:
    """Draws whose law is nearly p, chosen among weighted draws of q.

        draws = importance_sample(keys[0], log_prob_fn, proposal.sample_and_log_prob_fn, 10_000)
        chosen = sampling_importance_resampling(keys[1], draws, 500)

    Args:
      draws: N of them; see `importance_report(draws.log_weights)` before.
      num_draws: how many to choose; well below N, or the same ones come again and again.
      resampler: (key, log_weights, num) -> indices: one of this module. Only those of `multinomial_resampling` come in an order
        that means nothing; shuffle the others where the order matters.

    Returns `Resampled`. Raises ValueError for a count below 1 and draws without a weight, TypeError for a resampler that is no
    function.
    """
    check_count(num_draws=num_draws)
    check_function(resampler=resampler)
    _check_weights("draws.log_weights", draws.log_weights)
    indices = resampler(key, draws.log_weights, num_draws)
    return Resampled(jax.tree.map(lambda leaf: leaf[indices], draws.positions), indices)


def _check_weights(name: str, log_weights: Array) -> None:
    if isinstance(log_weights, Tracer):
        return
    known = np.asarray(log_weights)  # in NumPy, which does not trace
    if not (known > -np.inf).any():
        raise ValueError(f"{name} must hold a weight above zero, got only -inf or NaN: no draw lies in the support of the target")
    if (known == np.inf).any():
        raise ValueError(f"{name} must be below inf, got inf: the proposal has no density at a draw")


def _weights(name: str, log_weights: Array) -> Array:
    """The weights, the largest 1, in at least float32; all zero if there is none."""
    _check_weights(name, log_weights)
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    log_weights = log_weights.astype(jnp.promote_types(log_weights.dtype, jnp.float32))
    peak = log_weights.max()
    return jnp.exp(log_weights - jnp.where(jnp.isfinite(peak), peak, 0.0))


def _fixed_point(fraction: Array) -> Array:
    """A number in [0, 1) in units of 2^-32."""
    return (fraction * 2.0**32).astype(jnp.uint32)


def _at(weights: Array, num_strata: int, whole: Array, within: Array) -> Array:
    """The index in whose share of [0, num_strata) each point, whole + within 2^-32, lies; one of weight zero has none."""
    sizes = weights * (num_strata / jnp.maximum(weights.sum(), 1.0))  # a sum below 1 is that of no weight
    floors = jnp.floor(sizes)
    parts = jnp.cumsum(_fixed_point(sizes - floors), dtype=jnp.uint32)  # modulo 1: it falls where 1 was carried
    carried = jnp.concatenate([jnp.zeros(1, bool), parts[1:] < parts[:-1]])
    ends = jnp.cumsum(floors.astype(jnp.int32) + carried, dtype=jnp.int32)

    def halve(_, limits):
        low, high = limits
        middle = (low + high) // 2
        above = (ends[middle] > whole) | ((ends[middle] == whole) & (parts[middle] > within))
        return jnp.where(above, low, middle + 1), jnp.where(above, middle, high)

    # Points beyond the last end, which is rounded, are those of the last index that has a weight.
    last = jnp.where(weights > 0, jnp.arange(weights.shape[0], dtype=jnp.int32), 0).max()
    limits = jnp.zeros_like(whole), jnp.full_like(whole, last)
    return jax.lax.fori_loop(0, weights.shape[0].bit_length(), halve, limits)[1]
