"""genmod itself: `gm.inference.svgd`."""

import jax.numpy as jnp
import optax

import genmod as gm
from experiments.benchmarks.jax_peer import JaxPeer
from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.svgd.problems import NUM_STEPS, STEP_SIZE, Cell


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The library's own loop."""
    precision, optimizer = jnp.asarray(arrays["precision"]), optax.sgd(STEP_SIZE)

    def log_prob(x):
        return -0.5 * jnp.sum(precision * x**2)

    def run(params, key, x):
        return gm.inference.svgd(log_prob, x, optimizer=optimizer, num_steps=NUM_STEPS).particles

    return JaxPeer({}, arrays["batches"], {}, {"run": run})
