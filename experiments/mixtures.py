"""Classical densities beside flows: what a deep model must beat, and how much EM depends on its start.

python -m experiments.mixtures

On laws whose entropy is known: a mixture of Gaussians by EM (the best of several starts), the same mixture by gradients from
`init`, kernel estimates with Scott's rule and with the bandwidth of the greatest leave-one-out likelihood, an affine flow, which
is one Gaussian, and a spline flow. The spline flow is validated, since it can overfit.

Then EM many times, from starts as those of k-means++ and from rows drawn uniformly: where the log-likelihood ends.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.core.spread import spread_rows, uniform_rows
from genmod.models import KernelDensity, LeaveOneOut, mixture_of_gaussians
from genmod.training import fit_em

# Components of the mixture for each set.
SETS = {"two_bumps": 2, "eight_gaussians": 8, "two_moons": 16}
STARTS = {"k-means++": spread_rows, "uniform": uniform_rows}


@dataclasses.dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("two_bumps", "eight_gaussians", "two_moons")
    num_train: int = 5_000
    """Training points, a quarter as many to validate the spline flow."""
    num_test: int = 50_000
    num_restarts: int = 8
    """Starts of EM in the table."""
    num_starts: int = 100
    """Starts of each kind in the comparison of starts."""
    num_steps: int = 3_000
    """Of gradient training."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if unknown := [name for name in config.data if name not in SETS]:
        raise ValueError(f"--data must be some of {', '.join(SETS)}; got {', '.join(unknown)}")
    metrics: dict[str, Any] = {}
    for name in config.data:
        key = stream(jax.random.key(config.seed), name)
        data = load(name, stream(key, "data"), config.num_train)
        test = data.sample(stream(key, "test"), config.num_test)
        fits = models(config, data, SETS[name], key)
        rows = []
        for method, (model, params) in fits.items():
            found = gm.evaluate(model, params, test, true_log_prob=data.log_prob)
            rows.append({"data": name, "model": method} | row(found, data.entropy))
            metrics |= {f"{name}_{method}_{n}": found[n] for n in ("nll_nats", "nll_nats_sem", "gap_nats", "gap_nats_sem")}
        metrics[f"{name}_limit_nats"] = data.entropy
        print(gm.lab.text_table(rows), "\n")
        draw(run, name, data, fits)
    if "eight_gaussians" in config.data:
        metrics |= starts(config, run)
    return metrics


def load(name: str, key: jax.Array, num: int) -> gm.data.Dataset:
    if name == "two_bumps":  # unequal, so that one Gaussian is far off
        return gm.data.two_bumps(key, num, weights=(0.4, 0.6), means=(-2.0, 3.0), sds=(1.0, 0.7))
    return getattr(gm.data, name)(key, num)


def models(config: Config, data: gm.data.Dataset, num_components: int, key: jax.Array) -> dict[str, tuple[gm.Model, Any]]:
    """Every model with its parameters."""
    shape = data.event_shape
    mixture = mixture_of_gaussians(shape, num_components)
    found: dict[str, tuple[gm.Model, Any]] = {
        "mixture_em": (mixture, fit_em(mixture, data.train, key=stream(key, "em"), num_restarts=config.num_restarts).params),
        "mixture_gradient": (mixture, descent(config, mixture, data, stream(key, "gradient"))),
    }
    for name, model in {"kde_scott": KernelDensity(shape), "kde_leave_one_out": KernelDensity(shape, LeaveOneOut())}.items():
        found[name] = model, model.of_data(data.train)
    flows = {
        "affine_flow": gm.flows.affine(shape),
        "spline_flow": gm.flows.autoregressive_spline_flow(shape, hidden_sizes=config.hidden_sizes, num_layers=3),
    }
    return found | {name: (flow, descent(config, flow, data, stream(key, name))) for name, flow in flows.items()}


def descent(config: Config, model: gm.Model, data: gm.data.Dataset, key: jax.Array) -> Any:
    optimizer: optax.GradientTransformation = adam_with_cosine(5e-3, config.num_steps)
    return gm.fit(
        model,
        data.train,
        key=key,
        optimizer=optimizer,
        num_steps=config.num_steps,
        batch_size=512,
        validation=data.validation,
        progress=False,
    ).params


def row(found: dict[str, float], entropy: float | None) -> dict[str, Any]:
    """One line of the table: exact values in nats, +- standard errors."""
    return {
        "parameters": int(found["num_params"]),
        "test NLL (nats)": gm.lab.with_error(found["nll_nats"], found["nll_nats_sem"]),
        "exact limit": f"{entropy:.4f}",
        "gap": gm.lab.with_error(found["gap_nats"], found["gap_nats_sem"]),
    }


def starts(config: Config, run: gm.lab.Run) -> dict[str, float]:
    """Where EM ends from many starts, eight components for eight Gaussians."""
    key = stream(jax.random.key(config.seed), "starts")
    data = gm.data.eight_gaussians(stream(key, "data"), config.num_train)
    model = mixture_of_gaussians((2,), 8)
    ends = {}
    for name, choose in STARTS.items():
        one = dataclasses.replace(model, choose=choose)
        fit = fit_em(one, data.train, key=stream(key, name), num_restarts=config.num_starts, num_sweeps=1_000, tolerance=1e-7)
        ends[name] = np.asarray(fit.objectives, np.float64)
    best = max(end.max() for end in ends.values())
    metrics, rows = {}, []
    for name, end in ends.items():
        # An end that misses one of the eight is some tenths of a nat lower.
        share = float(np.mean(end > best - 0.01))
        metrics |= {f"{name}_share_of_best": share, f"{name}_worst_loss_nats": best - end.min()}
        metrics[f"{name}_median_loss_nats"] = best - float(np.median(end))
        quantiles = {f"{100 * q:.0f}%": f"{np.quantile(end, q):.4f}" for q in (0.0, 0.25, 0.5, 0.75, 1.0)}
        rows.append({"start": name, "starts": len(end)} | quantiles | {"within 0.01 of the best": f"{100 * share:.0f}%"})
    print("log-likelihood of the training data at the end of EM, nats per datum, by quantile of the starts")
    print(gm.lab.text_table(rows))
    lost = {f"{name} ({len(end)} starts)": best - end for name, end in ends.items()}
    gm.lab.plot.histograms(
        run.figure("starts"), lost, xlabel="below the best end of EM (nats per datum)", title="eight components, eight Gaussians"
    )
    return metrics


def draw(run: gm.lab.Run, name: str, data: gm.data.Dataset, fits: dict[str, tuple[gm.Model, Any]]) -> None:
    assert data.log_prob is not None
    if data.event_shape == (1,):
        line = np.linspace(-6.0, 6.0, 601, dtype=np.float32)
        curves = {"truth": np.exp(data.log_prob(jnp.asarray(line[:, None])))}
        curves |= {method: np.exp(model.log_prob(params, line[:, None])) for method, (model, params) in fits.items()}
        gm.lab.plot.lines(run.figure(name), line, curves, xlabel="x", ylabel="density", title=name)
        return
    for method, (model, params) in fits.items():
        title = f"{method} on {name}"
        log_prob_fn = jax.tree_util.Partial(model.log_prob, params)
        gm.lab.plot.density(run.figure(f"{name}_{method}"), log_prob_fn, data.test, title=title, true_log_prob_fn=data.log_prob)


if __name__ == "__main__":
    few = {"num_train": 2_000, "num_test": 10_000, "num_restarts": 3, "num_starts": 20, "num_steps": 500, "hidden_sizes": (32,)}
    gm.lab.main(experiment, Config, quick=few)
