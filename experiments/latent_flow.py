"""A VAE whose prior is replaced: a flow-matching model of its latents, trained after it, in the place of the standard normal.

python -m experiments.latent_flow

The aggregate posterior of a VAE is not its prior; what lies between them is paid in the bound. Here draws of q(z | x) of the
training images are learned by flow matching, whose log-density is exact, and -ELBO of the test images is taken before and after,
with the same encoder and decoder. Figure: samples by either prior.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import genmod as gm
from experiments import vae, vae_data
from experiments.common import adam_with_cosine
from genmod.core.keys import stream


@dataclasses.dataclass(frozen=True)
class Config(vae.Config):
    latent_dim: int = 16
    num_steps: int = 4_000
    num_prior_steps: int = 10_000
    """Of flow matching on the latents."""
    prior_hidden_sizes: tuple[int, ...] = (128, 128, 128)
    num_bound_draws: int = 16
    """Of q for each image."""
    num_test: int = 500
    """Test images whose bound is taken; the prior solves an ODE for each."""


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = vae_data.load(config.data, config.seed)
    model = vae.build(config, data.event_shape)
    fit = vae.train(config, run, model, data, key)
    latents = {name: vae.encoded(model, fit.params, getattr(data, name), stream(key, name)) for name in ("train", "validation")}
    prior = gm.flows.flow_matching((config.latent_dim,), hidden_sizes=config.prior_hidden_sizes)
    prior_fit = gm.fit(
        prior,
        latents["train"],
        key=stream(key, "prior"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_prior_steps),
        num_steps=config.num_prior_steps,
        validation=latents["validation"],
        validate_every=min(1_000, config.num_prior_steps),
        checkpoint=run.folder / "checkpoint_prior",
        log=run.log.with_name("log_prior.jsonl"),
    )
    replaced = dataclasses.replace(model, prior=prior)
    params = fit.params | {"prior": prior_fit.params}
    x = data.test[:: max(1, len(data.test) // config.num_test)]
    metrics: dict[str, Any] = {"model": "latent_flow", "data": data.name, "num_test": len(x)}
    priors = {"standard normal": (model, fit.params), "flow matching": (replaced, params)}
    rows, pictures, bounds = [], [], {}
    for name, (law, values) in priors.items():
        bounds[name] = bound(config, law, values, x, stream(key, "bound"))
        mean, sem = map(float, gm.metrics.mean_and_sem(bounds[name]))
        entry = f"{name.replace(' ', '_')}_nll_upper_bound_nats"
        metrics |= {entry: mean, f"{entry}_sem": sem}
        rows.append({"prior": name, "nll_upper_bound": gm.lab.with_error(mean, sem)})
        z = law.prior.sample(values["prior"], stream(key, "draw"), (20,))
        means = jax.jit(jax.vmap(lambda z, law=law, values=values: law.decode_one(values, z)))(z)
        pictures += [(name, means[:10]), ("", means[10:])]
    gain, sem = map(float, gm.metrics.mean_and_sem(bounds["standard normal"] - bounds["flow matching"]))
    metrics |= {"gain_nats": gain, "gain_nats_sem": sem}
    print(gm.lab.text_table(rows))
    print(f"-ELBO falls by {gm.lab.with_error(gain, sem)} nats")
    gm.lab.plot.images(run.figure("samples"), pictures, title=f"VAE of {data.name}: means given draws of the prior")
    return metrics


def bound(config: Config, model: gm.models.VAE, params: Any, x: Any, key: jax.Array) -> jax.Array:
    """-ELBO of each image by draws that are the same for every prior."""

    def one(x, key):
        return -model.log_weights_one(params, x, None, key, config.num_bound_draws).mean()

    return jax.jit(lambda x, keys: jax.lax.map(lambda each: one(*each), (x, keys), batch_size=32))(
        jnp.asarray(x), jax.random.split(key, len(x))
    )


if __name__ == "__main__":
    small = {"num_steps": 1_000, "num_prior_steps": 1_000, "num_test": 100, "prior_hidden_sizes": (64, 64)}
    gm.lab.main(experiment, Config, quick=small)
