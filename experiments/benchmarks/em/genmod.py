"""genmod itself: `gm.training.fit_em`."""

import jax.numpy as jnp

import genmod as gm
from experiments.benchmarks.em.problems import NUM_SWEEPS, Cell
from experiments.benchmarks.jax_peer import JaxPeer
from experiments.benchmarks.peer import Arrays


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The library's own loop, which is told not to end early."""
    model = gm.models.mixture_of_gaussians((cell.dim,), 2)
    covariance = {"log_scale": jnp.zeros((2, cell.dim)), "lower": jnp.zeros((2, cell.dim, cell.dim))}
    start = {"logits": jnp.zeros(2), "components": {"mean": jnp.asarray(arrays["means"]), "covariance": covariance}}

    def run(params, key, x):
        return gm.training.fit_em(model, x, params=params, num_sweeps=NUM_SWEEPS, tolerance=1e-30).objective

    return JaxPeer(start, arrays["batches"], {}, {"run": run}, num_params=model.num_free)
