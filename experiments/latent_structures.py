"""Structures of latents on the same binary images: one, two and three levels of Gaussians, Poisson counts, the codes of a VQ-VAE.

python -m experiments.latent_structures

All have encoders and decoders of the same widths. Reported of each: -ELBO of the validation and of the test images, rate and
distortion, the rate of each level, nearest to the image first, how many latents are in use, and the use of the codebook. The
prior of the counts has learned rates, that of the codes a learned frequency of each code at each position, independent of the
others. Dead codes are restarted between rounds of training. Figures: reconstructions and samples of all, as means.
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
from genmod import densities, flows
from genmod.core.keys import stream
from genmod.models.base import LatentModel


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "binarized_mnist"] = "digits"
    latent_dim: int = 24
    """Of all levels together; half of them in the lowest, of what is left half in the next, ..."""
    hidden_sizes: tuple[int, ...] = (200, 200)
    warm_up: int = 2_000
    """Steps over which the rates of the levels are annealed from 0 to 1, without which upper levels stay unused."""
    max_rate: float = 20.0
    """Of the counts."""
    temperature: float = 0.1
    """At which training relaxes the counts of its backward pass."""
    num_codes: int = 32
    num_positions: int = 2
    code_dim: int = 8
    num_rounds: int = 4
    """Of the VQ-VAE's training; before each but the first, dead codes are restarted."""
    num_steps: int = 6_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Peak of a cosine schedule that ends at zero."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = vae_data.load(config.data, config.seed)
    metrics: dict[str, Any] = {"model": "latent_structures", "data": data.name}
    rows, samples = [], []
    reconstructions: list[tuple[str, Any]] = [("images", data.validation[:12])]
    for name, model in models(config, data.event_shape).items():
        params = train(config, run, name, model, data, stream(key, name))
        found = measure(model, params, data, stream(key, "measure"))
        metrics |= {f"{name}_{entry}": value for entry, value in found.items()}
        rows.append(row(name, found))
        shown = pictures(model, params, data.validation[:12], stream(key, "pictures"))
        reconstructions.append((name.replace("_", " "), shown[0]))
        samples.append((name.replace("_", " "), shown[1]))
    print(gm.lab.text_table(rows))
    gm.lab.plot.images(run.figure("reconstructions"), reconstructions, title=f"{data.name}: means given latents of the images")
    gm.lab.plot.images(run.figure("samples"), samples, title=f"{data.name}: means given latents of the prior")
    return metrics


def models(config: Config, event_shape: tuple[int, ...]) -> dict[str, Any]:
    """The structures by name."""
    options: dict[str, Any] = {"head": densities.BernoulliHead(), "hidden_sizes": config.hidden_sizes}
    beta = gm.call(optax.linear_schedule, 0.0, 1.0, config.warm_up) if config.warm_up else 1.0
    hierarchies = {}
    for num, name in enumerate(("one_level", "two_level", "three_level"), 1):
        shape = dims(config.latent_dim, num)
        hierarchies[name] = flows.hierarchical_autoencoder(event_shape, shape, objective=gm.losses.ELBO(beta=beta), **options)
    counts = densities.StraightThrough(densities.RelaxedPoisson((config.latent_dim,), config.temperature, config.max_rate))
    poisson = dataclasses.replace(
        flows.variational_autoencoder(event_shape, config.latent_dim, objective=gm.losses.ELBO(beta=beta), **options),
        posterior=densities.Amortized(counts, config.hidden_sizes[-1:]),
        prior=counts,
    )
    prior = densities.Factorized(densities.CategoricalHead(config.num_codes), (config.num_positions,))
    codes = {"positions": (config.num_positions,), "code_dim": config.code_dim, "prior": prior}
    vector_quantized = flows.vector_quantized_autoencoder(event_shape, config.num_codes, **codes, **options)
    return hierarchies | {"poisson": poisson, "vq": vector_quantized}


