"""The weights and reference values that all libraries share.

The weights are trained by Diffrax from a fixed seed, so that the solver has something to do. The reference values are those of
SciPy's DOP853 in float64 on the field written by hand, and of DDIM in float64.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

from experiments.benchmarks.dynamics import _jax as by_hand, diffrax_minimal, plainjax
from experiments.benchmarks.dynamics.problems import NUM_DDIM_STEPS, Cell, Weights
from experiments.benchmarks.flows.problems import moons
from experiments.benchmarks.jax_peer import adam


def initial_weights(cell: Cell, rng: np.random.Generator) -> Weights:
    """Uniform within 1 / sqrt(inputs), as PyTorch has it."""
    sizes = (cell.dim + 1, *cell.hidden_sizes, cell.dim)
    bounds = [(a, b, a**-0.5) for a, b in itertools.pairwise(sizes)]
    return [tuple(rng.uniform(-r, r, shape).astype(np.float32) for shape in ((a, b), (b,))) for a, b, r in bounds]


def train(cell: Cell, layers: Weights) -> Weights:
    """Adam on fresh batches of the moons."""
    network, num = by_hand.field(cell.activation), cell.num_training
    training = adam(
        {
            "cnf": by_hand.nll(cell, diffrax_minimal.solve),
            "fm": by_hand.flow_matching_loss(network),
            "dm": by_hand.denoising_loss(by_hand.denoiser(network)),
        }[cell.kind]
    )
    state, step = training.init(by_hand.load(layers)), jax.jit(training.step)
    data = moons(4, num * cell.batch_size, cell.dim).reshape(num, cell.batch_size, cell.dim)
    for i in range(num):
        state, _ = step(state, jax.random.key(i), jnp.asarray(data[i]))
    return [(np.asarray(w), np.asarray(b)) for w, b in training.params(state)]


def solve(fn: Callable, y: Any, args: Any, t0: float, t1: float) -> tuple[Any, int]:
    """dy/dt = fn(t, y, args) from t0 to t1, to 1e-9; a solver as `_jax` wants it, for float64."""
    start, unravel = ravel_pytree(y)
    rate = jax.jit(lambda t, y: ravel_pytree(fn(t, unravel(y), args))[0])
    solution = solve_ivp(rate, (t0, t1), start, method="DOP853", rtol=1e-9, atol=1e-9)
    return unravel(jnp.asarray(solution.y[:, -1])), solution.nfev


def reference(cell: Cell, trained: Weights, x: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """Where z is sent and, for maximum likelihood, log p(x)."""
    with jax.enable_x64(True):
        params, key = by_hand.load([(w.astype(np.float64), b.astype(np.float64)) for w, b in trained]), jax.random.key(0)
        push = partial(plainjax.ddim, cell) if cell.kind == "dm" else by_hand.push_fn(cell, solve)
        found = {"pushed": push(params, key, jnp.asarray(z, jnp.float64))[0]}
        if cell.kind == "cnf":
            found["log_prob"] = by_hand.log_prob_fn(cell, solve)(params, key, jnp.asarray(x, jnp.float64))[0]
        return {name: np.asarray(value) for name, value in found.items()}


def make(cell: Cell) -> dict[str, np.ndarray]:
    """What all libraries share of a cell.

    Returns:
        initial_w0, initial_b0, ..., trained_w0, ...: the weights.
        batches: training data, (num, batch_size, D).
        x, z: held-out data and noise, (num_points, D).
        log_prob: log p(x) in nats and float64, solved to 1e-9 with the exact trace; maximum likelihood only.
        pushed: where the trained flow sends z in float64, solved to 1e-9; of a diffusion, by the steps of DDIM.
        steps_train, steps_log_prob, steps_sample: what dopri5 needs at TOLERANCE, and fixed steps use; the steps of DDIM.
    """
    cell = dataclasses.replace(cell, divergence="exact")  # cells that differ in it share their arrays
    rng = np.random.default_rng(0)
    initial = initial_weights(cell, rng)
    trained = train(cell, initial)
    x, z = moons(2, cell.num_points, cell.dim), rng.normal(size=(cell.num_points, cell.dim)).astype(np.float32)
    batches = moons(1, 16 * cell.batch_size, cell.dim).reshape(16, cell.batch_size, cell.dim)
    arrays = {"x": x, "z": z, "batches": batches} | reference(cell, trained, x, z)
    for which, layers in (("initial", initial), ("trained", trained)):
        for i, (w, b) in enumerate(layers):
            arrays |= {f"{which}_w{i}": w, f"{which}_b{i}": b}
    if cell.kind == "dm":
        return arrays | {"steps_sample": np.array(NUM_DDIM_STEPS)}
    push, log_prob = by_hand.push_fn(cell, diffrax_minimal.solve), by_hand.log_prob_fn(cell, diffrax_minimal.solve)
    asked = {"sample": (push, z)} | ({"train": (log_prob, batches[0]), "log_prob": (log_prob, x)} if cell.kind == "cnf" else {})
    params, key = by_hand.load(trained), jax.random.key(0)
    return arrays | {f"steps_{op}": np.asarray(fn(params, key, jnp.asarray(at))[1]) for op, (fn, at) in asked.items()}
