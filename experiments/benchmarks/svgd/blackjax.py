"""BlackJAX: `blackjax.svgd` with its median heuristic, in a `lax.scan`."""

import jax
import jax.numpy as jnp
import optax
from blackjax.vi.svgd import as_top_level_api, median_heuristic

from experiments.benchmarks.jax_peer import JaxPeer
from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.svgd.problems import NUM_STEPS, STEP_SIZE, Cell


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """Its steps, of which the first has the bandwidth of the start, too."""
    precision = jnp.asarray(arrays["precision"])
    algorithm = as_top_level_api(jax.grad(lambda x: -0.5 * jnp.sum(precision * x**2)), optax.sgd(STEP_SIZE))

    @jax.jit
    def run(params, key, x):
        state = algorithm.init(x, median_heuristic({}, x))
        return jax.lax.scan(lambda state, _: (algorithm.step(state), None), state, length=NUM_STEPS)[0].particles

    return JaxPeer({}, arrays["batches"], {}, {"run": run})
