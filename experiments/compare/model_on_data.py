"""One cell of the table of `experiments.compare`: one model, trained on one data set from one seed, and measured.

Each cell is a run of its own, in runs/model_on_data, which resumes where it was killed.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.compare import recipes, sets
from experiments.compare.recipe import Fitted, Task, timed
from genmod.core.keys import stream


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "two_moons"
    """A toy set, a table, digits, binary_digits, a binary table, or the path of a file."""
    model: str = "nsf"
    """The name of a recipe."""
    seed: int = 0
    """Of the draws of a toy set, of its split, of the start and of the training."""
    num_train: int = 400_000
    """Training points of a toy set (a quarter as many to validate)."""
    num_test: int = 20_000
    """Fresh test points of a toy set."""
    num_steps: int = 3_000
    batch_size: int = 512
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Of networks of which a model has several: conditioners, encoders."""
    network_sizes: tuple[int, ...] = (128, 128, 128)
    """Of networks of which a model has one or two: fields, energies, generators."""
    ema_decay: float = 0.99
    """Of the average of the parameters, which is validated and measured."""
    num_samples: int = 2_000
    """Timed, after one draw that compiles."""
    num_compared: int = 2_000
    """Of these and of the test points, between which distances are measured."""
    num_chains: int = 500
    """Of annealed importance sampling, either way."""
    num_annealed_levels: int = 2_000


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    recipe = recipes.find(config.model)
    problem = sets.load(config.data, config.num_train, config.num_test, config.seed)
    limit = {} if problem.limit is None else {"limit_nats": problem.limit}
    if config.model == recipes.TRUTH:
        return truth(config, problem, run) | limit
    if reason := recipe.refuses(problem.data):
        return {"model": config.model, "data": config.data, "not_applicable": reason}
    key = stream(jax.random.key(config.seed), config.model)
    with timed(run.folder / "train_seconds.json") as clock:
        fitted = recipe.fit(Task(config, problem.data, stream(key, "fit"), run, clock))
    seconds = clock()
    found: dict[str, Any] = {"model": config.model, "data": config.data, "num_params": gm.num_params(fitted.params)}
    found |= likelihood(config, problem, fitted, stream(key, "likelihood"))
    samples, found["sample_seconds"] = draw(config, fitted, stream(key, "samples"))
    found |= distances(config, problem, samples)
    found |= {"train_seconds": seconds} | limit
    save(run, problem, samples[: config.num_compared])
    if problem.data.event_shape == (2,) and fitted.model.likelihood <= gm.Likelihood.UNNORMALIZED:
        shift = problem.log_scale + found.get("log_normalizer_nats", 0.0)
        log_prob_fn = functools.partial(fitted.model.log_prob, fitted.params, key=stream(key, "grid"))
        on_grid(problem, lambda z: log_prob_fn(z) - shift, run.folder / "log_prob.npz")
    return found


def truth(config: Config, problem: sets.Problem, run: gm.lab.Run) -> dict[str, Any]:
    """What the law itself would reach: fresh draws, or rows that are held out, in the place of samples."""
    found: dict[str, Any] = {"model": config.model, "data": config.data}
    samples = np.asarray(problem.data.validation)[: config.num_samples]
    if problem.true_log_prob is not None:
        log_prob = np.asarray(problem.true_log_prob(problem.data.test), np.float64)
        nll, sem = gm.metrics.mean_and_sem(-log_prob)
        found |= {"likelihood": "EXACT", "nll_nats": float(nll) + problem.log_scale, "nll_nats_sem": float(sem)}
        if problem.data.event_shape == (2,):
            true_log_prob = problem.true_log_prob
            on_grid(problem, lambda z: true_log_prob(z) - problem.log_scale, run.folder / "log_prob.npz")
    save(run, problem, samples[: config.num_compared])
    return found | distances(config, problem, samples)


def likelihood(config: Config, problem: sets.Problem, fitted: Fitted, key: jax.Array) -> dict[str, Any]:
    """The NLL under a name that says what it is, in the units of the data, and the gap to the truth where that is known."""
    model, params = fitted.model, fitted.params
    kind = model.likelihood
    if kind is gm.Likelihood.NONE:
        return {"likelihood": kind.name}
    x = reshaped(problem.data.test, model)
    normalised = kind < gm.Likelihood.UNNORMALIZED
    true = problem.true_log_prob if normalised else None
    measured = gm.evaluate(model, params, x, key=key, true_log_prob=true, max_failed=0.001)
    nll, sem = measured[kind.nll_key], measured[f"{kind.nll_key}_sem"]
    found: dict[str, Any] = {"likelihood": kind.name, "num_test": len(x), "num_failed": measured.get("num_failed", 0)}
    if normalised:
        found |= {"nll_nats": nll + problem.log_scale, "nll_nats_sem": sem}
        return found | {name: measured[name] for name in ("gap_nats", "gap_nats_sem") if name in measured}
    return found | bracket(config, problem, fitted, nll, sem, key)


