"""Flax and Optax by hand: Linen layers, losses on whole batches, `optax.adam`."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.vae._jax import peer
from experiments.benchmarks.vae.problems import LARGEST_LOG_SCALE, NAMES, Cell, weights


class Network(nn.Module):
    """Encoder and decoder."""

    cell: Cell

    def setup(self) -> None:
        self.encoder, self.decoder = nn.Dense(self.cell.hidden_size), nn.Dense(self.cell.hidden_size)
        self.posterior, self.logits = nn.Dense(2 * self.cell.latent_size), nn.Dense(self.cell.num_pixels)

    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, ...]:
        """(mean, log-scale, z, logits of the pixels); noise of (draws, images, latents)."""
        mean, raw = jnp.split(self.posterior(nn.relu(self.encoder(x))), 2, -1)
        log_scale = LARGEST_LOG_SCALE * jnp.tanh(raw / LARGEST_LOG_SCALE)
        z = mean + jnp.exp(log_scale) * noise
        return mean, log_scale, z, self.logits(nn.relu(self.decoder(z)))


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The network and its loss."""
    network, shared = Network(cell), weights(arrays)
    params = {name: {"kernel": jnp.asarray(shared[f"{name}_w"]), "bias": jnp.asarray(shared[f"{name}_b"])} for name in NAMES}

    def loss(params: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        noise = jax.random.normal(key, (cell.num_draws, x.shape[0], cell.latent_size))
        mean, log_scale, z, logits = network.apply({"params": params}, x, noise)
        log_likelihood = -optax.sigmoid_binary_cross_entropy(logits, x[None]).sum(-1)
        if cell.num_draws == 1:
            rate = 0.5 * (jnp.exp(2 * log_scale) + mean**2 - 1 - 2 * log_scale).sum(-1)
            return (rate - log_likelihood[0]).mean()
        log_weights = log_likelihood + (0.5 * (noise**2 - z**2) + log_scale).sum(-1)
        return (jnp.log(cell.num_draws) - jax.nn.logsumexp(log_weights, axis=0)).mean()

    return peer(arrays, params, adam(loss), loss)
