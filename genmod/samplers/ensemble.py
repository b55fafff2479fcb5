"""Populations that tune themselves: moves along the differences of their own members, and tempering from a prior by them.

A member of one half of the population moves by the difference of two members of the other, which stays where it is (Braak 2006,
10.1007/s11222-006-8769-1; in halves as Foreman-Mackey et al. 2013, arXiv:1202.3665):

    x' = x + g (a - b),   a != b of the other half;        with probability min(1, p(x') / p(x)), else x

The proposal is symmetric, so the product law of all members is left invariant. Differences have the shape and the scale of the
law by themselves; g = 1 leads from one mode to the next. No gradient is wanted, and no step size. Some differences may come
from an archive that does not change, such as draws of the prior (Braak & Vrugt 2008, 10.1007/s11222-008-9104-9): they lead out
of the plane in which a population lies that has few different members left.

    population = ensemble_tempered(key, log_prior_fn, log_likelihood_fn, prior_draws)
    population.positions                                       # draws of the posterior
    population.log_ratio                                       # log p(data)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check, check_array, check_count
from genmod.core.keys import check_key
from genmod.core.types import Array, Key
from genmod.samplers.adapted import TemperedPopulation
from genmod.samplers.base import Kernel, Position, real_position, scalar_fn, walk
from genmod.samplers.metropolis import accept
from genmod.samplers.resampling import systematic_resampling

# How often g is 1, and the spread of its logarithm otherwise, about 2.38 / sqrt(2 D): small moves for thin, bent laws. How often
# differences come from the archive.
_JUMPS, _SPREAD, _ARCHIVED = 0.1, 1.0, 0.1
# The least rise of a level, as a share of what is left to 1, and the halvings of its logarithm.
_LEAST_RISE, _BISECTIONS = 1e-18, 40


class EnsembleState(NamedTuple):
    """Where the N members are, and log p of each, (N,)."""

    position: Position
    log_prob: Array


def differential_evolution(log_prob_fn: Callable[[Position], Array], archive: Position | None = None) -> Kernel:
    """The kernel of a population: its position has a leading axis of N members, each of which `log_prob_fn` gives one number.

    Args:
      log_prob_fn: log p of ONE member, up to a constant; NaN counts as -inf.
      archive: fixed members, with a leading axis of two or more, from whose differences every tenth move is made; None: none.

    Raises TypeError for what is no function, and for an archive or, by `init`, a position that is not floating point. `init`
    raises ValueError for fewer members than twice the numbers of one of them plus four, which would not leave the plane in which
    they lie, and for those of another form than the rows of the archive.
    """
    log_prob_fn = scalar_fn("log_prob_fn", log_prob_fn)
    archive = None if archive is None else _checked_archive(archive)

    def log_probs(position):
        return _number_or_zero(jax.vmap(log_prob_fn)(position))

    def init(position):
        position = real_position(position)
        _num_members(position)
        if archive is not None:
            wanted, given = _member(position), _member(archive)
            check(given == wanted, f"archive must hold members like those of the position, {wanted}, got {given}")
        return EnsembleState(position, log_probs(position))

    def move(key, moving, others):
        num, dtype = moving.log_prob.shape[0], moving.log_prob.dtype
        keys = jax.random.split(key, 4)
        scale = 2.38 / math.sqrt(2 * _dim(moving.position)) * jnp.exp(_SPREAD * jax.random.normal(keys[0], (num,), dtype))
        scale = jnp.where(jax.random.uniform(keys[1], (num,)) < _JUMPS, 1.0, scale)
        difference = _differences(keys[2], num, others.position, archive)
        position = jax.tree.map(lambda x, d: x + _along(scale, x).astype(x.dtype) * d, moving.position, difference)
        log_prob = log_probs(position)
        return accept(keys[3], log_prob - moving.log_prob, EnsembleState(position, log_prob), moving)

    def step(key, state):
        keys = jax.random.split(key)
        half = state.log_prob.shape[0] // 2
        low, high = (jax.tree.map(lambda leaf, part=part: leaf[part], state) for part in (slice(half), slice(half, None)))
        low, of_low = move(keys[0], low, high)
        high, of_high = move(keys[1], high, low)
        return tuple(jax.tree.map(lambda *a: jnp.concatenate(a), *pair) for pair in ((low, high), (of_low, of_high)))

    return Kernel(init, step)


def ensemble_tempered(
    key: Key,
    log_prior_fn: Callable[[Position], Array],
    log_likelihood_fn: Callable[[Position], Array],
    positions: Position,
    *,
    num_steps: int = 20,
    target_size: float = 0.5,
    max_levels: int = 200,
) -> TemperedPopulation:
    """Sequential Monte Carlo from a prior to prior times likelihood, in levels that it chooses, by `differential_evolution`.

    Not compiled: `jax.jit` it, and `jax.vmap` it over data.

    Args:
      log_prior_fn, log_likelihood_fn: of one position, in nats; -inf outside of the support, as which NaN counts.
      positions: exact draws of the prior, with a leading axis of N.
      num_steps: moves of every member at each level. The last level has all weights equal.
      target_size: the share of N to which a level lowers the effective sample size before the population is resampled.
      max_levels: at most so many; where they run out `level` is below 1.

    Returns a `TemperedPopulation`, whose `log_ratio` is the estimate of log p(data). Raises as `differential_evolution`, and
    ValueError for counts below 1 and a share outside of (0, 1).
    """
    check_count(num_steps=num_steps, max_levels=max_levels)
    check(0 < target_size < 1, f"target_size must be a share of the members in (0, 1), got {target_size}")
    log_prior_fn = scalar_fn("log_prior_fn", log_prior_fn)
    log_likelihood_fn = scalar_fn("log_likelihood_fn", log_likelihood_fn)
    positions = real_position(positions)
    num = _num_members(positions)

    def onward(carry):
        key, members, level, log_ratio, count = carry
        key, choose_key, order_key, move_key = jax.random.split(key, 4)
        log_likelihood = _number_or_zero(jax.vmap(log_likelihood_fn)(members))
        after = _next_level(log_likelihood, level, target_size * num)
        log_weights = (after - level) * log_likelihood
        # Halves of a sorted choice would be two different populations.
        chosen = jax.random.permutation(order_key, systematic_resampling(choose_key, log_weights, num))
        kernel = differential_evolution(_tempered(log_prior_fn, log_likelihood_fn, after), positions)
        state = kernel.init(jax.tree.map(lambda leaf: leaf[chosen], members))
        state, _ = walk(kernel.step, state, jax.random.split(move_key, num_steps))
        increment = jax.nn.logsumexp(log_weights) - math.log(num)
        return key, state.position, after, log_ratio + increment, count + 1

    zero = jnp.zeros((), jax.eval_shape(jax.vmap(log_likelihood_fn), positions).dtype)
    first = check_key(key), positions, zero, zero, jnp.zeros((), int)
    last = jax.lax.while_loop(lambda carry: (carry[2] < 1) & (carry[4] < max_levels), onward, first)
    _, members, level, log_ratio, count = last
    return TemperedPopulation(members, jnp.full(num, -math.log(num), zero.dtype), log_ratio, count, level)


def _tempered(log_prior_fn: Callable, log_likelihood_fn: Callable, level: Array) -> Callable[[Position], Array]:
    def log_prob_fn(position):
        # Where the prior is zero the likelihood may be anything.
        log_prior = log_prior_fn(position)
        return jnp.where(log_prior > -jnp.inf, log_prior + level * log_likelihood_fn(position), -jnp.inf)

    return log_prob_fn


def _differences(key: Key, num: int, others: Position, archive: Position | None) -> Position:
    """a - b of `num` pairs of different rows of the others, or of the archive."""
    keys = jax.random.split(key, 3)

    def pairs(key, rows):
        keys, size = jax.random.split(key), jax.tree.leaves(rows)[0].shape[0]
        first = jax.random.randint(keys[0], (num,), 0, size)
        second = (first + jax.random.randint(keys[1], (num,), 1, size)) % size
        return jax.tree.map(lambda leaf: leaf[first] - leaf[second], rows)

    own = pairs(keys[0], others)
    if archive is None:
        return own
    archived = jax.random.uniform(keys[1], (num,)) < _ARCHIVED
    return jax.tree.map(lambda a, b: jnp.where(_along(archived, a), a, b), pairs(keys[2], archive), own)


def _number_or_zero(log_values: Array) -> Array:
    """Logarithms, those that are NaN that of zero."""
    return jnp.where(jnp.isnan(log_values), -jnp.inf, log_values)


def _along(values: Array, leaf: Array) -> Array:
    """Values of rows, (n,), with as many axes as `leaf`, (n, ...)."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))


