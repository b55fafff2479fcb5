"""NumPyro: `SVI` with `Trace_ELBO` or, of several draws, `RenyiELBO` at alpha = 0."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from numpyro import distributions as dist
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

from experiments.benchmarks.jax_peer import JaxPeer, Training
from experiments.benchmarks.peer import LEARNING_RATE, Arrays
from experiments.benchmarks.vae._jax import peer
from experiments.benchmarks.vae.problems import LARGEST_LOG_SCALE, Cell, weights


def build(cell: Cell, arrays: Arrays) -> JaxPeer:
    """Model and guide; the weights are `param` sites."""
    start = {name: jnp.asarray(value) for name, value in weights(arrays).items()}

    def layer(name: str, x: jax.Array) -> jax.Array:
        w, b = (numpyro.param(f"{name}_{kind}", start[f"{name}_{kind}"]) for kind in "wb")
        return x @ w + b

    def model(x: jax.Array) -> None:
        with numpyro.plate("images", x.shape[0]):
            z = numpyro.sample("z", dist.Normal().expand([cell.latent_size]).to_event(1))
            logits = layer("logits", jax.nn.relu(layer("decoder", z)))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        mean, raw = jnp.split(layer("posterior", jax.nn.relu(layer("encoder", x))), 2, -1)
        scale = jnp.exp(LARGEST_LOG_SCALE * jnp.tanh(raw / LARGEST_LOG_SCALE))
        with numpyro.plate("images", x.shape[0]):
            numpyro.sample("z", dist.Normal(mean, scale).to_event(1))

    objective = Trace_ELBO() if cell.num_draws == 1 else RenyiELBO(alpha=0, num_particles=cell.num_draws)
    svi = SVI(model, guide, optax.adam(LEARNING_RATE), objective)
    example = jnp.asarray(arrays["batches"][0], jnp.float32)

    def step(state: Any, key: jax.Array, x: jax.Array) -> tuple[Any, jax.Array]:
        state, loss = svi.update(state, x.astype(jnp.float32))
        return state, loss / x.shape[0]

    def bound(params: Any, key: jax.Array, x: jax.Array) -> jax.Array:
        return objective.loss(key, params, model, guide, x.astype(jnp.float32)) / x.shape[0]

    training = Training(lambda params: svi.init(jax.random.key(0), example, init_params=params), step, svi.get_params)
    return peer(arrays, start, training, bound)
