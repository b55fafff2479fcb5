"""The operations of a JAX library, from its functions of (params, ...), and the field written by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.peers.dynamics import base

Step = Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]


class JaxDynamics:
    """Explicit params; see `base.Dynamics`.

    Args:
        load: weights -> params.
        steps: op -> (init, step): params -> state, and (state, key, batch) -> (state, loss), not yet jitted.
        log_probs: op -> (params, x, key) -> (N,), jitted.
        samples: op -> (params, key, num) -> (num, D), jitted, `num` static.
        pushes: op -> (params, z) -> (N, D), jitted.
        counts: op -> (params, x) -> solver steps, where known.
    """

    def __init__(
        self,
        load: Callable[[base.Weights], Any],
        *,
        steps: dict[str, tuple[Callable, Step]],
        log_probs: dict[str, Callable] | None = None,
        samples: dict[str, Callable] | None = None,
        pushes: dict[str, Callable] | None = None,
        counts: dict[str, Callable] | None = None,
    ) -> None:
        self._load = load
        self._inits = {op: init for op, (init, _) in steps.items()}
        self._steps = {op: jax.jit(step) for op, (_, step) in steps.items()}
        self._log_probs, self._samples = log_probs or {}, samples or {}
        self._pushes, self._counts = pushes or {}, counts or {}
        self._key = jax.random.key(1)
        self.operations = (*self._steps, *self._log_probs, *self._samples)

    def array(self, x: np.ndarray) -> jax.Array:
        return jax.block_until_ready(jnp.asarray(x))

    def restart(self, op: str, weights: base.Weights) -> None:
        self._params, self._num = jax.block_until_ready(self._load(weights)), 0
        self._state = jax.block_until_ready(self._inits[op](self._params)) if op in self._inits else None

    def train_step(self, op: str, batch: jax.Array) -> jax.Array:
        self._num += 1
        key = jax.random.fold_in(self._key, self._num)
        self._state, loss = jax.block_until_ready(self._steps[op](self._state, key, batch))
        return loss

    def log_prob(self, op: str, x: jax.Array) -> jax.Array:
        return jax.block_until_ready(self._log_probs[op](self._params, x, self._key))

    def sample(self, op: str, num: int) -> jax.Array:
        return jax.block_until_ready(self._samples[op](self._params, self._key, num))

    def push(self, op: str, z: jax.Array) -> jax.Array:
        return jax.block_until_ready(self._pushes[op](self._params, z))

    def num_steps(self, op: str, x: jax.Array) -> int | None:
        return int(self._counts[op](self._params, x)) if op in self._counts else None


def adam(loss: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> tuple[Callable, Step]:
    """One Adam step on `loss(params, key, batch)` as (init, step)."""
    optimizer = optax.adam(base.LEARNING_RATE)

    def step(state: tuple, key: jax.Array, batch: jax.Array) -> tuple[tuple, jax.Array]:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, key, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return lambda params: (params, optimizer.init(params)), step


def temp_bytes(pair: tuple[Callable, Step], params: Any, batch: np.ndarray) -> int:
    """What the compiled training step allocates beside its arguments and results."""
    init, step = pair
    compiled = jax.jit(step).lower(init(params), jax.random.key(0), jnp.asarray(batch)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def load(weights: base.Weights) -> list:
    """The field's params: the weights themselves."""
    return [(jnp.asarray(w), jnp.asarray(b)) for w, b in weights]


def field(activation: str) -> Callable[[list, jax.Array, jax.Array], jax.Array]:
    """v(params, t, x) on a batch, t scalar or (N, 1)."""
    act = {"tanh": jnp.tanh, "silu": jax.nn.silu}[activation]

    def velocity(params: list, t: jax.Array, x: jax.Array) -> jax.Array:
        h = jnp.concatenate([x, jnp.broadcast_to(t, (*x.shape[:-1], 1))], axis=-1)
        for w, b in params[:-1]:
            h = act(h @ w + b)
        w, b = params[-1]
        return h @ w + b

    return velocity


def with_divergence(velocity: Callable, divergence: str) -> Callable:
    """(params, t, x, probe) -> v and its divergence, (N, D) and (N,)."""

    def exact(params: list, t: jax.Array, x: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
        # One linearisation: a jvp per dimension costs a training step 15 % more, vmap over the dimensions twice as much.
        v, product = jax.linearize(lambda y: velocity(params, t, y), x)
        return v, sum(product(jnp.zeros_like(x).at[:, i].set(1.0))[:, i] for i in range(x.shape[1]))

    def hutchinson(params: list, t: jax.Array, x: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
        v, tangent = jax.jvp(lambda y: velocity(params, t, y), (x,), (probe,))
        return v, (tangent * probe).sum(-1)

    return exact if divergence == "exact" else hutchinson


def normal_log_prob(z: jax.Array) -> jax.Array:
    """Standard normal, (N, D) -> (N,)."""
    return jax.scipy.stats.norm.logpdf(z).sum(-1)


def levels(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of the diffusion, elementwise."""
    alpha = jnp.exp(jnp.log(base.ALPHA_MIN) * t**2)
    return alpha, jnp.sqrt(1.0 - alpha**2 + base.SIGMA_MIN**2)


def denoiser(network: Callable) -> Callable:
    """(params, t, x) -> E[x_0 | x_t = x] on a batch, t scalar or (N, 1); `network(params, c, x)` as `field` makes it."""

    def denoise(params: list, t: jax.Array, x: jax.Array) -> jax.Array:
        alpha, sigma = levels(t)
        scale = jnp.sqrt(alpha**2 + sigma**2)
        return alpha / scale**2 * x + sigma / scale * network(params, jnp.log(sigma / alpha), x / scale)

    return denoise


def denoising_loss(denoise: Callable) -> Callable:
    """Regression of the data at random noise levels, weighted by (alpha^2 + sigma^2) / sigma^2."""

    def loss(params: list, key: jax.Array, x: jax.Array) -> jax.Array:
        key_eps, key_t = jax.random.split(key)
        eps, t = jax.random.normal(key_eps, x.shape), jax.random.uniform(key_t, (x.shape[0], 1))
        alpha, sigma = levels(t)
        return jnp.mean((1.0 + (alpha / sigma) ** 2) * (denoise(params, t, alpha * x + sigma * eps) - x) ** 2)

    return loss


def flow_matching_loss(velocity: Callable) -> Callable:
    """I-CFM with x_t = (1 - t) z + t x; batches couple independently."""

    def loss(params: list, key: jax.Array, x: jax.Array) -> jax.Array:
        key_z, key_t = jax.random.split(key)
        z, t = jax.random.normal(key_z, x.shape), jax.random.uniform(key_t, (x.shape[0], 1))
        return jnp.mean((velocity(params, t, (1.0 - t) * z + t * x) - (x - z)) ** 2)

    return loss
