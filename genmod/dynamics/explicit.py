"""Explicit Runge-Kutta methods from their tableaux: one step, without the stages that only serve an error estimate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method, which Diffrax has not; its error estimate is against the midpoint rule."""

    tableau = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 2]), np.array([0, 1 / 2]), np.array([0, 0, 1.0])),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.array([1 / 6, -2 / 3, 1 / 3, 1 / 6]),
        c=np.array([1 / 2, 1 / 2, 1.0]),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


@dataclasses.dataclass(frozen=True)
class Explicit:
    """An explicit Runge-Kutta method without the stages that only serve an error estimate."""

    rows: tuple[tuple[float, ...], ...]  # rows[i]: weights of the stages before i
    nodes: tuple[float, ...]
    weights: tuple[float, ...]


def butcher_of(solver: diffrax.AbstractSolver) -> diffrax.ButcherTableau | None:
    """The tableau of an explicit Runge-Kutta method; None for other solvers."""
    tableau = getattr(solver, "tableau", None)
    return tableau if isinstance(solver, diffrax.AbstractERK) and isinstance(tableau, diffrax.ButcherTableau) else None


def tableau_of(solver: diffrax.AbstractSolver) -> Explicit | None:
    """The method without the stages of its error estimate; None for other solvers."""
    if isinstance(solver, diffrax.Euler):
        return Explicit(((),), (0.0,), (1.0,))
    tableau = butcher_of(solver)
    if tableau is None:
        return None
    used = int(np.flatnonzero(tableau.b_sol)[-1]) + 1
    rows = ((), *(tuple(map(float, row)) for row in tableau.a_lower))[:used]
    return Explicit(rows, (0.0, *map(float, tableau.c))[:used], tuple(map(float, tableau.b_sol))[:used])


def runge_kutta(method: Explicit, field: Callable, t: Any, dt: Any, state: Any, args: Any) -> Any:
    """The state after one step.

    Args:
      method: whose step. field: (t, state, args) -> d state / dt, a pytree like state.
      t, dt: the time of `state`, and the step from there. args: what the field is given.
    """
    stages = []
    for row, node in zip(method.rows, method.nodes, strict=True):
        stages.append(field(t + node * dt, _combine(state, dt, row, stages), args))
    return _combine(state, dt, method.weights, stages)


def _combine(state, dt, weights, stages):
    """state + dt * sum of weights * stages."""
    terms = [(w, k) for w, k in zip(weights, stages, strict=True) if w != 0.0]
    if not terms:
        return state
    scale = [w for w, _ in terms]
    return jax.tree.map(lambda y, *ks: y + dt * sum(w * k for w, k in zip(scale, ks, strict=True)), state, *(k for _, k in terms))


def evaluations(solver: diffrax.AbstractSolver, num_steps: jax.Array) -> dict[str, jax.Array]:
    """{"nfe": evaluations of the field in so many steps}, {} where that is not known."""
    tableau = butcher_of(solver)
    if tableau is None:
        return {}
    # A method that reuses its last stage starts with one evaluation of its own.
    stages, reused = len(tableau.b_sol), int(tableau.fsal)
    return {"nfe": (reused + num_steps * (stages - reused)).astype(jnp.float32)}
