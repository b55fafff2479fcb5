"""Gibbs sampling: blocks of the position are drawn anew, one after the other, each given all others (Geman & Geman 1984).

A conditional draw is a function `(key, position) -> position` that replaces its block and leaves the rest. Each leaves p
invariant, and so does any order of them; no draw is rejected. A block whose conditional law cannot be drawn from moves by any
kernel that leaves this law invariant (Metropolis within Gibbs):

    def move_b(key, x):
        kernel = random_walk(lambda b: log_prob({"a": x["a"], "b": b}), 0.5)
        return x | {"b": kernel.step(key, kernel.init(x["b"]))[0].position}

    kernel = gibbs(draw_a, move_b)

A sweep in a fixed order is not reversible: its reversal is the sweep in the opposite order. A block picked at random is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from genmod.core.checks import check_function
from genmod.core.types import Array, Key
from genmod.samplers.base import Kernel, Position, check_form

Conditional = Callable[[Key, Position], Position]


class GibbsState(NamedTuple):
    """Where the chain is."""

    position: Position


class GibbsInfo(NamedTuple):
    """One step: whether anything of the position has changed."""

    is_moved: Array


def gibbs(*conditionals: Conditional) -> Kernel:
    """The kernel whose step is one sweep: every conditional draw once, in the order given.

    Positions hold arrays of any kind, integers too. Raises TypeError for what is no function, ValueError without any; `step`
    raises ValueError where a conditional changes the form of the position.
    """
    draws = _checked(conditionals)

    def sweep(key, position):
        for own, draw in zip(jax.random.split(key, len(draws)), draws, strict=True):
            position = draw(own, position)
        return position

    return _kernel(sweep)


def random_scan_gibbs(*conditionals: Conditional) -> Kernel:
    """The kernel whose step is one conditional draw, picked at random, all equally likely: reversible. Raises as `gibbs`."""
    draws = _checked(conditionals)

    def draw_one(key, position):
        keys = jax.random.split(key)
        return jax.lax.switch(jax.random.randint(keys[0], (), 0, len(draws)), draws, keys[1], position)

    return _kernel(draw_one)


def _checked(conditionals: tuple[Conditional, ...]) -> list[Conditional]:
    if not conditionals:
        raise ValueError("at least one conditional draw (key, position) -> position is wanted, got none")
    check_function(**{f"conditionals[{i}]": draw for i, draw in enumerate(conditionals)})

    def checked(i, draw):
        def one(key, position):
            found = draw(key, position)
            check_form(f"conditionals[{i}]", found, position)
            return jax.tree.map(jnp.asarray, found)

        return one

    return [checked(i, draw) for i, draw in enumerate(conditionals)]


def _kernel(move: Conditional) -> Kernel:
    def init(position):
        return GibbsState(jax.tree.map(jnp.asarray, position))

    def step(key, state):
        position = move(key, state.position)
        changed = jax.tree.map(lambda new, old: jnp.any(new != old), position, state.position)
        return GibbsState(position), GibbsInfo(jax.tree.reduce(jnp.logical_or, changed))

    return Kernel(init, step)
