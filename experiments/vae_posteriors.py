"""One VAE with each posterior: what the family of q costs, at equal networks, steps and data.

python -m experiments.vae_posteriors
python -m experiments.vae_posteriors --data binarized_mnist --num-steps 30000

Published, dynamically binarised MNIST, 2,000 epochs (van den Berg et al. 2018, arXiv:1803.05649, table 1), -ELBO: Gaussian 86.55,
planar 86.06, IAF 84.20, Sylvester (orthogonal) 83.32.
"""

import dataclasses
from typing import Any

import jax

import genmod as gm
from experiments import vae, vae_data


@dataclasses.dataclass(frozen=True)
class Config(vae.Config):
    posteriors: tuple[vae.Posterior, ...] = (
        "gaussian",
        "full",
        "planar",
        "radial",
        "sylvester",
        "householder",
        "triangular",
        "iaf",
        "real_nvp",
        "spline",
    )
    num_steps: int = 6_000
    latent_dim: int = 20


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = vae_data.load(config.data, config.seed)
    metrics: dict[str, Any] = {"model": "vae_posteriors", "data": data.name}
    rows = []
    for name in config.posteriors:
        own = dataclasses.replace(config, posterior=name, num_layers=1 if name == "full" else config.num_layers)
        model = vae.build(own, data.event_shape)
        fit = vae.train(own, run, model, data, key)
        found = vae.measure(own, model, fit.params, data, key)
        metrics |= {f"{name}_{entry}": value for entry, value in found.items()}
        rows.append(vae.row(own, found))
        print(gm.lab.text_table(rows[-1:]))
        jax.clear_caches()  # programs of this model alone
    print(gm.lab.text_table(rows))
    (run.folder / "posteriors.txt").write_text(gm.lab.text_table(rows) + "\n")
    return metrics


if __name__ == "__main__":
    small = {"num_steps": 300, "latent_dim": 8, "num_draws": 100, "num_test": 50}
    gm.lab.main(experiment, Config, quick={"posteriors": ("gaussian", "planar"), **small})
