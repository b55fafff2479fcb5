"""genmod itself: `gm.flows.variational_autoencoder` and `GradientStep`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import LEARNING_RATE, Arrays
from experiments.benchmarks.vae._jax import peer
from experiments.benchmarks.vae.problems import Cell, weights


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The model at the builder's defaults but for its sizes, head and objective."""
    model = gm.flows.variational_autoencoder(
        (cell.num_pixels,),
        cell.latent_size,
        head=gm.densities.BernoulliHead(),
        hidden_sizes=(cell.hidden_size,),
        objective=gm.losses.ELBO() if cell.num_draws == 1 else gm.losses.IWAE(cell.num_draws),
    )
    params = load(model, arrays)
    gradient = gm.GradientStep(model, optax.adam(LEARNING_RATE))

    def step(state: Any, key: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = gradient(state, key, gm.Batch(batch))
        return state, metrics["loss"]

    training = Training(lambda params: gradient.init(params, jax.random.key(0), None), step, gradient.evaluation_params)
    return peer(arrays, params, training, lambda params, key, x: model.loss(params, key, gm.Batch(x))[0])


def load(model: gm.models.VAE, arrays: Arrays) -> Any:
    """The shared weights as parameters: the last layer of the encoder is the posterior's kernel, two rows for each latent."""
    shared = weights(arrays)

    def by_latent(a: np.ndarray) -> np.ndarray:
        return np.stack(np.split(a, 2, -1), -1)  # (..., 2 D), means before log-scales -> (..., D, 2)

    kernel = by_latent(shared["posterior_w"])
    loaded = {
        ("encoder", "kernel"): shared["encoder_w"],
        ("encoder", "bias"): shared["encoder_b"],
        ("posterior", "kernel"): kernel.reshape(len(kernel), -1).T,
        ("posterior", "raw"): by_latent(shared["posterior_b"]),
        ("decoder", "body", "kernel"): shared["decoder_w"],
        ("decoder", "body", "bias"): shared["decoder_b"],
        ("decoder", "kernel"): shared["logits_w"],
        ("decoder", "bias"): shared["logits_b"],
    }

    def fill(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [str(entry.key) for entry in path]
        part = (names[0], *(["body"] if names[0] == "decoder" and "body" in names else []), names[-1])
        array = loaded.pop(part)
        assert array.shape == leaf.shape, (path, array.shape, leaf.shape)
        return jnp.asarray(array)

    params = jax.tree_util.tree_map_with_path(fill, model.init(jax.random.key(0), arrays["batches"][0]))
    assert not loaded, f"not loaded: {list(loaded)}"
    return params
