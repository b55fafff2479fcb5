"""The operations of a JAX library, from its functions of (params, ...)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.peers import base


class JaxFlow:
    """A flow with explicit params; see `base.Flow`.

    Args:
        params: pytree of trainable arrays.
        loss: (params, key, batch) -> scalar, not yet jitted.
        log_prob: (params, x) -> (N,), jitted.
        sample: (params, key, num) -> (num, D), jitted, `num` static.
        round_trip: (params, x) -> x sent to the base and back, jitted.
    """

    compiles = True

    def __init__(self, params: Any, *, loss: Callable, log_prob: Callable, sample: Callable, round_trip: Callable) -> None:
        optimizer = optax.adam(base.LEARNING_RATE)

        @jax.jit
        def step(params: Any, opt_state: Any, key: jax.Array, batch: jax.Array) -> tuple:
            value, grads = jax.value_and_grad(loss)(params, key, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, value

        self._step, self._log_prob, self._sample, self._round_trip = step, log_prob, sample, round_trip
        self._key = jax.random.key(1)
        self._params, self._opt_state = params, optimizer.init(params)
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(params))

    def array(self, x: np.ndarray) -> jax.Array:
        """The points on the device."""
        return jax.block_until_ready(jnp.asarray(x))

    def train_step(self, batch: jax.Array) -> None:
        """One Adam step."""
        self._params, self._opt_state, loss = self._step(self._params, self._opt_state, self._key, batch)
        jax.block_until_ready((self._params, loss))

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density in nats."""
        return jax.block_until_ready(self._log_prob(self._params, x))

    def sample(self, num: int) -> jax.Array:
        """Samples."""
        return jax.block_until_ready(self._sample(self._params, self._key, num))

    def round_trip(self, x: jax.Array) -> jax.Array:
        """To the base and back."""
        return jax.block_until_ready(self._round_trip(self._params, x))
