"""What the JAX libraries of this family share: a peer of the shared weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import Arrays


def peer(arrays: Arrays, params: Any, training: Training, bound: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> JaxPeer:
    """A peer that begins at `params`.

    Args:
        arrays: of the cell.
        params: the shared weights as the library has them.
        training: the library's training step.
        bound: (params, key, images) -> minus the bound, nats per image; compiled here.
    """

    def memory(params: Any, key: jax.Array) -> int:
        state, batch = training.init(params), jnp.asarray(arrays["batches"][0])
        return jax.jit(training.step).lower(state, key, batch).compile().memory_analysis().temp_size_in_bytes

    functions = {"bound": jax.jit(bound), "memory": memory}
    return JaxPeer(params, arrays["batches"], {"train": training}, functions, load=lambda which: params)
