"""Resampling: indices of N weighted draws, so that what is chosen is a sample without weights.

With replacement, each index is chosen w_i num times in expectation, w normalised; the schemes differ in how far the numbers stray
(Douc, Cappe & Moulines 2005, arXiv:cs/0507025):

    multinomial     independent choices
    stratified      one uniform point in each of `num` equal strata: by less than 2
    systematic      one uniform point, shifted to each stratum: by less than 1; hardly any theory, and the usual choice

Without replacement (`gumbel_top_k`) the indices differ: those of drawing one after the other in proportion to the weights left.

**Sampling-importance-resampling** (Rubin 1987, 10.2307/2289460) chooses among N draws of a proposal q by their weights p / q. Its
law converges to p with N, with an error of order 1/N for bounded weights; for a given N it lies between q and p.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_function
from genmod.core.types import Array, Key
from genmod.samplers.base import Position
from genmod.samplers.importance import WeightedDraws

Resampler = Callable[[Key, Array, int], Array]


class Resampled(NamedTuple):
    """Draws without weights, with a leading axis, and which of the weighted draws each of them is."""

    positions: Position
    indices: Array


def multinomial_resampling(key: Key, log_weights: Array, num: int) -> Array:
    """`num` independent indices, (num,), with probabilities in proportion to exp(log_weights)."""
    return _at(log_weights, jax.random.uniform(key, (num,), log_weights.dtype))


def stratified_resampling(key: Key, log_weights: Array, num: int) -> Array:
    """`num` rising indices, (num,), by a uniform point in each of `num` strata."""
    points = jax.random.uniform(key, (num,), log_weights.dtype)
    return _at(log_weights, (points + jnp.arange(num, dtype=points.dtype)) / num)


def systematic_resampling(key: Key, log_weights: Array, num: int) -> Array:
    """`num` rising indices, (num,), by one uniform point that is shifted to each of `num` strata."""
    point = jax.random.uniform(key, (), log_weights.dtype)
    return _at(log_weights, (point + jnp.arange(num, dtype=point.dtype)) / num)


def gumbel_top_k(key: Key, log_weights: Array, num: int) -> Array:
    """`num` different indices, (num,), in the order of drawing without replacement (Kool et al. 2019, arXiv:1903.06059).

    Where fewer than `num` have a weight, the rest are of weight zero. Raises ValueError for more than there are.
    """
    if num > log_weights.shape[0]:
        raise ValueError(f"num must be at most the number of draws, {log_weights.shape[0]}, got {num}; draw more, or replace")
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

    Returns `Resampled`. Raises ValueError for a count below 1, TypeError for a resampler that is no function.
    """
    check_count(num_draws=num_draws)
    check_function(resampler=resampler)
    indices = resampler(key, draws.log_weights, num_draws)
    return Resampled(jax.tree.map(lambda leaf: leaf[indices], draws.positions), indices)


def _at(log_weights: Array, points: Array) -> Array:
    """The index in whose share of [0, 1] each point lies; one of weight zero has none."""
    ends = jnp.cumsum(jnp.exp(log_weights - log_weights.max()))
    points = jnp.minimum(points, 1 - jnp.finfo(points.dtype).epsneg)  # a sum may have been rounded up to 1
    return jnp.searchsorted(ends / ends[-1], points, side="right").clip(0, log_weights.shape[0] - 1)
