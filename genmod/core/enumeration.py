"""All states of a discrete event, as rows or one by one by their number, and sums over them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod.core.event import Event, Levels, Tokens
from genmod.core.types import Array, Key

MAX_STATES = 2**20
_BLOCK = 2**12


def states(event: Event, max_states: int = MAX_STATES) -> np.ndarray:
    """All events of a kind, (S,) + event_shape, the last entry changing fastest; sequences of tokens by their length.

    Raises TypeError for events that are not `Levels` or `Tokens`, ValueError for more than `max_states`.
    """
    if not isinstance(event, Levels | Tokens):
        raise TypeError(f"exact wants discrete events, Levels or Tokens, got {event}")
    num = check_num_states(str(event), num_states(event), max_states=max_states)
    if isinstance(event, Levels):
        return _digits(event.num_levels, math.prod(event.shape)).reshape(num, *event.shape).astype(event.dtype)
    others = np.delete(np.arange(event.vocabulary), event.end)
    parts = []
    for length in range(event.max_length + 1):  # tokens before the end
        words = others[_digits(len(others), length)]
        parts.append(np.pad(words, ((0, 0), (0, event.max_length - length)), constant_values=event.end))
    return np.concatenate(parts).astype(event.dtype)


def place_of(event: Event, x: np.ndarray) -> np.ndarray:
    """The places in `states` of events in one row each, (..., D) -> (...)."""
    if isinstance(event, Levels):
        return _number(x, event.num_levels)
    assert isinstance(event, Tokens)
    # Shorter sequences come first; tokens above the end count one less.
    length = np.cumprod(x != event.end, -1).sum(-1)
    base = event.vocabulary - 1
    first = np.concatenate([[0], np.cumsum([base**n for n in range(event.max_length)])])[length]
    before = np.arange(event.max_length) < length[..., None]
    digits, places = x - (x > event.end), np.where(before, length[..., None] - 1 - np.arange(event.max_length), 0)
    return np.asarray(first + np.sum(np.where(before, digits * base**places, 0), -1))


def nth_state(event: Any, i: Array) -> Array:
    """The i-th of the `states` of `Levels`, for an i that may be traced."""
    size = math.prod(event.shape)
    powers = np.array([event.num_levels**k for k in reversed(range(size))], i.dtype)
    return (i // jnp.asarray(powers) % event.num_levels).reshape(event.shape).astype(event.dtype)


def log_sum(log_weight_fn: Callable[[Array], Array], num: int) -> Array:
    """log sum_i exp(log_weight_fn(i)) of the states i = 0 .. num - 1, a block of them at a time, also in the gradient."""
    block = min(num, _BLOCK)

    @jax.checkpoint
    def add(total, first):
        index = first + jnp.arange(block)
        found = jnp.where(index < num, jax.vmap(log_weight_fn)(jnp.minimum(index, num - 1)), -jnp.inf)
        return jnp.logaddexp(total, jax.nn.logsumexp(found)), None

    like = jax.eval_shape(log_weight_fn, jax.ShapeDtypeStruct((), jnp.result_type(int)))
    return jax.lax.scan(add, jnp.full((), -jnp.inf, like.dtype), jnp.arange(0, num, block))[0]


def draw_index(key: Key, log_weight_fn: Callable[[Array], Array], num: int) -> Array:
    """One draw of i = 0 .. num - 1 in proportion to exp(log_weight_fn(i)); what is below the rounding of the sum is lost."""
    heights = jnp.cumsum(jax.nn.softmax(jax.lax.map(log_weight_fn, jnp.arange(num), batch_size=min(num, _BLOCK))))
    found = jnp.searchsorted(heights, heights[-1] * jax.random.uniform(key, (), heights.dtype), side="right")
    return jnp.minimum(found, num - 1)


def check_num_states(owner: str, num: int, remedy: str = "", *, max_states: int = MAX_STATES) -> int:
    """`num` itself; raises ValueError, which ends in the remedy, where there are too many to go through."""
    if num > max_states:
        most = f"at most {max_states} can be gone through" + (f"; {remedy}" if remedy else "")
        raise ValueError(f"{owner} has about 2^{math.log2(num):.0f} states, {most}")
    return num


def num_states(event: Levels | Tokens) -> int:
    """How many events of a kind there are."""
    if isinstance(event, Levels):
        return event.num_levels ** math.prod(event.shape)
    return sum((event.vocabulary - 1) ** length for length in range(event.max_length + 1))


def _digits(base: int, num: int) -> np.ndarray:
    """All rows of `num` numbers below `base`, (base^num, num)."""
    codes = np.arange(base**num)
    return np.stack([codes // base**i % base for i in reversed(range(num))], -1) if num else np.zeros((1, 0), int)


def _number(digits: np.ndarray, base: int) -> np.ndarray:
    """The number that rows of digits are, (..., D) -> (...)."""
    return np.asarray(np.sum(digits * base ** np.arange(digits.shape[-1])[::-1], -1, dtype=np.int64))
