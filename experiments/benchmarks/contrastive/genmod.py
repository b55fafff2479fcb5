"""genmod itself: `gm.training.ContrastiveStep`, without centring, as the others."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import genmod as gm
from experiments.benchmarks.contrastive.problems import RATE, Cell
from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import Arrays
from genmod.densities import BernoulliUnits


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The machine and its step."""
    visible, hidden = BernoulliUnits((cell.num_visible,)), BernoulliUnits((cell.num_hidden,))
    model = gm.models.RestrictedBoltzmannMachine(visible, hidden)
    contrastive = gm.training.ContrastiveStep(model, optax.sgd(RATE), centring=None)

    def load(_: str) -> Any:
        zeros = {"visible": {"bias": jnp.zeros(cell.num_visible)}, "hidden": {"bias": jnp.zeros(cell.num_hidden)}}
        return zeros | {"weights": jnp.asarray(arrays["weights"])}

    def step(state: Any, key: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        state, metrics = contrastive(state, key, gm.Batch(batch))
        return state, metrics["loss"]

    def init(params: Any) -> Any:
        return contrastive.init(params, jax.random.key(0), gm.Batch(jnp.asarray(arrays["x"])))

    @jax.jit
    def reconstruct(params: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        means = jax.nn.sigmoid(x @ params["weights"] + params["hidden"]["bias"][None])
        return jax.nn.sigmoid(means @ params["weights"].T + params["visible"]["bias"][None])

    training = Training(init, step, contrastive.evaluation_params)
    return JaxPeer(load("initial"), arrays["batches"], {"train": training}, {"reconstruct": reconstruct}, load)
