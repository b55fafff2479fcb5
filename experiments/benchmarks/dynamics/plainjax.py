"""JAX by hand without a solver library: as many fixed dopri5 steps as the adaptive solver took, a checkpoint per step; DDIM."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from experiments.benchmarks.dynamics import _jax as by_hand
from experiments.benchmarks.dynamics.problems import NUM_DDIM_STEPS, Cell, solver_steps
from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.peer import Arrays

DISTRIBUTION = "jax"
TABLEAU = diffrax.Dopri5.tableau  # only its coefficients; its last stage is for the error estimate
NODES, STAGES = (0.0, *map(float, TABLEAU.c[:-1])), ((), *(tuple(map(float, row)) for row in TABLEAU.a_lower[:-1]))
WEIGHTS = tuple(map(float, TABLEAU.b_sol[:-1]))


def _advance(y: Any, slopes: list, weights: tuple, dt: float) -> Any:
    return jax.tree.map(lambda y, *ks: y + dt * sum(w * k for w, k in zip(weights, ks, strict=True) if w), y, *slopes)


def solve(fn: Callable, y: Any, args: Any, t0: float, t1: float, *, num_steps: int, remat: bool = True) -> tuple[Any, int]:
    """dy/dt = fn(t, y, args) from t0 to t1 in equal dopri5 steps (fifth order, without error estimate)."""
    dt = (t1 - t0) / num_steps

    def step(y: Any, t: jax.Array) -> tuple[Any, None]:
        slopes = []
        for node, weights in zip(NODES, STAGES, strict=True):
            slopes.append(fn(t + node * dt, _advance(y, slopes, weights, dt) if slopes else y, args))
        return _advance(y, slopes, WEIGHTS, dt), None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, y, t0 + dt * jnp.arange(num_steps))[0], num_steps


def ddim(cell: Cell, params: list, key: jax.Array, x: jax.Array) -> tuple[jax.Array, int]:
    """From x at t = 1 to t = 0 in equal steps."""
    denoise, times = by_hand.denoiser(by_hand.field(cell.activation)), jnp.linspace(1.0, 0.0, NUM_DDIM_STEPS + 1)

    def step(x: jax.Array, pair: tuple) -> tuple[jax.Array, None]:
        (alpha, sigma), (alpha_next, sigma_next) = by_hand.levels(pair[0]), by_hand.levels(pair[1])
        data = denoise(params, pair[0], x)
        return alpha_next * data + sigma_next / sigma * (x - alpha * data), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0], NUM_DDIM_STEPS


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The model."""
    fixed = {op: partial(solve, num_steps=num) for op, num in solver_steps(arrays).items()}
    network = by_hand.field(cell.activation)
    if cell.kind == "cnf":

        def trainings(num: int) -> dict:
            kinds = {"fixed": True, "fixed, all residuals": False}
            return {kind: adam(by_hand.nll(cell, partial(solve, num_steps=num, remat=remat))) for kind, remat in kinds.items()}

        functions = by_hand.log_probs(by_hand.log_prob_fn(cell, fixed["log_prob"]), "_fixed")
        functions["memory"] = by_hand.memory(arrays, trainings)
        return by_hand.peer(arrays, {"train_fixed": adam(by_hand.nll(cell, fixed["train"]))}, functions)
    if cell.kind == "dm":
        loss = by_hand.denoising_loss(by_hand.denoiser(network))
        return by_hand.peer(arrays, {"train": adam(loss)}, by_hand.samples(cell, partial(ddim, cell)))
    functions = by_hand.samples(cell, by_hand.push_fn(cell, fixed["sample"]), "_fixed")
    return by_hand.peer(arrays, {"train": adam(by_hand.flow_matching_loss(network))}, functions)
