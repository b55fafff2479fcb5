"""What a diffusion learns, by schedule, by what its network predicts, and by the weighting of its loss.

python -m experiments.prediction_table

A small network is trained on two moons for `num_steps`, alike in every cell. Reported: the gap of the exact NLL by the
probability flow to the entropy of the data, W2 of samples by the default sampler and by 50 steps of DDIM uniform in time, and the
mean norm of the gradient in the last hundred steps. The default of `gm.flows.diffusion` was chosen by this table.
"""

import dataclasses
import warnings
from typing import Any

import jax

import genmod as gm
from experiments.common import adam_with_cosine
from experiments.sampler_table import SCHEDULES
from genmod import denoising
from genmod.core.keys import stream
from genmod.denoising import levels


@dataclasses.dataclass(frozen=True)
class Config:
    schedules: tuple[str, ...] = ("VP", "cosine", "EDM", "VE", "straight")
    kinds: tuple[gm.denoising.Kind, ...] = ("eps", "x0", "v", "edm")
    weightings: tuple[str, ...] = ("simple", "v", "min-SNR")
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    num_steps: int = 3_000
    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at zero."""
    num_train: int = 20_000
    num_test: int = 2_000
    """Test points, and samples in a distance."""
    seed: int = 0


WEIGHTINGS = {"simple": levels.SimpleWeighting(), "v": levels.VWeighting(), "min-SNR": levels.MinSNR()}
UNIFORM = denoising.Steps(denoising.DDIM(), denoising.UniformGrid(50))


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = gm.data.two_moons(stream(key, "data"), config.num_train)
    fresh = data.sample(stream(key, "fresh"), config.num_test)
    metrics: dict[str, Any] = {"model": "prediction_table", "limit_nats": data.entropy}
    metrics["w2_floor"] = float(gm.metrics.wasserstein(data.sample(stream(key, "other"), config.num_test), fresh))
    rows = []
    for schedule in config.schedules:
        for kind in config.kinds:
            for weighting in config.weightings:
                found = cell(config, run, data, fresh, schedule, kind, weighting, stream(key, "fit"))
                metrics |= {f"{schedule}_{kind}_{weighting}_{name}": value for name, value in found.items()}
                rows.append({"schedule": schedule, "kind": kind, "weighting": weighting} | shown(found))
                jax.clear_caches()  # programs of this cell alone; a process may map only so many
    print(gm.lab.text_table(rows))
    print(f"W2 of fresh data {metrics['w2_floor']:.3f}")
    (run.folder / "predictions.txt").write_text(gm.lab.text_table(rows) + "\n")
    return metrics


def cell(
    config: Config, run: gm.lab.Run, data: gm.data.Dataset, fresh, schedule: str, kind, weighting: str, key
) -> dict[str, float]:
    """One model: trained, scored, sampled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what this table shows to train badly
        model = gm.flows.diffusion(
            (2,), schedule=SCHEDULES[schedule], kind=kind, weighting=WEIGHTINGS[weighting], hidden_sizes=config.hidden_sizes
        )
    fit = gm.fit(
        model,
        data.train,
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        checkpoint=run.folder / f"checkpoint_{schedule}_{kind}_{weighting}",
        progress=False,
    )
    test = data.sample(stream(key, "test"), config.num_test)
    found = gm.evaluate(model, fit.params, test, true_log_prob=data.log_prob)
    distances = {}
    for name, sampled in (("w2", model), ("w2_ddim_uniform", dataclasses.replace(model, sampler=UNIFORM))):
        x = sampled.sample(fit.params, stream(key, "sample"), (config.num_test,))
        distances[name] = float(gm.metrics.wasserstein(x, fresh))
    return {"gap_nats": found["gap_nats"], **distances, "grad_norm": float(fit.history["grad_norm"][-1])}


def shown(found: dict[str, float]) -> dict[str, str]:
    """One line of the table."""
    return {
        "gap (nats)": f"{found['gap_nats']:.3f}",
        "W2": f"{found['w2']:.3f}",
        "W2, DDIM uniform": f"{found['w2_ddim_uniform']:.3f}",
        "gradient": f"{found['grad_norm']:.2g}",
    }


if __name__ == "__main__":
    small = {"num_train": 2_000, "num_test": 200, "hidden_sizes": (16, 16)}
    gm.lab.main(
        experiment, Config, quick={"num_steps": 50, "schedules": ("VP",), "kinds": ("v",), "weightings": ("simple",), **small}
    )
