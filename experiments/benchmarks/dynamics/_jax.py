"""What the JAX libraries of this family share: the field, the losses and the diffusion, written by hand for any solver.

A solver is `solve(fn, y, args, t0, t1) -> (y, num_steps)` of dy/dt = fn(t, y, args).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.dynamics.problems import ALPHA_MIN, SIGMA_MIN, Cell, Weights, memory_by_steps, weights
from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import Arrays


def load(layers: Weights) -> list:
    """The field's params: the weights themselves."""
    return [(jnp.asarray(w), jnp.asarray(b)) for w, b in layers]


def peer(
    arrays: Arrays, training: Mapping[str, Training], functions: Mapping[str, Callable], load: Callable[[Weights], Any] = load
) -> JaxPeer:
    """A peer of the shared weights, which `load` makes params of."""

    def start(which: str) -> Any:
        return load(weights(arrays, which))

    return JaxPeer(start("trained"), arrays["batches"], training=training, functions=functions, load=start)


def memory(arrays: Arrays, trainings: Callable[[int], Mapping[str, Training]]) -> Callable:
    """The check `memory`: what the compiled step of a training allocates beside its arguments and results.

    `trainings` are those of a number of solver steps, by kind.
    """

    def allocated(params: Any, training: Training) -> int:
        state, batch = training.init(params), jnp.asarray(arrays["batches"][0])
        return jax.jit(training.step).lower(state, jax.random.key(0), batch).compile().memory_analysis().temp_size_in_bytes

    return lambda params, key: memory_by_steps(
        lambda num: {kind: allocated(params, each) for kind, each in trainings(num).items()}
    )


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


def log_prob_fn(cell: Cell, solve: Callable) -> Callable:
    """(params, key, x) -> log p(x), and the solver's steps."""
    dynamics = with_divergence(field(cell.activation), cell.divergence)

    def log_prob(params: list, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        args = params, jax.random.rademacher(key, x.shape, x.dtype)
        (z, log_det), num_steps = solve(
            lambda t, y, args: dynamics(args[0], t, y[0], args[1]), (x, jnp.zeros(x.shape[0], x.dtype)), args, 1.0, 0.0
        )
        return jax.scipy.stats.norm.logpdf(z).sum(-1) + log_det, num_steps

    return log_prob


def nll(cell: Cell, solve: Callable) -> Callable:
    """The loss of maximum likelihood."""
    log_prob = log_prob_fn(cell, solve)
    return lambda params, key, x: -log_prob(params, key, x)[0].mean()


def push_fn(cell: Cell, solve: Callable) -> Callable:
    """(params, key, z) -> where the flow sends z, and the solver's steps."""
    velocity = field(cell.activation)
    return lambda params, key, z: solve(lambda t, x, params: velocity(params, t, x), z, params, 0.0, 1.0)


def log_probs(log_prob: Callable, kind: str = "") -> dict[str, Callable]:
    """The operations of `log_prob_fn`."""
    return {
        f"log_prob{kind}": jax.jit(lambda params, key, x: log_prob(params, key, x)[0]),
        f"log_prob{kind}_steps": lambda params, key, x: log_prob(params, key, x)[1],
    }


def samples(cell: Cell, push: Callable, kind: str = "") -> dict[str, Callable]:
    """The operations of `push_fn`."""
    shape = (cell.num_points, cell.dim)
    return {
        f"sample{kind}": jax.jit(lambda params, key: push(params, key, jax.random.normal(key, shape))[0]),
        f"push{kind}": jax.jit(lambda params, key, z: push(params, key, z)[0]),
        f"sample{kind}_steps": lambda params, key, z: push(params, key, z)[1],
    }


def flow_matching_loss(velocity: Callable) -> Callable:
    """I-CFM with x_t = (1 - t) z + t x; batches couple independently."""

    def loss(params: list, key: jax.Array, x: jax.Array) -> jax.Array:
        key_z, key_t = jax.random.split(key)
        z, t = jax.random.normal(key_z, x.shape), jax.random.uniform(key_t, (x.shape[0], 1))
        return jnp.mean((velocity(params, t, (1.0 - t) * z + t * x) - (x - z)) ** 2)

    return loss


def levels(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) of the diffusion, elementwise."""
    alpha = jnp.exp(jnp.log(ALPHA_MIN) * t**2)
    return alpha, jnp.sqrt(1.0 - alpha**2 + SIGMA_MIN**2)


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
