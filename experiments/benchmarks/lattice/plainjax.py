"""JAX by hand: a loop over the couplings, `lax.conv_general_dilated` of a wrapped input, `optax.adam`, one jit."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.jax_peer import JaxPeer, adam
from experiments.benchmarks.lattice.problems import (
    COUPLING,
    LARGEST_LOG_SCALE,
    MASS_SQUARED,
    SLOPE,
    Cell,
    kept_sites,
    weights,
)
from experiments.benchmarks.peer import Arrays

DISTRIBUTION = "jax"


def network(layers: Any, x: jax.Array) -> jax.Array:
    """(n, L, L, 1) -> (n, L, L, 2)."""
    for i, (kernel, bias) in enumerate(layers):
        x = jax.nn.leaky_relu(x, SLOPE) if i else x
        wrapped = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        x = jax.lax.conv_general_dilated(wrapped, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
    return x


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """The flow as a list of its couplings' weights."""
    params = [[(jnp.asarray(w[i]), jnp.asarray(b[i])) for w, b in weights(arrays)] for i in range(cell.num_layers)]

    def push(params: Any, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_q = -0.5 * (z**2 + jnp.log(2 * jnp.pi)).sum((1, 2))
        for i, layers in enumerate(params):
            kept = kept_sites(cell, i)
            raw = network(layers, jnp.where(kept, z, 0.0)[..., None])
            log_scale = jnp.where(kept, 0.0, LARGEST_LOG_SCALE * jnp.tanh(raw[..., 1] / LARGEST_LOG_SCALE))
            z = jnp.where(kept, z, z * jnp.exp(log_scale) + raw[..., 0])
            log_q = log_q - log_scale.sum((1, 2))
        return z, log_q

    def given(params: Any, z: jax.Array) -> jax.Array:
        x, log_q = push(params, z)
        density = MASS_SQUARED * x**2 + COUPLING * x**4 + sum((x - jnp.roll(x, -1, axis)) ** 2 for axis in (1, 2))
        return log_q + density.sum((1, 2))

    def noise(key: jax.Array, num: int) -> jax.Array:
        return jax.random.normal(key, (num, cell.size, cell.size))

    functions = {
        "given": jax.jit(lambda params, key, z: given(params, z)),
        "sample": jax.jit(lambda params, key: push(params, noise(key, cell.num_samples))),
    }
    training = adam(lambda params, key, batch: given(params, noise(key, cell.batch_size)).mean())
    return JaxPeer(params, arrays["batches"], {"train": training}, functions, lambda which: params)
