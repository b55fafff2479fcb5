"""Importance-weighted autoencoders: a VAE of binary digits trained by bounds of 1, 5 and 50 draws, all measured alike.

python -m experiments.iwae                              scikit-learn's digits, made binary
python -m experiments.iwae --data binarized_mnist       files from GENMOD_DATA

The test NLL is that of 5,000 draws for each image, the same draws for all models; beside it the bound with one draw (-ELBO),
its excess, the share of images whose k-hat is above 0.7, and the latents in use. A bound of more draws lets the posterior
spread: the NLL falls, and more latents are used (Burda et al. 2015, arXiv:1509.00519).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments import vae_data
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.inference import ImportanceSampling, MeanBound, Observed, posterior_health


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "binarized_mnist"] = "digits"
    draws: tuple[int, ...] = (1, 5, 50)
    """k of each bound that a model is trained by."""
    latent_size: int = 16
    hidden_sizes: tuple[int, ...] = (128, 128)
    num_steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    num_estimate: int = 5_000
    """Draws for each test image."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    train, validation, test = load(config.data, config.seed)
    metrics: dict[str, Any] = {"num_test": len(test)}
    rows, values = [], {}
    for k in config.draws:
        model = build(train.shape[1], config.latent_size, config.hidden_sizes, gm.losses.IWAE(k))
        fit = gm.fit(
            model,
            train,
            key=stream(key, "fit"),  # the same initial parameters and minibatches for every k
            optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            validation=validation,
            checkpoint=run.folder / f"checkpoint_{k}",
            log=run.log.with_name(f"log_{k}.jsonl"),
        )
        found, values[k] = measure(config, model, fit.params, test, key)
        paired, sem = map(float, gm.metrics.mean_and_sem(values[k] - values[config.draws[0]]))
        found |= {"nll_less_first_nats": paired, "nll_less_first_nats_sem": sem} if k != config.draws[0] else {}
        metrics |= {"num_params": gm.num_params(fit.params)} | {f"k{k}_{name}": value for name, value in found.items()}
        rows.append(row(config, k, found))
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    return metrics


def load(name: str, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(train, validation, test), (n, number of pixels)."""
    data = vae_data.load(name, seed)
    train, validation, test = (jnp.asarray(part).reshape(len(part), -1) for part in (data.train, data.validation, data.test))
    return train, validation, test


def build(num_pixels: int, latent_size: int, hidden_sizes: tuple[int, ...], objective: gm.losses.Objective) -> gm.models.VAE:
    """A VAE of binary pixels with a diagonal Gaussian posterior."""
    law = gm.densities.Factorized(gm.densities.NormalHead(), (latent_size,))
    return gm.models.VAE(
        (num_pixels,),
        gm.nets.MLP(hidden_sizes),
        gm.densities.Amortized(law, (hidden_sizes[-1],)),
        gm.nets.ZeroHead(gm.nets.MLP(tuple(reversed(hidden_sizes))), num_pixels),
        gm.densities.BernoulliHead(),
        objective=objective,
    )


def measure(config: Config, model, params, test, key) -> tuple[dict[str, Any], np.ndarray]:
    """(metrics, the NLL of every test image), by draws that are the same for all models."""
    rows = Observed(model, params, test)
    estimate = gm.evidence(rows, ImportanceSampling(config.num_estimate), key=stream(key, "estimate"))
    bound = gm.evidence(rows, MeanBound(gm.losses.ELBO(), 200), key=stream(key, "bound"))
    health = posterior_health(model, params, test, key=stream(key, "health"))
    nll, elbo = -np.asarray(estimate.value, np.float64), -np.asarray(bound.value, np.float64)
    found: dict[str, Any] = {}
    for name, values in (("nll_estimate_nats", nll), ("nll_upper_bound_nats", elbo), ("bound_gap_nats", elbo - nll)):
        mean, sem = gm.metrics.mean_and_sem(values)
        found |= {name: float(mean), f"{name}_sem": float(sem)}
    return found | {
        "share_k_hat_above_0.7": float((np.asarray(estimate.extras["k_hat"]) > 0.7).mean()),
        "active_units": int(health.active_units),
        "rate_nats": float(health.rate),
        "mutual_information_nats": float(health.mutual_information),
    }, nll


def row(config: Config, k: int, found: dict[str, Any]) -> dict[str, Any]:
    def cell(name):
        return gm.lab.with_error(found[name], found[f"{name}_sem"]) if name in found else ""

    return {
        "k": k,
        f"NLL (IWAE-{config.num_estimate})": cell("nll_estimate_nats"),
        f"less that of k = {config.draws[0]}": cell("nll_less_first_nats"),
        "-ELBO": cell("nll_upper_bound_nats"),
        "gap": cell("bound_gap_nats"),
        "k-hat > 0.7": f"{found['share_k_hat_above_0.7']:.2f}",
        "active": f"{found['active_units']} of {config.latent_size}",
    }


QUICK = {"num_steps": 300, "num_estimate": 500}

if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick=QUICK)
