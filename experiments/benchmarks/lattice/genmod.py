"""genmod itself: `gm.flows.lattice_coupling_flow`, `gm.inference.ReverseKL` and `GradientStep`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.lattice.problems import COUPLING, LARGEST_LOG_SCALE, MASS_SQUARED, SLOPE, Cell, weights
from experiments.benchmarks.peer import LEARNING_RATE, Arrays


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The flow at the builder's defaults but for its sizes."""
    shape = (cell.size, cell.size)
    law = gm.densities.PhiFour(shape, MASS_SQUARED, COUPLING)
    flow = gm.flows.lattice_coupling_flow(
        shape,
        cell.num_layers,
        hidden_channels=cell.hidden_channels,
        activation=gm.call(nn.leaky_relu, negative_slope=SLOPE),
        transformer=gm.bijectors.Affine(LARGEST_LOG_SCALE),
    )
    gradient = gm.GradientStep(gm.inference.ReverseKL(law, flow, cell.batch_size, False), optax.adam(LEARNING_RATE))
    params = load(flow, arrays)

    def step(state: Any, key: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = gradient(state, key, None)
        return state, metrics["loss"]

    @jax.jit
    def given(params: Any, key: jax.Array, z: jax.Array) -> jax.Array:
        x, log_q = jax.vmap(flow.push_one, (None, 0))(params, z)
        return log_q + law.action(x)

    training = Training(lambda params: gradient.init(params, jax.random.key(0), None), step, gradient.evaluation_params)
    functions = {"given": given, "sample": lambda params, key: flow.sample_and_log_prob(params, key, cell.num_samples)}
    return JaxPeer(params, arrays["batches"], {"train": training}, functions, lambda which: params, gm.num_params(params))


def load(flow: gm.models.Flow, arrays: Arrays) -> Any:
    """The shared weights as parameters: those of the pairs' first couplings, then those of their second."""

    def fill(path: tuple, leaf: jax.Array) -> jax.Array:
        _, parity, convolution, kind = (getattr(entry, "key", getattr(entry, "idx", None)) for entry in path)
        array = weights(arrays)[int(convolution.split("_")[1])][kind == "bias"][parity::2]
        assert array.shape == leaf.shape, (path, array.shape, leaf.shape)
        return jnp.asarray(array)

    params = flow.init(jax.random.key(0), np.zeros((1, *flow.event_shape), np.float32))
    return jax.tree_util.tree_map_with_path(fill, params)