def _next_level(log_likelihood: Array, level: Array, wanted: Any) -> Array:
    """The level whose weights have the effective sample size `wanted`; 1 where that leaves more."""

    def enough(rise):
        log_weights = jax.nn.log_softmax(jnp.where(log_likelihood > -jnp.inf, rise * log_likelihood, -jnp.inf))
        return jnp.exp(-jax.nn.logsumexp(2 * log_weights)) >= wanted

    def halve(_, ends):
        low, high = ends
        middle = jnp.sqrt(low * high)  # by ratios: levels begin many orders of magnitude below 1
        return jnp.where(enough(middle), middle, low), jnp.where(enough(middle), high, middle)

    most = 1.0 - level
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (most * _LEAST_RISE, most))
    return jnp.where(enough(most), 1.0, level + low)


def _num_members(position: Position) -> int:
    """N of a population; raises ValueError where it is too small."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(position)]
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"position must have one leading axis of members in all arrays, got {shapes}")
    num, dim = shapes[0][0], _dim(position)
    check(num >= 2 * dim + 4, f"position must hold at least {2 * dim + 4} members of {dim} numbers, got {num}")
    return num


def _dim(position: Position) -> int:
    """The numbers of one member."""
    return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(position))


def _member(rows: Position) -> Any:
    """The form of one row, a pytree of strings."""
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[1:])}", rows)


def _checked_archive(archive: Position) -> Position:
    archive = jax.tree.map(lambda leaf: check_array("archive", leaf), archive)
    shapes = [leaf.shape for leaf in jax.tree.leaves(archive)]
    rows = {shape[:1] for shape in shapes}
    check(len(rows) == 1 and min(rows) >= (2,), f"archive must have one leading axis of two or more members, got {shapes}")
    return archive