def bracket(config: Config, problem: sets.Problem, fitted: Fitted, energy: float, sem: float, key: jax.Array) -> dict[str, float]:
    """The NLL between two numbers, by annealed importance sampling of log Z from both sides."""
    model, params = fitted.model, fitted.params
    assert isinstance(model, gm.models.UnnormalizedModel)
    rows, num_levels = reshaped(problem.data.train, model), config.num_annealed_levels
    draws = gm.inference.annealed_draws(
        model, params, rows, key=stream(key, "draws"), num_draws=config.num_chains, num_levels=num_levels
    )
    lower, upper = gm.inference.normalizer_bracket(
        model,
        params,
        rows,
        key=stream(key, "bracket"),
        draws=draws,
        num_chains=config.num_chains,
        num_levels=num_levels,
    )
    found, differences = {}, None  # log p of the law less log f, of each test point
    if problem.true_log_prob is not None:
        x = jnp.asarray(reshaped(problem.data.test, model))
        log_f = np.asarray(model.log_prob(params, x), np.float64)
        differences = np.asarray(problem.true_log_prob(x), np.float64) - log_f
    for end, side in (("low", lower), ("high", upper)):
        shift = float(side.value)
        found |= {f"nll_{end}_nats": energy + shift + problem.log_scale, f"nll_{end}_nats_sem": float(np.hypot(sem, side.sem))}
        found[f"effective_chains_{end}"] = float(side.extras["effective_size"])
        if differences is not None:
            gap, gap_sem = gm.metrics.mean_and_sem(differences + shift)
            found |= {f"gap_{end}_nats": float(gap), f"gap_{end}_nats_sem": float(np.hypot(gap_sem, side.sem))}
    return found | {"log_normalizer_nats": float((lower.value + upper.value) / 2)}


def draw(config: Config, fitted: Fitted, key: jax.Array) -> tuple[np.ndarray, float]:
    """(samples, seconds): all are drawn at once, by a program that an earlier draw has compiled."""
    sample = functools.partial(fitted.model.sample, fitted.params)
    jax.block_until_ready(sample(stream(key, "compile"), (config.num_samples,)))
    begun = time.perf_counter()
    samples = jax.block_until_ready(sample(key, (config.num_samples,)))
    return np.asarray(fitted.decode(samples)), time.perf_counter() - begun


def distances(config: Config, problem: sets.Problem, samples: np.ndarray) -> dict[str, float]:
    """How far samples are from as many test points, in the units of the models."""
    x = np.asarray(problem.data.test, np.float64).reshape(len(problem.data.test), -1)
    y = samples.astype(np.float64).reshape(len(samples), -1)
    good = np.isfinite(y).all(1)
    found: dict[str, Any] = {"num_bad_samples": int((~good).sum())}
    y = y[good]
    if problem.modes is not None and len(y):
        num, part = problem.modes
        shares = np.bincount(part(problem.back(y.reshape(-1, *problem.data.event_shape))), minlength=num) / len(y)
        kl = float(np.sum(1 / num * np.log(1 / num / np.maximum(shares, 1e-12)))) if (shares > 0).all() else float("inf")
        found |= {"num_modes": int((shares > 0.1 / num).sum()), "of_modes": num, "modes_kl_nats": kl}
    x, y = x[: config.num_compared], y[: config.num_compared]
    num = min(len(x), len(y), len(problem.data.validation))  # as many for the truth as for models
    if num < 50:
        return found
    x, y = x[:num], y[:num]
    measured = {
        "sliced_w2": gm.metrics.sliced_wasserstein(y, x, num_directions=200),
        "mmd2": gm.metrics.squared_mmd(y, x),
        "c2st": gm.metrics.c2st(y, x),
        "coverage": gm.metrics.density_coverage(y, x)["coverage"],
    }
    for name, value in measured.items():
        found |= {name: value.value, f"{name}_sem": value.sem}
    return found


def on_grid(problem: sets.Problem, log_prob_fn: Callable[[Any], Any], path: Path, num: int = 120) -> None:
    """Saves log p in the units of the data at the midpoints of num x num cells of their box, and its corners."""
    x = problem.back(np.asarray(problem.data.test))
    margin = 0.05 * (x.max(0) - x.min(0))
    low, high = x.min(0) - margin, x.max(0) + margin
    axes = [a + (b - a) * (np.arange(num) + 0.5) / num for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_prob = np.asarray(log_prob_fn(jnp.asarray(problem.to(points), jnp.float32)), np.float64)
    np.savez(path, log_prob=log_prob.reshape(num, num), low=low, high=high)


def save(run: gm.lab.Run, problem: sets.Problem, samples: np.ndarray) -> None:
    """Samples as events of the data, for the figure."""
    np.save(run.folder / "samples.npy", problem.back(samples.reshape(-1, *problem.data.event_shape)))


def reshaped(x: Any, model: gm.Model) -> Any:
    """Rows as events of the model: images as vectors, or vectors as images."""
    x = np.asarray(x)
    return x.reshape(len(x), *model.event_shape)
