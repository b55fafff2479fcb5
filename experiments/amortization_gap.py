"""Where the bound of a VAE loses: log p - ELBO by approximation, amortisation and estimator, before and after refinement.

python -m experiments.amortization_gap

A VAE of binary digits (as in experiments.iwae), measured on training and on test images: the best posterior of the family is
found for each image by itself; then 5, 20 and 80 gradient steps from the encoder's output (semi-amortised inference), and the
share of the amortisation gap that they take back. Images drawn from the model itself, whose latents are exact draws of their
posteriors, bracket log p by annealing from both sides, beside importance sampling.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from experiments.iwae import build, load
from genmod.core.keys import stream
from genmod.inference import (
    AIS,
    ImportanceSampling,
    MeanBound,
    Observed,
    bracket,
    gap_report,
    posterior_health,
    refine,
    simulate,
)
from genmod.samplers import mala

PARTS = ("estimator", "approximation", "amortization")


@dataclasses.dataclass(frozen=True)
class Config:
    latent_size: int = 8
    hidden_sizes: tuple[int, ...] = (128, 128)
    num_steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    num_images: int = 100
    """Of each kind that is measured."""
    num_estimate: int = 50
    """Draws of the estimate of log p whose error is measured."""
    num_reference: int = 5_000
    """Draws of the estimate that it is measured against."""
    num_levels: int = 400
    """Of annealed importance sampling."""
    step_size: float = 0.3
    """Of its Langevin kernel."""
    family_steps: int = 500
    """By which the best posterior of the family is found."""
    refinements: tuple[int, ...] = (5, 20, 80)
    """Gradient steps of the semi-amortised posteriors."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    train, validation, test = load("digits", config.seed)
    model = build(train.shape[1], config.latent_size, config.hidden_sizes, gm.losses.ELBO())
    fit = gm.fit(
        model,
        train,
        key=stream(key, "fit"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=validation,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    metrics: dict[str, Any] = {"num_params": gm.num_params(fit.params), "num_images": config.num_images}
    rows = []
    for name, x in (("train", train[: config.num_images]), ("test", test[: config.num_images])):
        found = gaps(config, model, fit.params, x, stream(key, name))
        metrics |= {f"{name}_{entry}": value for entry, value in found.items()}
        rows.append(line(config, name, found))
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    print(posterior_health(model, fit.params, test, key=stream(key, "health")))
    return metrics | simulated(config, model, fit.params, stream(key, "simulated"))


def gaps(config: Config, model, params, x, key) -> dict[str, float]:
    """The means over images of the parts of the gap, and the share of the amortisation gap that refinements take back."""
    estimate, reference = ImportanceSampling(config.num_estimate), ImportanceSampling(config.num_reference)
    own = stream(key, "gap")
    report = gap_report(model, params, x, key=own, estimate=estimate, reference=reference, num_steps=config.family_steps)
    found = {}
    for part in ("evidence", "elbo", *PARTS):
        mean, sem = gm.metrics.mean_and_sem(np.asarray(getattr(report, part), np.float64))
        found |= {f"{part}_nats": float(mean), f"{part}_nats_sem": float(sem)}
    bound = MeanBound(gm.losses.ELBO(), 1_000)
    before = gm.evidence(Observed(model, params, x), bound, key=stream(key, "bound"))
    for num_steps in config.refinements:
        features = refine(model, params, x, key=stream(key, "refine"), num_steps=num_steps)
        after = gm.evidence(Observed(model, params, x, features=features), bound, key=stream(key, "bound"))
        gain, sem = gm.metrics.mean_and_sem(np.asarray(after.value - before.value, np.float64))
        found |= {f"gain_{num_steps}_nats": float(gain), f"gain_{num_steps}_nats_sem": float(sem)}
        found[f"share_{num_steps}"] = float(gain) / found["amortization_nats"]
    return found


def simulated(config: Config, model, params, key) -> dict[str, float]:
    """log p of images that the model has drawn: by annealing from both sides, and by importance sampling."""
    z, x = simulate(model, params, stream(key, "draws"), config.num_images)
    rows = Observed(model, params, x)
    ais = AIS(16, config.num_levels, gm.call(mala, step_size=config.step_size))
    lower, upper = bracket(rows, ais, key=stream(key, "bracket"), z=z[:, None])
    sampled = gm.evidence(rows, ImportanceSampling(config.num_reference), key=stream(key, "importance"))
    print("log p of images of the model itself")
    found = {}
    for name, estimate in (("annealed", lower), ("importance", sampled), ("annealed_back", upper)):
        print(f"  {name:<14} {estimate}")
        found |= {f"simulated_{name}_nats": float(np.mean(estimate.value))}
    width, sem = gm.metrics.mean_and_sem(np.asarray(upper.value - lower.value, np.float64))
    return found | {"simulated_width_nats": float(width), "simulated_width_nats_sem": float(sem)}


def line(config: Config, name: str, found: dict[str, float]) -> dict[str, Any]:
    cells: dict[str, Any] = {"images": name, "ELBO": gm.lab.with_error(found["elbo_nats"], found["elbo_nats_sem"])}
    cells |= {part: gm.lab.with_error(found[f"{part}_nats"], found[f"{part}_nats_sem"]) for part in PARTS}
    return cells | {f"closed by {steps} steps": f"{100 * found[f'share_{steps}']:.0f}%" for steps in config.refinements}


QUICK = {"num_steps": 300, "num_images": 20, "num_reference": 500, "num_levels": 50, "family_steps": 100}

if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick=QUICK)
