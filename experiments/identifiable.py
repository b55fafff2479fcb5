"""Latents that can be told: an identifiable VAE finds the sources of a nonlinear mixture, a VAE of equal networks does not.

python -m experiments.identifiable

Independent Gaussian sources, whose means and scales change from segment to segment, pass through a network that mixes them
(nonlinear ICA). The identifiable VAE (Khemakhem et al. 2020, arXiv:1907.04809) has a prior of the segment, p(z | u), and a
decoder that does not see it; the plain VAE knows no segment. Printed for both, over several seeds (of sources, mixture and
training): the mean correlation of matched coordinates on test data, of values and of ranks, and that after the best affine map,
which no rotation lowers. Figure: each learned latent over the source that it is matched with, for the median seed.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.densities import Amortized, Factorized, NormalHead


@dataclasses.dataclass(frozen=True)
class Config:
    num_sources: int = 3
    num_segments: int = 40
    num_rows: int = 200
    """Of each segment, in training; as many again are for the test."""
    noise: float = 0.1
    """Standard deviation of x about the mixture."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    num_steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 3e-3
    num_seeds: int = 6
    seed: int = 0


class Mixture(NamedTuple):
    """Rows of a nonlinear mixture: sources z, observations x, the segment u of each row."""

    z: jax.Array
    x: jax.Array
    u: jax.Array


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    metrics: dict[str, Any] = {"num_seeds": config.num_seeds}
    values: dict[str, list] = {}
    panels: list[dict[str, Any]] = []
    for i in range(config.num_seeds):
        key = stream(jax.random.key(config.seed), "repetition", i)
        train, test = mixture(config, stream(key, "data"))
        panels.append({})
        for name in ("identifiable", "plain"):
            model = build(config, name == "identifiable")
            fit = train_one(config, run, f"{name}_{i}", model, train, stream(key, "fit"))
            z_hat = encode(model, fit.params, test)
            found = gm.metrics.mean_correlation(test.z, z_hat)
            ranks = gm.metrics.mean_correlation(test.z, z_hat, correlation="spearman")
            affine, _ = gm.metrics.mean_canonical_correlation(test.z, z_hat)
            values.setdefault(name, []).append((found.value, ranks.value, affine))
            metrics |= {f"{name}_mcc_{i}": found.value, f"{name}_mcc_{i}_sem": found.sem}
            metrics[f"{name}_num_params"] = gm.num_params(fit.params)
            for j, (matched, r) in enumerate(zip(found.matching, found.correlations, strict=True)):
                panels[i][f"{name}: source {j}, r = {r:+.3f}"] = np.asarray(test.z)[:, j], z_hat[:, matched]
    rows = []
    for name, repeated in values.items():
        row: dict[str, Any] = {"model": f"{name} VAE", "parameters": metrics[f"{name}_num_params"]}
        for i, kind in enumerate(("mcc", "rank_mcc", "affine_mcc")):
            mean, sem = map(float, gm.metrics.mean_and_sem(np.array([each[i] for each in repeated])))
            metrics |= {f"{name}_{kind}": mean, f"{name}_{kind}_sem": sem}
            row[kind.replace("_", " ").replace("mcc", "MCC")] = gm.lab.with_error(mean, sem)
        rows.append(row)
    print(gm.lab.text_table(rows))
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    middle = np.argsort([each[0] for each in values["identifiable"]])[(config.num_seeds - 1) // 2]
    options = {"columns": config.num_sources, "title": "learned latents over the sources, median seed"}
    gm.lab.plot.scatter(run.figure("sources"), panels[middle], xlabel="source", ylabel="mean of q(z | x)", **options)
    return metrics


def mixture(config: Config, key: jax.Array) -> tuple[Mixture, Mixture]:
    """(training, test) of two layers of rotations, whose singular values are 1, with a leaky kink between them."""
    keys, d = jax.random.split(key, 5), config.num_sources
    shape = (config.num_segments, d)
    mean = 2.0 * jax.random.normal(keys[0], shape)
    scale = jax.random.uniform(keys[1], shape, minval=0.2, maxval=1.5)
    rotations = [jnp.linalg.qr(jax.random.normal(keys[2 + i], (d, d)))[0] for i in range(2)]

    def rows(key):
        own = jax.random.split(key)
        u = jnp.repeat(jnp.arange(config.num_segments), config.num_rows)
        z = mean[u] + scale[u] * jax.random.normal(own[0], (len(u), d))
        x = jax.nn.leaky_relu(z @ rotations[0], 0.25) @ rotations[1]
        return Mixture(z, x + config.noise * jax.random.normal(own[1], x.shape), u)

    train, test = jax.random.split(keys[4])
    return rows(train), rows(test)


def build(config: Config, identifiable: bool) -> gm.models.VAE:
    """With a prior of the segment, which the decoder does not see, or without segments."""
    d, features = config.num_sources, config.hidden_sizes[-1]
    law, net = Factorized(NormalHead(), (d,)), gm.nets.FlatNet(gm.nets.MLP(config.hidden_sizes))
    segments = (config.num_segments,)
    return gm.models.VAE(
        (d,),
        net,
        Amortized(law, (features,)),
        gm.nets.FlatNet(gm.nets.MLP(config.hidden_sizes), d),
        NormalHead(config.noise),
        Amortized(law, segments) if identifiable else None,  # type: ignore[arg-type]
        context_shape=segments if identifiable else None,
        decode_context=False,
    )


def train_one(config: Config, run: gm.lab.Run, name: str, model: gm.models.VAE, train: Mixture, key: jax.Array) -> gm.Fit:
    return gm.fit(
        model,
        train.x if model.context_shape is None else (train.x, train.u),
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validate_every=1_000,
        checkpoint=run.folder / f"checkpoint_{name}",
        log=run.log.with_name(f"log_{name}.jsonl"),
    )


def encode(model: gm.models.VAE, params: Any, rows: Mixture) -> np.ndarray:
    """The means of q(z | x), (n, d)."""
    posterior = model.posterior
    assert isinstance(posterior, Amortized) and isinstance(posterior.distribution, Factorized)
    law = posterior.distribution
    context = None if model.context_shape is None else jax.nn.one_hot(rows.u, model.context_shape[0])

    def one(x, context):
        return law.mean_one(posterior.at(params["posterior"], model.features_one(params, x, context)))

    return np.asarray(jax.jit(jax.vmap(one, (0, None if context is None else 0)))(rows.x, context))


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 1_000, "num_seeds": 2})
