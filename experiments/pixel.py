"""Autoregressive models of binary images: MADE in one order and in several, and a gated PixelCNN. Exact test NLL, and samples.

python -m experiments.pixel                                                        scikit-learn's digits, made binary
python -m experiments.pixel --data binarized_mnist --num-steps 20000               files from GENMOD_DATA; for a GPU
python -m experiments.pixel --data binarized_mnist --num-features 64 --num-layers 12 --num-steps 100000 --models pixel_cnn

Best parameters by validation; the test images choose nothing.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp

import genmod as gm
from experiments import vae_data
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.densities import BernoulliHead

Name = Literal["made", "made_orders", "pixel_cnn"]


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "binarized_mnist"] = "digits"
    models: tuple[Name, ...] = ("made", "made_orders", "pixel_cnn")
    hidden_sizes: tuple[int, ...] = (500,)
    """Of MADE."""
    direct: bool = True
    """Whether the outputs of MADE also read the pixels before them linearly."""
    num_orders: int = 8
    """Of made_orders."""
    num_features: int = 32
    """Of each stack of the PixelCNN."""
    num_layers: int = 7
    """Of the PixelCNN."""
    num_steps: int = 2_000
    batch_size: int = 100
    learning_rate: float = 1e-3
    """Peak of a cosine schedule that ends at zero; 100 steps of warm-up."""
    weight_decay: float = 0.1
    """Decoupled, of AdamW."""
    num_samples: int = 30
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = vae_data.load(config.data, config.seed)
    metrics: dict[str, Any] = {"model": "pixel", "data": data.name}
    rows, shown = [], [("images", data.test[:10])]
    for name in config.models:
        begun = time.perf_counter()
        model = make(config, name, data.event_shape)
        params = train(config, run, name, model, data, stream(key, name))
        found = gm.evaluate(model, params, data.test, batch_size=500)
        rows.append(row(name, found, data.event_shape, time.perf_counter() - begun))
        samples = model.sample(params, stream(key, "samples"), config.num_samples)
        shown += [(name.replace("_", " ") if i == 0 else "", samples[i : i + 10]) for i in range(0, config.num_samples, 10)]
        metrics |= {f"{name}_{entry}": value for entry, value in found.items()}
    print(gm.lab.text_table(rows))
    gm.lab.plot.images(
        run.figure("samples"), [(label, jnp.asarray(x, float)) for label, x in shown], title=f"{data.name}: samples"
    )
    return metrics


def make(config: Config, name: Name, shape: tuple[int, ...]) -> gm.Model:
    """A model by name."""
    if name == "pixel_cnn":
        net = gm.nets.GatedPixelCNN(config.num_features, config.num_layers, untied_biases=shape[:2])
        return gm.models.PixelCNN(shape, net, BernoulliHead())
    size = shape[0] * shape[1] * shape[2]
    orders = gm.models.random_orders(size, config.num_orders, config.seed) if name == "made_orders" else None
    return gm.models.MADEModel(shape, gm.nets.MADE(config.hidden_sizes, direct=config.direct), BernoulliHead(), orders)


def train(config: Config, run: gm.lab.Run, name: Name, model: gm.Model, data: gm.data.Dataset, key: jax.Array) -> Any:
    fit = gm.fit(
        model,
        data.train,
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, 100, config.weight_decay),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=data.validation,
        validate_every=min(250, config.num_steps),
        checkpoint=run.folder / f"checkpoint_{name}",
        log=run.log.with_name(f"log_{name}.jsonl"),
    )
    return fit.params


def row(name: str, found: dict[str, Any], shape: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """One line of a table."""
    nll, sem = found["nll_nats"], found["nll_nats_sem"]
    return {
        "model": name,
        "parameters": f"{found['num_params']:,}",
        "test NLL (nats)": gm.lab.with_error(nll, sem),
        "bits per dimension": f"{gm.metrics.bits_per_dim(nll, shape):.4f}",
        "seconds": f"{seconds:.0f}",
    }


if __name__ == "__main__":
    quick = {"num_steps": 200, "hidden_sizes": (100,), "num_orders": 2, "num_features": 8, "num_layers": 3}
    gm.lab.main(experiment, Config, quick=quick)
