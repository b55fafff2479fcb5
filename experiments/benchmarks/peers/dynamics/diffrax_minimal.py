"""JAX and Diffrax by hand: the whole batch is one state, dopri5 on the rms norm, recursive checkpoints."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.jax_dynamics import (
    JaxDynamics,
    adam,
    field,
    flow_matching_loss,
    load,
    normal_log_prob,
    temp_bytes,
    with_divergence,
)
from experiments.benchmarks.peers.serve import Unsupported

DISTRIBUTION = "diffrax"
MAX_STEPS = 256


def solve(fn: Callable, y: Any, args: Any, t0: float, t1: float, adjoint: Any, max_steps: int = MAX_STEPS) -> diffrax.Solution:
    """dy/dt = fn(t, y, args) from t0 to t1."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(fn),
        diffrax.Dopri5(),
        t0,
        t1,
        dt0=None,
        y0=y,
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=base.TOLERANCE, atol=base.TOLERANCE),
        adjoint=adjoint,
        max_steps=max_steps,
    )


def log_prob_fn(cell: base.Cell, adjoint: Any = None, max_steps: int = MAX_STEPS) -> Callable:
    """(params, x, key) -> log p(x) and the solver's steps."""
    dynamics = with_divergence(field(cell.activation), cell.divergence)
    adjoint = adjoint or diffrax.RecursiveCheckpointAdjoint()

    def fn(t: jax.Array, y: tuple, args: tuple) -> tuple:
        params, probe = args
        return dynamics(params, t, y[0], probe)

    def log_prob(params: list, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        probe = jax.random.rademacher(key, x.shape, x.dtype)
        solution = solve(fn, (x, jnp.zeros(x.shape[0])), (params, probe), 1.0, 0.0, adjoint, max_steps)
        z, log_det = solution.ys[0][0], solution.ys[1][0]
        return normal_log_prob(z) + log_det, solution.stats["num_steps"]

    return log_prob


def nll(cell: base.Cell, adjoint: Any = None, max_steps: int = MAX_STEPS) -> Callable:
    """The loss of maximum likelihood."""
    log_prob = log_prob_fn(cell, adjoint, max_steps)
    return lambda params, key, x: -log_prob(params, x, key)[0].mean()


def push_fn(cell: base.Cell) -> Callable:
    """(params, z) -> x and the solver's steps."""
    velocity = field(cell.activation)

    def push(params: list, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = solve(lambda t, x, p: velocity(p, t, x), z, params, 0.0, 1.0, diffrax.RecursiveCheckpointAdjoint())
        return solution.ys[0], solution.stats["num_steps"]

    return push


def build(cell: base.Cell, problem: base.Problem) -> JaxDynamics:
    """The model."""
    if cell.kind == "cnf":
        log_prob = log_prob_fn(cell)
        return JaxDynamics(
            load,
            steps={"train": adam(nll(cell)), "train_adjoint": adam(nll(cell, diffrax.BacksolveAdjoint()))},
            log_probs={"log_prob": jax.jit(lambda params, x, key: log_prob(params, x, key)[0])},
            counts={"log_prob": lambda params, x: log_prob(params, x, jax.random.key(0))[1]},
        )
    if cell.kind == "dm":
        raise Unsupported("a diffusion by hand is plainjax's")
    push = push_fn(cell)

    def sample(params: list, key: jax.Array, num: int) -> jax.Array:
        return push(params, jax.random.normal(key, (num, cell.dim)))[0]

    return JaxDynamics(
        load,
        steps={"train": adam(flow_matching_loss(field(cell.activation)))},
        samples={"sample": jax.jit(sample, static_argnums=2)},
        pushes={"sample": jax.jit(lambda params, z: push(params, z)[0])},
        counts={"sample": lambda params, z: push(params, z)[1]},
    )


def memory(problem: base.Problem, num_steps: int) -> dict[str, int]:
    """Bytes of the training step with exact trace and at most `num_steps` steps."""
    cell, params, batch = base.Cell("cnf", 2), load(problem.trained), problem.batches[0]
    adjoints = {
        "recursive checkpoint": diffrax.RecursiveCheckpointAdjoint(),
        "backsolve": diffrax.BacksolveAdjoint(),
        "direct": diffrax.DirectAdjoint(),
    }
    return {kind: temp_bytes(adam(nll(cell, adjoint, num_steps)), params, batch) for kind, adjoint in adjoints.items()}
