"""JAX by hand without a solver library: as many fixed dopri5 steps as the adaptive solver took, a checkpoint per step; DDIM."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.peers.dynamics import base
from experiments.benchmarks.peers.dynamics.jax_dynamics import (
    JaxDynamics,
    adam,
    denoiser,
    denoising_loss,
    field,
    flow_matching_loss,
    levels,
    load,
    normal_log_prob,
    temp_bytes,
    with_divergence,
)

DISTRIBUTION = "jax"
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
WEIGHTS = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)


def _advance(y: Any, slopes: list, weights: tuple, dt: float) -> Any:
    return jax.tree.map(lambda y, *ks: y + dt * sum(w * k for w, k in zip(weights, ks, strict=True) if w), y, *slopes)


def solve(fn: Callable, y: Any, t0: float, t1: float, num_steps: int, remat: bool = True) -> Any:
    """dy/dt = fn(t, y) from t0 to t1 in equal dopri5 steps (fifth order, without error estimate)."""
    dt = (t1 - t0) / num_steps

    def step(y: Any, t: jax.Array) -> tuple[Any, None]:
        slopes = [fn(t, y)]
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            slopes.append(fn(t + node * dt, _advance(y, slopes, weights, dt)))
        return _advance(y, slopes, WEIGHTS, dt), None

    return jax.lax.scan(jax.checkpoint(step) if remat else step, y, t0 + dt * jnp.arange(num_steps))[0]


def log_prob_fn(cell: base.Cell, num_steps: int, remat: bool = True) -> Callable:
    """(params, x, key) -> log p(x)."""
    dynamics = with_divergence(field(cell.activation), cell.divergence)

    def log_prob(params: list, x: jax.Array, key: jax.Array) -> jax.Array:
        probe = jax.random.rademacher(key, x.shape, x.dtype)
        state = (x, jnp.zeros(x.shape[0]))
        z, log_det = solve(lambda t, y: dynamics(params, t, y[0], probe), state, 1.0, 0.0, num_steps, remat)
        return normal_log_prob(z) + log_det

    return log_prob


def nll(cell: base.Cell, num_steps: int, remat: bool = True) -> Callable:
    """The loss of maximum likelihood."""
    log_prob = log_prob_fn(cell, num_steps, remat)
    return lambda params, key, x: -log_prob(params, x, key).mean()


def ddim(denoise: Callable, x: jax.Array, num_steps: int) -> jax.Array:
    """From x at t = 1 to t = 0 in equal steps."""
    times = jnp.linspace(1.0, 0.0, num_steps + 1)

    def step(x: jax.Array, pair: tuple) -> tuple[jax.Array, None]:
        (alpha, sigma), (alpha_next, sigma_next) = levels(pair[0]), levels(pair[1])
        data = denoise(pair[0], x)
        return alpha_next * data + sigma_next / sigma * (x - alpha * data), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def build(cell: base.Cell, problem: base.Problem) -> JaxDynamics:
    """The model."""
    num_steps, network = problem.num_steps, field(cell.activation)
    if cell.kind == "cnf":
        return JaxDynamics(
            load,
            steps={"train_fixed": adam(nll(cell, num_steps["train"]))},
            log_probs={"log_prob_fixed": jax.jit(log_prob_fn(cell, num_steps["log_prob"]))},
            counts={"log_prob_fixed": lambda params, x: num_steps["log_prob"]},
        )
    denoise = denoiser(network)
    loss, op = (flow_matching_loss(network), "sample_fixed") if cell.kind == "fm" else (denoising_loss(denoise), "sample")

    def push(params: list, z: jax.Array) -> jax.Array:
        if cell.kind == "fm":
            return solve(lambda t, x: network(params, t, x), z, 0.0, 1.0, num_steps["sample"])
        return ddim(lambda t, x: denoise(params, t, x), z, num_steps["sample"])

    def sample(params: list, key: jax.Array, num: int) -> jax.Array:
        return push(params, jax.random.normal(key, (num, cell.dim)))

    return JaxDynamics(
        load,
        steps={"train": adam(loss)},
        samples={op: jax.jit(sample, static_argnums=2)},
        pushes={op: jax.jit(push)},
        counts={op: lambda params, z: num_steps["sample"]},
    )


def memory(problem: base.Problem, num_steps: int) -> dict[str, int]:
    """Bytes of the training step with exact trace and `num_steps` fixed steps."""
    cell, params, batch = base.Cell("cnf", 2), load(problem.trained), problem.batches[0]
    kinds = {"fixed, checkpoint per step": True, "fixed, all residuals": False}
    return {kind: temp_bytes(adam(nll(cell, num_steps, remat)), params, batch) for kind, remat in kinds.items()}