def dims(total: int, num_levels: int) -> tuple[int, ...]:
    """Latents by level, halved from level to level: 24 are (24,), (12, 12) or (12, 6, 6)."""
    found = []
    for _ in range(num_levels - 1):
        found.append((total - sum(found) + 1) // 2)
    return (*found, total - sum(found))


def train(config: Config, run: gm.lab.Run, name: str, model: Any, data: gm.data.Dataset, key: jax.Array) -> Any:
    """Parameters after all steps; of a codebook, with dead codes restarted between the rounds."""
    is_codebook = isinstance(model, gm.models.VQVAE)
    num_rounds = config.num_rounds if is_codebook else 1
    num_steps, params = max(1, config.num_steps // num_rounds), None
    for i in range(num_rounds):
        if is_codebook and params is not None:
            params = model.restart_dead_codes(params, stream(key, "restart", i), data.train[:5_000])
        params = gm.fit(
            model,
            data.train,
            key=stream(key, "fit", i),
            params=params,
            optimizer=adam_with_cosine(config.learning_rate, num_steps),
            num_steps=num_steps,
            batch_size=config.batch_size,
            validation=data.validation,
            validate_every=min(500, num_steps),
            checkpoint=run.folder / f"checkpoint_{name}_{i}",
            log=run.log.with_name(f"log_{name}_{i}.jsonl"),
        ).params
    return params


def measure(model: Any, params: Any, data: gm.data.Dataset, key: jax.Array) -> dict[str, Any]:
    """-ELBO of the validation and the test images; of the test images also its parts, and what is special to the model."""
    found: dict[str, Any] = {}
    for part in ("validation", "test"):
        bound = gm.evaluate(model, params, getattr(data, part), key=stream(key, part))
        found |= {f"{part}_nll_upper_bound_nats{end}": bound[f"nll_upper_bound_nats{end}"] for end in ("", "_sem")}
        found["num_params"] = bound["num_params"]
    _, parts = jax.jit(model.loss)(params, stream(key, "parts"), jnp.asarray(data.test))
    names = [name for name in parts if name.startswith("rate_nats") or name in ("distortion_nats", "code_perplexity")]
    found |= {name: float(parts[name]) for name in names if not name.endswith("_sem")}
    if isinstance(model, LatentModel):
        health = gm.inference.posterior_health(model, params, data.validation[:2_000], key=stream(key, "health"))
        found |= {"active_units": int(health.active_units), "num_latents": int(np.size(health.mean_variance))}
    if isinstance(model, gm.models.VQVAE):
        report = model.codebook_report(params, data.train[:5_000])
        found |= {"train_code_perplexity": report.perplexity, "num_dead_codes": report.num_dead}
    return found


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    levels = [found[f"rate_nats_level_{i}"] for i in (1, 2, 3) if f"rate_nats_level_{i}" in found]
    used = f"{found['train_code_perplexity']:.1f}, {found['num_dead_codes']} dead" if "num_dead_codes" in found else ""
    bounds = {
        f"-ELBO, {part}": gm.lab.with_error(found[f"{part}_nll_upper_bound_nats"], found[f"{part}_nll_upper_bound_nats_sem"])
        for part in ("validation", "test")
    }
    return {
        "latents": name.replace("_", " "),
        "parameters": f"{found['num_params']:,}",
        **bounds,
        "distortion": f"{found['distortion_nats']:.2f}",
        "rate": f"{found['rate_nats']:.2f}",
        "by level": ", ".join(f"{level:.2f}" for level in levels) if len(levels) > 1 else "",
        "active": f"{found['active_units']} of {found['num_latents']}" if "active_units" in found else "",
        "perplexity of codes": used,
    }


def pictures(model: Any, params: Any, x: Any, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Means given latents of the images, and given as many of the prior."""
    keys = jax.random.split(key, len(x))
    if isinstance(model, gm.models.VQVAE):
        draws = model.prior.sample(params["prior"], stream(key, "prior"), len(x))
        return np.asarray(model.decode(params, model.encode(params, x))), np.asarray(model.decode(params, draws))
    encode = jax.jit(jax.vmap(lambda x, key: model.decode_one(params, model.encode_one(params, x, key))))
    draw = jax.jit(jax.vmap(lambda key: model.decode_one(params, model.sample_joint_one(params, key)[0])))
    return np.asarray(encode(jnp.asarray(x), keys)), np.asarray(draw(keys))


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 600, "warm_up": 200, "hidden_sizes": (64, 64), "num_rounds": 3})
