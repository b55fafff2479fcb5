"""Make what all libraries share, once, and keep it in a file.

    python -m experiments.benchmarks.peers.dynamics.problems KIND DIM PATH

The weights are trained by Diffrax from a fixed seed, so that the solver has something to do; the reference values are
those of SciPy's DOP853 in float64, and of DDIM written out in NumPy.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from experiments.benchmarks.peers.base import moons
from experiments.benchmarks.peers.dynamics import base, diffrax_minimal
from experiments.benchmarks.peers.dynamics.jax_dynamics import adam, denoiser, denoising_loss, field, flow_matching_loss, load

NUM_TRAINING_STEPS = {"cnf": 400, "fm": 2_000, "dm": 2_000}


def initial_weights(cell: base.Cell, rng: np.random.Generator) -> base.Weights:
    """Uniform within 1 / sqrt(inputs), as PyTorch has it."""
    sizes = (cell.dim + 1, *cell.hidden_sizes, cell.dim)
    bounds = [(a, b, a**-0.5) for a, b in itertools.pairwise(sizes)]
    return [tuple(rng.uniform(-r, r, shape).astype(np.float32) for shape in ((a, b), (b,))) for a, b, r in bounds]


def train(cell: base.Cell, weights: base.Weights) -> base.Weights:
    """Adam on fresh batches of the moons."""
    network = field(cell.activation)
    loss = {
        "cnf": lambda: diffrax_minimal.nll(cell),
        "fm": lambda: flow_matching_loss(network),
        "dm": lambda: denoising_loss(denoiser(network)),
    }[cell.kind]()
    init, step = adam(loss)
    state, step, num = init(load(weights)), jax.jit(step), NUM_TRAINING_STEPS[cell.kind]
    data = moons(4, num * cell.batch_size, cell.dim).reshape(num, cell.batch_size, cell.dim)
    for i in range(num):
        state, _ = step(state, jax.random.key(i), jnp.asarray(data[i]))
    return [(np.asarray(w), np.asarray(b)) for w, b in state[0]]


def double(weights: base.Weights) -> base.Weights:
    """In float64."""
    return [(w.astype(np.float64), b.astype(np.float64)) for w, b in weights]


def silu_network(layers: base.Weights, t: float, x: np.ndarray) -> np.ndarray:
    """The field, (N, D) -> (N, D)."""
    h = np.concatenate([x, np.full((len(x), 1), t)], axis=1)
    for w, b in layers[:-1]:
        h = h @ w + b
        h = h / (1.0 + np.exp(-h))
    w, b = layers[-1]
    return h @ w + b


def ddim(weights: base.Weights, z: np.ndarray) -> np.ndarray:
    """Where DDIM sends noise."""
    layers, x = double(weights), z.astype(np.float64)
    times = np.linspace(1.0, 0.0, base.NUM_DDIM_STEPS + 1)
    alphas = base.ALPHA_MIN ** (times**2)
    sigmas = np.sqrt(1.0 - alphas**2 + base.SIGMA_MIN**2)
    for i in range(base.NUM_DDIM_STEPS):
        alpha, sigma = alphas[i], sigmas[i]
        scale = np.hypot(alpha, sigma)
        data = (alpha * x + sigma * scale * silu_network(layers, np.log(sigma / alpha), x / scale)) / scale**2
        x = alphas[i + 1] * data + sigmas[i + 1] / sigma * (x - alpha * data)
    return x


def reference(cell: base.Cell, weights: base.Weights, x: np.ndarray, t0: float, t1: float) -> tuple[np.ndarray, np.ndarray]:
    """Where x goes and the integral of the divergence on the way (zero for "silu"), in float64."""
    layers = double(weights)
    num, dim = x.shape

    def tanh_field(t: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = np.concatenate([x, np.full((num, 1), t)], axis=1)
        dh = np.broadcast_to(np.eye(dim, dim + 1)[:, None], (dim, num, dim + 1))
        for w, b in layers[:-1]:
            h = np.tanh(h @ w + b)
            dh = (1.0 - h**2) * (dh @ w)
        w, b = layers[-1]
        return h @ w + b, np.einsum("inj,ij->n", dh @ w, np.eye(dim))

    def silu_field(t: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return silu_network(layers, t, x), np.zeros(num)

    velocity: Callable = tanh_field if cell.activation == "tanh" else silu_field

    def rate(t: float, y: np.ndarray) -> np.ndarray:
        v, divergence = velocity(t, y[: num * dim].reshape(num, dim))
        return np.concatenate([v.ravel(), divergence])

    start = np.concatenate([x.astype(np.float64).ravel(), np.zeros(num)])
    y = solve_ivp(rate, (t0, t1), start, method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    return y[: num * dim].reshape(num, dim), y[num * dim :]


def make(cell: base.Cell) -> base.Problem:
    """The problem of a kind and dimension."""
    rng = np.random.default_rng(0)
    initial = initial_weights(cell, rng)
    trained = train(cell, initial)
    x, z = moons(2, base.NUM_POINTS, cell.dim), rng.normal(size=(base.NUM_POINTS, cell.dim)).astype(np.float32)
    batches = moons(1, base.NUM_BATCHES * cell.batch_size, cell.dim).reshape(-1, cell.batch_size, cell.dim)
    if cell.kind == "dm":
        num_steps = {"sample": base.NUM_DDIM_STEPS}
        return base.Problem(initial, trained, batches, x, z, np.zeros(0), ddim(trained, z), num_steps)
    params, key = load(trained), jax.random.key(0)
    num_steps, log_prob = {"sample": int(diffrax_minimal.push_fn(cell)(params, z)[1])}, np.zeros(0)
    if cell.kind == "cnf":
        count = diffrax_minimal.log_prob_fn(cell)
        num_steps |= {op: int(count(params, jnp.asarray(at), key)[1]) for op, at in (("train", batches[0]), ("log_prob", x))}
        noise, log_det = reference(cell, trained, x, 1.0, 0.0)
        log_prob = log_det - 0.5 * (noise**2 + np.log(2.0 * np.pi)).sum(1)
    pushed, _ = reference(cell, trained, z, 0.0, 1.0)
    return base.Problem(initial, trained, batches, x, z, log_prob, pushed, num_steps)


if __name__ == "__main__":
    make(base.Cell(sys.argv[1], int(sys.argv[2]))).save(Path(sys.argv[3]))
