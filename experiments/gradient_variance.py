"""Estimators of the gradient of an expectation: error of the mean and variance of each, where the gradient is known exactly.

python -m experiments.gradient_variance

    gaussian   x ~ N(m, s^2 I) in D dimensions, f(x) = |x - c|^2, gradient in m and log s
    one-hot    y = (y_1, ..., y_D) independent one-hot vectors of K levels, f(y) = |sum_i W_i y_i - t|^2, gradient in the logits

All estimators take the same number of draws, so that their variances compare at equal cost. `error of the mean` is the Euclidean
distance of the mean over the keys from the exact gradient; an estimator without bias shows what chance makes of it, `by chance`.
`rms error` is that of one estimate, bias and noise.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from genmod.core.keys import stream
from genmod.core.relaxation import one_hot_of_largest
from genmod.losses import MovingAverage, gumbel_softmax, leave_one_out, reinforce, reinforce_moving_average, reparameterized


@dataclasses.dataclass(frozen=True)
class Config:
    num_keys: int = 20_000
    """Gradients from which mean and variance are taken."""
    num_samples: int = 4
    """Draws of each gradient."""
    dims: tuple[int, ...] = (1, 10, 100)
    """Of the Gaussian."""
    num_vectors: int = 8
    num_levels: int = 4
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0)
    num_warm_up: int = 1_000
    """Gradients before the measurement, by which the moving average settles."""
    seed: int = 0


Estimators = dict[str, Callable[[Any, jax.Array], jax.Array]]
MEAN_OFFSET, SCALE = 0.5, 0.7


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    metrics: dict[str, Any] = {"model": "gradient_variance"}
    for dim in config.dims:
        params, estimators, exact = gaussian(config, dim, key)
        found = measure(config, params, estimators, exact, stream(key, "gaussian", dim))
        metrics[f"gaussian_{dim}_gradient"] = norm(exact)
        report(run, f"gaussian_{dim}", found, "reparameterised", gaussian_variances(config, dim), metrics)
    params, estimators, exact = one_hot(config, key)
    found = measure(config, params, estimators, exact, stream(key, "one_hot"))
    metrics["one_hot_gradient"] = norm(exact)
    report(run, "one_hot", found, "reinforce, leave one out", {}, metrics)
    flat = {"exact gradient": norm(exact), "REINFORCE, leave one out: sd": found["reinforce, leave one out"]["rms error"]}
    curves: dict[str, Any] = {name: np.full(len(config.temperatures), value) for name, value in flat.items()}
    for label, kind in (("relaxed", "Gumbel-softmax"), ("straight-through", "straight-through Gumbel-softmax")):
        rows = [found[f"{kind}, {t:g}"] for t in config.temperatures]
        curves[f"{label}: bias"] = [row["error of the mean"] for row in rows]
        curves[f"{label}: sd"] = [row["variance"] ** 0.5 for row in rows]
    title = "Gradients by Gumbel-softmax: what the temperature trades"
    axes = {"xlabel": "temperature", "ylabel": "Euclidean norm", "title": title, "log": True}
    gm.lab.plot.lines(run.figure("gradient_variance"), np.asarray(config.temperatures), curves, **axes)
    return metrics


def gaussian(config: Config, dim: int, key) -> tuple[Any, Estimators, Any]:
    """Parameters, estimators by name, the exact gradient: of E|x - c|^2 = D (d^2 + s^2), d = m - c."""
    params = {"mean": jnp.full(dim, MEAN_OFFSET), "log_scale": jnp.full(dim, np.log(SCALE), jnp.float32)}

    def value(params, x):
        return jnp.sum(x**2)

    def sample(params, key):
        return params["mean"] + jnp.exp(params["log_scale"]) * jax.random.normal(key, (dim,))

    def log_prob(params, x):
        return jax.scipy.stats.norm.logpdf(x, params["mean"], jnp.exp(params["log_scale"])).sum()

    exact = {"mean": np.full(dim, 2 * MEAN_OFFSET), "log_scale": np.full(dim, 2 * SCALE**2)}
    through = functools.partial(reparameterized, value, sample, num_samples=config.num_samples)
    scores = score_functions(config, (value, sample, log_prob), params, stream(key, "warm up", dim))
    return params, {"reparameterised": through} | scores, exact


def gaussian_variances(config: Config, dim: int) -> dict[str, float]:
    """The sum of the variances of all entries in closed form, by moments of e ~ N(0, 1): x_i - c = d + s e_i, r = (x_i - c)^2.

    Without a baseline E[g^2] is E[r^2 w] + 2 E[r w] E[b] + E[w] E[b^2], where b is the sum of the other D - 1 terms, and w is
    e^2 / s^2 in the mean, (e^2 - 1)^2 in the log-scale.
    """
    d, s = MEAN_OFFSET, SCALE
    rest = (dim - 1) * (d**2 + s**2)
    rest_square = (dim - 1) * (2 * s**4 + 4 * d**2 * s**2) + rest**2
    of_mean = (d**4 + 18 * d**2 * s**2 + 15 * s**4 + 2 * (d**2 + 3 * s**2) * rest + rest_square) / s**2 - 4 * d**2
    of_scale = 2 * d**4 + 60 * d**2 * s**2 + 78 * s**4 + 2 * (2 * d**2 + 10 * s**2) * rest + 2 * rest_square - 4 * s**4
    through = 4 * s**2 + 4 * d**2 * s**2 + 8 * s**4
    return {
        "reparameterised": dim * through / config.num_samples,
        "reinforce": dim * (of_mean + of_scale) / config.num_samples,
    }


def one_hot(config: Config, key) -> tuple[Any, Estimators, Any]:
    """Parameters, estimators by name, the exact gradient: that of

    E f = |sum_i W_i p_i - t|^2 + sum_i (sum_k p_ik |W_ik|^2 - |W_i p_i|^2).
    """
    shape = (config.num_vectors, config.num_levels)
    logits = jax.random.normal(stream(key, "logits"), shape)
    weights = jax.random.normal(stream(key, "weights"), (*shape, 3))
    target = jax.random.normal(stream(key, "target"), (3,))

    def value(logits, y):
        return jnp.sum((jnp.einsum("ik,ikd->d", y, weights) - target) ** 2)

    def hard(logits, key):
        return jax.nn.one_hot(jax.random.categorical(key, logits), config.num_levels)

    def log_mass(logits, y):
        return jnp.sum(y * jax.nn.log_softmax(logits))

    def expectation(logits):
        p = jax.nn.softmax(logits)
        own = jnp.einsum("ik,ikd->id", p, weights)
        return jnp.sum((own.sum(0) - target) ** 2) + jnp.sum(p * (weights**2).sum(-1)) - jnp.sum(own**2)

    def straight(logits, key):
        return gm.losses.straight_through(hard(logits, key), jax.nn.softmax(logits))

    def straight_gumbel(logits, key, temperature):
        soft = gumbel_softmax(logits, key, temperature)
        return gm.losses.straight_through(one_hot_of_largest(soft), soft)

    samplers: dict[str, Callable] = {"straight-through softmax": straight}
    for name, sampler in (("Gumbel-softmax", gumbel_softmax), ("straight-through Gumbel-softmax", straight_gumbel)):
        samplers |= {f"{name}, {t:g}": functools.partial(sampler, temperature=t) for t in config.temperatures}
    relaxed = {
        name: functools.partial(reparameterized, value, sampler, num_samples=config.num_samples)
        for name, sampler in samplers.items()
    }
    scores = score_functions(config, (value, hard, log_mass), logits, stream(key, "warm up"))
    return logits, scores | relaxed, np.asarray(jax.grad(expectation)(logits))


def score_functions(config: Config, problem: tuple[Callable, Callable, Callable], params: Any, key) -> Estimators:
    """REINFORCE with each baseline; the moving average is that which `num_warm_up` estimates leave."""
    estimator = functools.partial(reinforce, *problem, num_samples=config.num_samples)

    def warm_up(state, key):
        return reinforce_moving_average(*problem, params, key, state, config.num_samples)[1], None

    keys = jax.random.split(key, config.num_warm_up)
    state = jax.jit(lambda keys: jax.lax.scan(warm_up, MovingAverage.start(), keys)[0])(keys)
    scores: Estimators = {"reinforce": estimator, "reinforce, moving average": functools.partial(estimator, baseline=state.value)}
    return scores | {"reinforce, leave one out": functools.partial(estimator, baseline=leave_one_out)}


def measure(config: Config, params, estimators: Estimators, exact, key) -> dict[str, dict[str, float]]:
    """Error of the mean, what chance makes of it, variance and rms error of each estimator."""
    found = {}
    for name, estimator in estimators.items():
        statistics = jax.jit(functools.partial(gm.losses.gradient_variance, estimator, num_keys=config.num_keys))
        of = statistics(params, stream(key, name))
        error = norm(jax.tree.map(lambda m, e: np.asarray(m, np.float64) - e, of.mean, exact))
        variance = float(of.total_variance)
        rms = (max(error**2 - variance / config.num_keys, 0.0) + variance) ** 0.5
        found[name] = {"error of the mean": error, "by chance": norm(of.mean_sem), "variance": variance, "rms error": rms}
    return found


def norm(tree) -> float:
    return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def report(run: gm.lab.Run, problem: str, found, reference: str, closed: dict[str, float], metrics: dict[str, Any]) -> None:
    """Prints and writes the table of a problem, and enters its numbers into the metrics, which hold the norm of the gradient."""
    rows = []
    for name, row in found.items():
        ratio = row["variance"] / found[reference]["variance"]
        known = {"exact variance": f"{closed[name]:.4g}" if name in closed else ""} if closed else {}
        rows.append({"estimator": name, **{k: f"{v:.4g}" for k, v in row.items()}, "ratio": f"{ratio:.3g}", **known})
        label = name.replace(", ", "_").replace(" ", "_")
        metrics |= {f"{problem}_{label}_{k.replace(' ', '_')}": v for k, v in row.items()}
        metrics[f"{problem}_{label}_ratio"] = ratio
        if name in closed:
            metrics[f"{problem}_{label}_exact_variance"] = closed[name]
    size = metrics[f"{problem}_gradient"]
    text = f"{problem}, a gradient of norm {size:.4g}; ratio of the variance to that of {reference}\n{gm.lab.text_table(rows)}\n"
    print(text)
    (run.folder / f"{problem}.txt").write_text(text)


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_keys": 2_000, "dims": (1, 10), "temperatures": (0.2, 0.5, 1.0)})
