"""The rate-distortion curve of a VAE of binary digits: one sweep over beta, beside runs of single betas.

python -m experiments.rate_distortion_vae

Rate KL(q(z | x) || p(z)) and distortion -E log p(x | z) of the validation images, in nats, at the end of each beta (Alemi et al.
2017, arXiv:1711.00464). A run of a single beta begins afresh and takes as many steps as the sweep up to the end of that beta. The
sum, -ELBO, is least near beta = 1.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

import genmod as gm
from experiments.iwae import build, load
from genmod.core.keys import stream
from genmod.inference import RateDistortionCurve, rate_distortion_curve


@dataclasses.dataclass(frozen=True)
class Config:
    betas: tuple[float, ...] = (0.3, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
    """The first stands twice: all is learned there that the others begin with."""
    alone: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Betas that are trained by themselves as well, some of the above."""
    latent_size: int = 16
    hidden_sizes: tuple[int, ...] = (128, 128)
    num_steps: int = 1_000
    """Of each beta."""
    batch_size: int = 128
    learning_rate: float = 2e-3
    """At the beginning of each beta; it falls to zero along a cosine."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    train, validation, _ = load("digits", config.seed)
    sweep = measure(config, run, "sweep", train, validation, config.betas, config.num_steps)
    kept = [i for i, beta in enumerate(config.betas) if beta not in config.betas[i + 1 :]]
    rows = [line("sweep", sweep, i) for i in kept]
    metrics: dict[str, Any] = {"num_params": gm.num_params(sweep.fit.params), "num_validation": len(validation)}
    for i in kept:
        metrics |= {f"beta_{config.betas[i]}_{name}": float(getattr(sweep, name)[i]) for name in PARTS}
    singles = []
    for beta in config.alone:
        num_steps = config.num_steps * (1 + max(i for i in kept if config.betas[i] == beta))
        singles.append(measure(config, run, f"alone_{beta}", train, validation, (beta,), num_steps))
        rows.append(line("alone", singles[-1], 0))
        metrics |= {f"alone_{beta}_{name}": float(getattr(singles[-1], name)[0]) for name in PARTS}
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    curves: dict[str, Any] = {"one sweep over beta": (sweep.rate[kept], sweep.distortion[kept])}
    if singles:
        curves["single betas"] = tuple(np.array([getattr(each, name)[0] for each in singles]) for name in ("rate", "distortion"))
    gm.lab.plot.lines(
        run.figure("curve"), None, curves, xlabel="rate (nats)", ylabel="distortion (nats)", title="binary digits, validation"
    )
    return metrics


PARTS = ("rate", "rate_sem", "distortion", "distortion_sem", "bound", "bound_sem")


def measure(
    config: Config, run: gm.lab.Run, name: str, train: Any, validation: Any, betas: tuple[float, ...], num_steps: int
) -> RateDistortionCurve:
    """Rate and distortion of `num_steps` at each of some betas."""
    model = build(train.shape[1], config.latent_size, config.hidden_sizes, gm.losses.ELBO())
    falls = [optax.cosine_decay_schedule(config.learning_rate, num_steps)] * len(betas)
    return rate_distortion_curve(
        model,
        train,
        validation,
        betas=betas,
        key=stream(jax.random.key(config.seed), "fit"),
        num_steps=num_steps,
        optimizer=optax.adam(optax.join_schedules(falls, [num_steps * i for i in range(1, len(betas))])),
        batch_size=config.batch_size,
        checkpoint=run.folder / f"checkpoint_{name}",
        log=run.log.with_name(f"log_{name}.jsonl"),
    )


def line(name: str, curve: RateDistortionCurve, i: int) -> dict[str, Any]:
    """One row of the table."""
    named = {"rate (nats)": "rate", "distortion (nats)": "distortion", "-ELBO (nats)": "bound"}
    cells = {title: gm.lab.with_error(getattr(curve, part)[i], getattr(curve, f"{part}_sem")[i]) for title, part in named.items()}
    return {"run": name, "beta": f"{curve.beta[i]:g}"} | cells


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 300, "betas": (0.3, 1.0, 3.0), "alone": (1.0,)})
