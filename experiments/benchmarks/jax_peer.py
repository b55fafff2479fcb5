"""A peer from functions of explicit params: of JAX libraries."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.peer import LEARNING_RATE, Unsupported


class Training(NamedTuple):
    """One way to train: params -> state, (state, key, batch) -> (state, loss) not yet jitted, state -> params."""

    init: Callable[[Any], Any]
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]
    params: Callable[[Any], Any]


class JaxPeer:
    """See `peer.Peer`.

    Args:
        params: pytree of trainable arrays.
        batches: (num, batch_size, ...).
        training: operation -> its training.
        functions: operation -> (params, key, *arrays) -> result, jitted.
        load: name of shared weights -> params, where the cell has them.
        num_params: what is trained, where that is not all of `params`.
    """

    compiles = True

    def __init__(
        self,
        params: Any,
        batches: np.ndarray,
        training: Mapping[str, Training],
        functions: Mapping[str, Callable],
        load: Callable[[str], Any] | None = None,
        num_params: int | None = None,
    ) -> None:
        self._training, self._functions, self._load = training, functions, load
        self._steps = {op: jax.jit(each.step) for op, each in training.items()}
        self._batches = jax.block_until_ready([jnp.asarray(batch) for batch in batches])
        self._keys = list(jax.random.split(jax.random.key(1), len(batches)))
        self._begin(params)
        self.num_params = sum(leaf.size for leaf in jax.tree.leaves(params)) if num_params is None else num_params

    def restart(self, weights: str) -> None:
        if self._load is not None:
            self._begin(self._load(weights))

    def bind(self, name: str, *arrays: np.ndarray) -> Callable[[], Any]:
        if name in self._training:
            if name not in self._states:
                self._states[name] = jax.block_until_ready(self._training[name].init(self._params))
            return functools.partial(self._step, name)
        if name not in self._functions:
            raise Unsupported("not offered")
        function, arguments = self._functions[name], jax.block_until_ready([jnp.asarray(x) for x in arrays])
        return lambda: jax.block_until_ready(function(self._params, self._keys[0], *arguments))

    def _begin(self, params: Any) -> None:
        self._params, self._states, self._num = jax.block_until_ready(params), {}, 0

    def _step(self, name: str) -> jax.Array:
        i = self._num % len(self._batches)
        state, loss = jax.block_until_ready(self._steps[name](self._states[name], self._keys[i], self._batches[i]))
        self._states[name], self._params, self._num = state, self._training[name].params(state), self._num + 1
        return loss


def adam(loss: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> Training:
    """One Adam step on `loss(params, key, batch)`."""
    optimizer = optax.adam(LEARNING_RATE)

    def step(state: tuple, key: jax.Array, batch: jax.Array) -> tuple[tuple, jax.Array]:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, key, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return Training(lambda params: (params, optimizer.init(params)), step, lambda state: state[0])
