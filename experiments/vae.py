"""A variational autoencoder of binary images: its bound and its parts, an estimate of its likelihood, and what it sees.

python -m experiments.vae                                                     scikit-learn's digits, made binary
python -m experiments.vae --data binarized_mnist --channels 16 32 --num-steps 10000        files from GENMOD_DATA
python -m experiments.vae --data binarized_mnist --channels 32 64 --num-steps 60000 --posterior iaf     for a GPU

Reported of the test images: -ELBO = rate + distortion, the NLL by importance weights, latents in use, the mutual information of
image and latent. Figures: reconstructions, samples, a map of the first two used latents, traversals of them.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments import vae_data
from experiments.common import adam_with_cosine
from genmod import bijectors, flows
from genmod.core.keys import stream
from genmod.inference import ImportanceSampling, Observed, posterior_health

Posterior = Literal["gaussian", "full", "planar", "radial", "sylvester", "householder", "triangular", "iaf", "real_nvp", "spline"]


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "binarized_mnist"] = "digits"
    posterior: Posterior = "gaussian"
    num_layers: int = 4
    """Of the flow behind the Gaussian."""
    latent_dim: int = 50
    hidden_sizes: tuple[int, ...] = (200, 200)
    channels: tuple[int, ...] = ()
    """Of a convolutional encoder, one for each halving of the image; the decoder has them in reverse. Empty: dense networks."""
    warm_up: int = 0
    """Steps over which the rate is annealed from 0 to 1."""
    num_steps: int = 20_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Peak of a cosine schedule that ends at zero."""
    weight_decay: float = 0.0
    """Decoupled, of AdamW: what keeps dense networks from learning the training images by heart."""
    num_test: int = 1_000
    """About so many test images have their NLL estimated, evenly spaced; the bound is of all."""
    num_draws: int = 5_000
    """Importance weights of each."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = vae_data.load(config.data, config.seed)
    model = build(config, data.event_shape)
    fit = train(config, run, model, data, key)
    metrics = {"model": f"vae_{config.posterior}", "data": data.name} | measure(config, model, fit.params, data, key)
    print(gm.lab.text_table([row(config, metrics)]))
    draw(run, model, fit.params, data, key)
    return metrics


def build(config: Config, event_shape: tuple[int, ...]) -> gm.models.VAE:
    head, shape = gm.densities.BernoulliHead(), (config.latent_dim,)
    networks = {}
    if config.channels:
        networks = {
            "encoder": gm.nets.ConvEncoder(config.channels, config.hidden_sizes[-1]),
            "decoder": gm.nets.ConvDecoder(event_shape, head.num_params, config.channels[::-1]),
        }
    n = config.warm_up
    beta = gm.call(optax.linear_schedule, 1 / n, 1.0, n - 1) if n else 1.0
    return flows.variational_autoencoder(
        event_shape,
        config.latent_dim,
        head=head,
        hidden_sizes=config.hidden_sizes,
        layer=layer(config, shape),
        num_layers=config.num_layers,
        objective=gm.losses.ELBO(beta=beta),
        **networks,
    )


def layer(config: Config, shape: tuple[int, ...]) -> bijectors.Bijector | None:
    """One layer of the flow behind the Gaussian, by the name of the posterior."""
    features, units = config.hidden_sizes[-1:], min(16, shape[0])
    made = {
        "gaussian": lambda: None,
        "full": lambda: bijectors.TriangularAffine(),
        "planar": lambda: bijectors.Planar(),
        "radial": lambda: bijectors.Radial(),
        "sylvester": lambda: bijectors.Sylvester(units),
        "householder": lambda: bijectors.Sylvester(units, "householder"),
        "triangular": lambda: bijectors.Sylvester(basis="triangular"),
        "iaf": lambda: flows.iaf_layer(shape, features, (320,)),
        "real_nvp": lambda: flows.coupling_layer(shape, features, (128,)),
        "spline": lambda: flows.coupling_layer(shape, features, (128,), transformer=bijectors.RationalQuadraticSpline(8, 4.0)),
    }
    return made[config.posterior]()


def train(config: Config, run: gm.lab.Run, model: gm.models.VAE, data: gm.data.Dataset, key: jax.Array) -> gm.Fit:
    return gm.fit(
        model,
        data.train,
        key=stream(key, "fit"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, weight_decay=config.weight_decay),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=data.validation,
        validate_every=min(1_000, config.num_steps),
        checkpoint=run.folder / f"checkpoint_{config.posterior}",
        log=run.log.with_name(f"log_{config.posterior}.jsonl"),
    )


def measure(config: Config, model: gm.models.VAE, params: Any, data: gm.data.Dataset, key: jax.Array) -> dict[str, Any]:
    """The bound and its parts on all test images, the estimated NLL on some."""
    found: dict[str, Any] = gm.evaluate(model, params, data.test, key=stream(key, "bound"))
    some = data.test[:: max(1, len(data.test) // config.num_test)]  # the order of a set may mean something
    same = gm.evaluate(model, params, some, key=stream(key, "bound of some"))
    estimate = gm.evidence(Observed(model, params, some), ImportanceSampling(config.num_draws), key=stream(key, "estimate"))
    mean, sem = gm.metrics.mean_and_sem(-np.asarray(estimate.value, np.float64))
    health = posterior_health(model, params, data.validation[:2_000], key=stream(key, "health"))
    found |= {"nll_estimate_nats": float(mean), "nll_estimate_nats_sem": float(sem), "num_test": len(some)}
    found |= {"bound_excess_nats": same["nll_upper_bound_nats"] - float(mean)}  # of the same images
    return found | {
        "rate_nats": float(health.rate),
        "active_units": int(health.active_units),
        "mutual_information_nats": float(health.mutual_information),
    }


def row(config: Config, found: dict[str, Any]) -> dict[str, Any]:
    """One line of a table."""
    return {
        "posterior": config.posterior,
        "parameters": f"{found['num_params']:,}",
        "-ELBO (nats)": gm.lab.with_error(found["nll_upper_bound_nats"], found["nll_upper_bound_nats_sem"]),
        "it exceeds the NLL by": f"{found['bound_excess_nats']:.2f}",
        f"NLL (IWAE-{config.num_draws}) of {found['num_test']}": gm.lab.with_error(
            found["nll_estimate_nats"], found["nll_estimate_nats_sem"]
        ),
        "rate": f"{found['rate_nats']:.2f}",
        "active": f"{found['active_units']} of {config.latent_dim}",
        "I(x; z)": f"{found['mutual_information_nats']:.2f}",
    }


def draw(run: gm.lab.Run, model: gm.models.VAE, params: Any, data: gm.data.Dataset, key: jax.Array) -> None:
    """Reconstructions, samples, the latents, and what a move along each does."""
    x = data.validation[:2_000]
    z = encoded(model, params, x, stream(key, "encode"))
    decode = jax.jit(jax.vmap(lambda z: model.decode_one(params, z)))
    rows = [("images", x[:10]), ("decoded", decode(z[:10]))]
    for i in range(3):
        drawn = model.prior.sample(params["prior"], stream(key, "prior", i), (10,))
        rows.append(("from the prior" if i == 0 else "", decode(drawn)))
    gm.lab.plot.images(run.figure("samples"), rows, title=f"VAE of {data.name}: means given z")
    used = most_used(model, params, x)
    gm.lab.plot.samples(
        run.figure("latents"),
        np.asarray(model.prior.sample(params["prior"], key, (2_000,)))[:, used],
        np.asarray(z)[:, used],
        title="the two latents most used",
        names=("drawn from the prior", "encoded images"),
    )
    moves = np.linspace(-2.5, 2.5, 10)
    rows = []
    for latent in used:
        moved = np.tile(np.asarray(z[:1]), (10, 1))
        moved[:, latent] = moves
        rows.append((f"latent {latent}", decode(jnp.asarray(moved))))
    gm.lab.plot.images(run.figure("traversals"), rows, title="one latent from -2.5 to 2.5, the others held")


def encoded(model: gm.models.VAE, params: Any, x: Any, key: jax.Array) -> jax.Array:
    """One draw of q(z | x) for each image."""
    draw = jax.jit(jax.vmap(lambda x, key: model.encode_one(params, x, key)))
    return draw(jnp.asarray(x), jax.random.split(key, len(x)))


def most_used(model: gm.models.VAE, params: Any, x: Any) -> np.ndarray:
    """The two latents of the largest variance of a draw's mean over the data, less the noise of a draw: by two draws each."""
    first, second = (np.asarray(encoded(model, params, x, jax.random.key(i))) for i in (1, 2))
    covariance = ((first - first.mean(0)) * (second - second.mean(0))).mean(0)
    return np.argsort(-covariance)[:2]


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 1_000, "latent_dim": 8, "num_draws": 200, "num_test": 100})
