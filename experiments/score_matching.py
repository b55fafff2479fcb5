"""Score matching in one and two dimensions: explicit, sliced and denoising losses against the true score.

python -m experiments.score_matching

One network is fitted to the score of data by each loss of `gm.losses.score`. In one dimension the data are a mixture of two
Gaussians, whose score is drawn beside the fits; in two a toy set with an exact density. The table shows the error
E_p|s - grad log p|^2 on test points (of denoising also against its own target, the score of the blurred data), and what
Langevin dynamics makes of each score.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream

SETS: dict[str, Callable] = {
    "two_bumps": gm.data.two_bumps,
    "two_moons": functools.partial(gm.data.two_moons, noise=0.2),
    "eight_gaussians": gm.data.eight_gaussians,
    "pinwheel": gm.data.pinwheel,
}


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("two_bumps", "eight_gaussians", "two_moons")
    methods: tuple[str, ...] = ("explicit", "sliced", "denoising")
    sigma: float = 0.1
    """Of the denoising loss."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    num_steps: int = 4_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    num_train: int = 50_000
    num_test: int = 5_000
    step_size: float = 1e-3
    """Of Langevin's x + e score + sqrt(2 e) z."""
    num_langevin: int = 2_000
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    metrics: dict[str, Any] = {"model": "score_matching", "num_test": config.num_test}
    rows = []
    for name in config.data:
        data = SETS[name](stream(key, name), config.num_train)
        true_score = jax.jit(jax.vmap(jax.grad(lambda x, data=data: data.log_prob(x))))
        test = data.sample(stream(key, f"{name} test"), config.num_test)
        scores = {}
        for method in config.methods:
            model = build(config, data.event_shape, method)
            fit = gm.fit(
                model,
                data.train,
                key=stream(key, f"{name} {method}"),
                optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
                num_steps=config.num_steps,
                batch_size=config.batch_size,
                checkpoint=run.folder / f"checkpoint_{name}_{method}",
                log=run.log.with_name(f"log_{name}_{method}.jsonl"),
            )
            scores[method] = jax.jit(jax.vmap(functools.partial(model.score, fit.params)))
            error, sem = gm.metrics.mean_and_sem(((scores[method](test) - true_score(test)) ** 2).sum(-1))
            drawn = model.sample(fit.params, stream(key, f"{name} {method} draw"), 2_000)
            nll = gm.metrics.mean_and_sem(-data.log_prob(drawn))
            metrics["num_params"] = gm.num_params(fit.params)
            metrics |= {f"{name}_{method}_score_error": float(error), f"{name}_{method}_score_error_sem": float(sem)}
            rows.append(
                {
                    "data": name,
                    "method": method,
                    "E|s - true|^2": gm.lab.with_error(float(error), float(sem)),
                    "of E|true|^2": f"{float((true_score(test) ** 2).sum(-1).mean()):.3f}",
                    "-log p of Langevin draws": gm.lab.with_error(*map(float, nll)),
                    "entropy": f"{data.entropy:.4f}",
                }
            )
        draw(run, name, data, test, {"true": true_score, **scores})
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    return metrics


def build(config: Config, event_shape: tuple[int, ...], method: str) -> gm.models.ScoreModel:
    network = gm.nets.ZeroHead(gm.nets.MLP(config.hidden_sizes, jax.nn.silu), math.prod(event_shape))
    divergence = gm.dynamics.Hutchinson(1) if method == "sliced" else gm.dynamics.Exact()
    kind = "denoising" if method == "denoising" else "explicit"
    return gm.models.ScoreModel(
        network,
        event_shape,
        kind,
        divergence,
        config.sigma,
        step_size=config.step_size,
        num_steps=config.num_langevin,
        start_scale=2.0,
    )


def draw(run: gm.lab.Run, name: str, data: gm.data.Dataset, test: jax.Array, scores: dict[str, Callable]) -> None:
    if data.event_shape == (1,):
        x = np.linspace(float(test.min()), float(test.max()), 300)[:, None]
        curves = {method: np.asarray(score(jnp.asarray(x, test.dtype)))[:, 0] for method, score in scores.items()}
        gm.lab.plot.lines(run.figure(name), x[:, 0], curves, xlabel="x", ylabel="score", title=f"scores of {name}")
        return
    gm.lab.plot.vector_fields(run.figure(name), scores, test, title=f"scores of {name}")


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 300, "hidden_sizes": (64,), "num_langevin": 300, "num_train": 5_000})
