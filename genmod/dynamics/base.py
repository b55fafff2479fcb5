"""What an integrator is, and the checks that both kinds share."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from genmod.core.description import Description
from genmod.core.types import Array, Info

State = Any
Field = Callable[[Array, State, Any, Any], State]


class Integrator(Description, abc.ABC):
    """How an initial value problem is solved."""

    @abc.abstractmethod
    def solve(
        self,
        field: Field,
        state: State,
        shared: Any = None,
        each: Any = None,
        *,
        t0: float = 0.0,
        t1: float = 1.0,
        controlled: Callable[[State], Any] = lambda state: state,
    ) -> tuple[State, Info]:
        """The state at t1, from `state` at t0, of one event; t1 < t0 goes backwards.

        Args:
          field: (t, state, shared, each) -> d state / dt, a pytree like state.
          state: where the solve starts, any pytree of arrays.
          shared: what all events of a batch share (parameters). each: what belongs to this event (context, probes).
            Gradients flow to state, shared and each; not to what `field` closes over.
          t0, t1: the ends.
          controlled: the part of the state on which the steps depend.

        Returns (the state at t1, info), the info as the package says.
        """

    @abc.abstractmethod
    def trajectory(self, field: Field, state: State, shared: Any = None, each: Any = None, *, num_times: int) -> State:
        """The states of one event on the way from 0 to 1, on a leading axis; NaN after a failure.

        Args:
          field, state, shared, each: as in `solve`.
          num_times: so many equally spaced times, both ends among them. `FixedSteps` takes at least one step between any two,
            hence perhaps more than `solve` does.
        """


def finite(tree) -> Array:
    """Whether every float of the tree is finite."""
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, [jnp.isfinite(a).all() for a in floats], jnp.array(True))


def time_dtype(state):
    """The dtype of the times of a solve: that of the state, at least float32."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(state))


def check_solver(solver) -> None:
    """Raises TypeError for what is not a Diffrax solver."""
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"solver must be a Diffrax solver such as diffrax.Tsit5(), got {solver!r}")
