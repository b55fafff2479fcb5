"""Exact test NLL on binary tables: independent columns, mixtures of Bernoullis, MADE in one order and in several.

python -m experiments.binary_tables                        nltcs, plants, mushrooms and dna, from GENMOD_DATA
python -m experiments.binary_tables --sets digits          scikit-learn's digits, made binary, without files

Best parameters, the number of components and the width of MADE are chosen by validation; the test rows choose nothing.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import numpy as np

import genmod as gm
from experiments import vae_data
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.densities import BernoulliHead

Set = Literal["digits", "nltcs", "plants", "accidents", "mushrooms", "dna"]
Name = Literal["independent", "mixture", "made", "made_orders"]


@dataclasses.dataclass(frozen=True)
class Config:
    sets: tuple[Set, ...] = ("nltcs", "plants", "mushrooms", "dna")
    models: tuple[Name, ...] = ("independent", "mixture", "made", "made_orders")
    num_components: tuple[int, ...] = (10, 30, 100)
    """Of the mixture: the number that is best in validation is taken."""
    widths: tuple[int, ...] = (0, 500, 2_000)
    """Of the hidden layer of MADE, 0 for none: the width that is best in validation is taken."""
    num_orders: int = 4
    """Of made_orders, which draws one of them for each minibatch and is tested as the mixture of all."""
    num_steps: int = 6_000
    batch_size: int = 100
    learning_rate: float = 3e-3
    """Peak of a cosine schedule that ends at zero; 100 steps of warm-up."""
    weight_decay: float = 0.1
    """Decoupled, of AdamW."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    metrics: dict[str, Any] = {"model": "binary_tables", "data": "+".join(config.sets)}
    for name in config.sets:
        data, rows = load(name, config.seed), []
        for kind in config.models:
            begun = time.perf_counter()
            model, params = make(config, run, kind, data, stream(jax.random.key(config.seed), f"{name} {kind}"))
            found = gm.evaluate(model, params, data.test, batch_size=1_000)
            found["validation_nll_nats"] = gm.evaluate(model, params, data.validation, batch_size=1_000)["nll_nats"]
            rows.append(row(kind, found, time.perf_counter() - begun))
            metrics |= {f"{name}_{kind}_{entry}": value for entry, value in found.items()}
        print(f"\n{data.name}: {data.event_shape[0]} columns, {len(data.train)} rows to train, {len(data.test)} to test")
        print(gm.lab.text_table(rows))
    return metrics


def load(name: Set, seed: int) -> gm.data.Dataset:
    """A table of zeros and ones."""
    if name != "digits":
        return getattr(gm.data, name)()
    data = vae_data.load("digits", seed)
    parts = [np.asarray(getattr(data, part)).reshape(-1, 64) for part in ("train", "validation", "test")]
    return gm.data.Dataset("binary_digits", *parts, num_levels=2)  # type: ignore[arg-type]


def make(config: Config, run: gm.lab.Run, kind: Name, data: gm.data.Dataset, key: jax.Array) -> tuple[gm.Model, Any]:
    """A model by name, with parameters fitted: of several sizes the one that is best in validation."""
    if kind in ("independent", "mixture"):
        fitted = [mixture(size, data, key) for size in (config.num_components if kind == "mixture" else (1,))]
    else:
        fitted = [made(config, run, kind, width, data, key) for width in config.widths]
    return min(fitted, key=lambda found: gm.evaluate(*found, data.validation, batch_size=1_000)["nll_nats"])


def made(config: Config, run: gm.lab.Run, kind: Name, width: int, data: gm.data.Dataset, key: jax.Array) -> tuple[gm.Model, Any]:
    """A MADE in one order, or in several, with at most one hidden layer."""
    shape = data.event_shape
    orders = gm.models.random_orders(shape[0], config.num_orders, config.seed) if kind == "made_orders" else None
    net = gm.nets.MADE((width,) if width else ())
    model = gm.models.MADEModel(shape, net, BernoulliHead(), orders)
    fit = gm.fit(
        model,
        data.train,
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, 100, config.weight_decay),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=data.validation,
        validate_every=min(100, config.num_steps),
        checkpoint=run.folder / f"checkpoint_{data.name}_{kind}_{width}",
        log=run.log.with_name(f"log_{data.name}_{kind}_{width}.jsonl"),
    )
    return model, fit.params


def mixture(num_components: int, data: gm.data.Dataset, key: jax.Array) -> tuple[gm.Model, Any]:
    """A mixture of products of Bernoullis, by expectation and maximisation."""
    model = gm.models.mixture_of_levels(data.event_shape, num_components)
    return model, gm.training.fit_em(model, data.train, key=key, num_restarts=2, tolerance=1e-4).params


def row(kind: str, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One line of a table."""
    return {
        "model": kind,
        "parameters": f"{found['num_params']:,}",
        "test NLL (nats)": gm.lab.with_error(found["nll_nats"], found["nll_nats_sem"]),
        "validation": f"{found['validation_nll_nats']:.2f}",
        "seconds": f"{seconds:.0f}",
    }


if __name__ == "__main__":
    quick = {"sets": ("digits",), "num_steps": 300, "num_components": (5, 20), "widths": (0, 64), "num_orders": 2}
    gm.lab.main(experiment, Config, quick=quick)
