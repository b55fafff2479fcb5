"""Kernels: one step of a Markov chain, in the form of BlackJAX.

    kernel = mala(log_prob_fn, step_size=0.1)
    state = kernel.init(position)                  # a NamedTuple; state.position is where the chain is
    state, info = kernel.step(key, state)          # info: a NamedTuple about this step

`run` drives any object with such a `step`, a `blackjax.nuts(...)` among them. A kernel moves ONE chain: `jax.vmap` makes many.
A position is any pytree of arrays; `log_prob_fn(position)` is one number, in nats, up to a constant.

States may remember log-probabilities of their position. Where the target has changed since (its parameters were trained),
begin anew with `kernel.init(state.position)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_function, check_positive
from genmod.core.types import Array, Key

Position = Any


class Kernel(NamedTuple):
    """A Markov kernel: `init(position) -> state` and `step(key, state) -> (state, info)`, pure functions."""

    init: Callable[[Position], Any]
    step: Callable[[Key, Any], tuple[Any, Any]]


def walk(step: Callable[[Key, Any], tuple[Any, Any]], state: Any, keys: Key) -> tuple[Any, Any]:
    """(the state after a step for each key, the info of the last)."""
    state, infos = jax.lax.scan(lambda state, key: step(key, state), state, keys)
    return state, jax.tree.map(lambda info: info[-1], infos)


def real_position(position: Position) -> Position:
    """The position as floating arrays; raises TypeError where it holds other numbers, ValueError where it holds none."""
    if not jax.tree.leaves(position):
        raise ValueError(f"position must hold at least one array, got {position!r}")
    return jax.tree.map(lambda leaf: check_array("position", leaf), position)


def check_form(name: str, given: Any, wanted: Position) -> None:
    """Raises ValueError unless what the function `name` returned has the structure, shapes and dtypes of `wanted`."""

    def form(tree):
        return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(np.shape(leaf))}", tree)

    if form(given) != form(wanted):
        raise ValueError(f"{name} must return arrays like those of the position, {form(wanted)}, got {form(given)}")


def scalar(name: str, value: Any) -> Array:
    """What the function `name` returned, in at least float32; raises ValueError unless it is one number."""
    value = jnp.asarray(value)
    if value.shape:
        raise ValueError(
            f"{name} must return one number for one position, got shape {value.shape}; "
            "write it for one chain, and jax.vmap the chain over positions"
        )
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def scalar_fn(name: str, fn: Callable[[Position], Any]) -> Callable[[Position], Array]:
    """`fn` of one position, whose values are checked to be one number; raises TypeError for what is no function."""
    check_function(**{name: fn})
    return lambda position: scalar(name, fn(position))


def check_scalar(**values: ArrayLike) -> None:
    """Raises TypeError or ValueError unless every named value is one number above zero; what is being traced is let through."""
    for name, value in values.items():
        check_positive(**{name: value})
        if np.shape(value):
            raise ValueError(f"{name} must be one number, got shape {np.shape(value)}")
