"""Score SDEs side by side: variance exploding, variance preserving and sub-VP diffusions of one toy set (Song et al. 2021).

python -m experiments.score_sde                            two moons of noise 0.05
python -m experiments.score_sde --data eight_gaussians     another set in the plane with an exact density

For each schedule one network is trained by denoising. Reported: the exact test NLL by the probability flow beside the entropy of
the data, the variational bound, the Wasserstein distance W2 of samples by several samplers beside that of a fresh sample of the
data, and the weights of the modes. Figures: forward and reverse paths, samples, densities.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments import density
from experiments.common import adam_with_cosine
from genmod.core.keys import stream

SCHEDULES = {
    "ve": gm.denoising.VarianceExploding(0.01, 10.0),
    "vp": gm.denoising.VariancePreserving(),
    "sub_vp": gm.denoising.SubVariancePreserving(),
}
SAMPLERS: dict[str, Any] = {
    "probability flow": gm.denoising.ReverseODE(),
    "Heun, 50": gm.denoising.Steps(gm.denoising.Heun(), gm.denoising.LogSNRGrid(50), denoise=False),
    "DPM-Solver++, 50": gm.denoising.Steps(gm.denoising.DPMSolverPlusPlus(), gm.denoising.LogSNRGrid(50), denoise=False),
    "reverse SDE, 500": gm.denoising.Steps(gm.denoising.EulerMaruyama(), gm.denoising.LogSNRGrid(500), denoise=False),
    "corrected SDE, 250": gm.denoising.Steps(gm.denoising.PredictorCorrector(), gm.denoising.LogSNRGrid(250), denoise=False),
}


def nearest_moon(x: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x[:, 0] - 1, x[:, 1] - 0.5) - 1) < np.abs(np.hypot(x[:, 0], x[:, 1]) - 1)


def nearest_of_eight(x: np.ndarray) -> np.ndarray:
    return np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)) % 8


def dark_square(x: np.ndarray) -> np.ndarray:
    """Four columns, each of one dark square below and one above zero."""
    return 2 * (np.clip(np.floor(x[:, 0] / 2), -2, 1) + 2) + (x[:, 1] > 0)


MODES = {"moons": (nearest_moon, 2), "eight_gaussians": (nearest_of_eight, 8), "checkerboard": (dark_square, 8)}
"""Which of so many equally likely modes a point belongs to."""


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "moons"
    """`moons` (noise 0.05), or a toy set of `experiments.density` in the plane."""
    schedules: tuple[str, ...] = ("ve", "vp", "sub_vp")
    kind: gm.denoising.Kind = "v"
    """What the network predicts."""
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    num_steps: int = 20_000
    batch_size: int = 512
    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at zero."""
    ema_decay: float = 0.999
    num_train: int = 100_000
    num_test: int = 20_000
    num_samples: int = 2_000
    """Samples in each Wasserstein distance."""
    num_distances: int = 5
    """Distances, of fresh samples each, whose mean is reported."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = load(config, stream(key, "data"))
    test = data.sample(stream(key, "test"), config.num_test)
    num = config.num_distances * config.num_samples
    fresh, other = (data.sample(stream(key, name), num) for name in ("one", "other"))
    metrics: dict[str, Any] = {"model": "score_sde", "data": data.name, "limit_nats": data.entropy}
    metrics |= {"w2_floor": (floor := w2(config, fresh, other))[0], "w2_floor_sem": floor[1]}
    distances = [{"sampler": "fresh data"} | dict.fromkeys(config.schedules, gm.lab.with_error(*floor))]
    distances += [{"sampler": name} for name in SAMPLERS]
    tables: dict[str, list[dict[str, Any]]] = {"likelihoods": [], "distances": distances, "modes": []}
    for name in config.schedules:
        model = build(config, name)
        fit = train(config, run, name, model, data, stream(key, f"fit {name}"))
        found = likelihoods(model, fit.params, data, test, stream(key, f"bound {name}"))
        metrics |= {f"{name}_{k}": v for k, v in found.items()}
        tables["likelihoods"].append(likelihood_row(name, data, found))
        drawn = {}
        for row, (label, sampler) in zip(distances[1:], SAMPLERS.items(), strict=True):
            sampled = dataclasses.replace(model, sampler=sampler)
            drawn[label] = sampled.sample(fit.params, stream(key, f"{name} {label}"), num)
            distance, sem = w2(config, drawn[label], fresh)
            metrics |= {f"{name}_w2_{label}": distance, f"{name}_w2_{label}_sem": sem}
            row[name] = gm.lab.with_error(distance, sem)
        if config.data in MODES:
            modes = [{"schedule": name, "samples": label} | shares(config.data, x) for label, x in drawn.items()]
            metrics[f"{name}_mode_chi2"] = max(row["chi^2 / (modes - 1)"] for row in modes)
            tables["modes"] += modes
        draw(run, name, data, model, fit, test, drawn["reverse SDE, 500"], stream(key, "draw"))
    first = config.schedules[0]
    metrics |= {k: metrics[f"{first}_{k}"] for k in ("num_params", "nll_nats", "nll_nats_sem", "gap_nats", "gap_nats_sem")}
    for title, table in tables.items():
        if table:
            print(f"\n{gm.lab.text_table(table)}")
            (run.folder / f"{title}.txt").write_text(gm.lab.text_table(table) + "\n")
    return metrics


def train(config: Config, run: gm.lab.Run, name: str, model: gm.models.Diffusion, data: gm.data.Dataset, key) -> gm.Fit:
    return gm.fit(
        model,
        data.train,
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        ema_decay=config.ema_decay,
        validation=data.validation,
        validate_every=min(1_000, config.num_steps),
        checkpoint=run.folder / f"checkpoint_{name}",
        log=run.log.with_name(f"log_{name}.jsonl"),
    )


def likelihoods(model: gm.models.Diffusion, params: Any, data: gm.data.Dataset, test: jax.Array, key) -> dict[str, Any]:
    """By the flow, beside the truth, and by the bound."""
    bounded = dataclasses.replace(model, bound=gm.models.Bound(num_times=256))
    return gm.evaluate(model, params, test, true_log_prob=data.log_prob) | gm.evaluate(bounded, params, test, key=key)


def likelihood_row(name: str, data: gm.data.Dataset, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    nll, gap, bound = (gm.lab.with_error(found[k], found[f"{k}_sem"]) for k in ("nll_nats", "gap_nats", "nll_upper_bound_nats"))
    return {
        "schedule": name,
        "test NLL (nats)": nll,
        "limit": f"{data.entropy:.4f}",
        "gap (nats)": gap,
        "variational bound": bound,
    }


def shares(data: str, x: jax.Array) -> dict[str, float]:
    """How often the modes occur among draws, and chi^2 of their counts over its degrees of freedom: about 1 for right weights."""
    label, num = MODES[data]
    counts = np.bincount(label(np.asarray(x)).astype(int), minlength=num)
    expected = len(x) / num
    chi2 = ((counts - expected) ** 2 / expected).sum() / (num - 1)
    found = {"rarest": counts.min() / len(x), "most frequent": counts.max() / len(x), "chi^2 / (modes - 1)": chi2}
    return {"modes": num} | {name: float(value) for name, value in found.items()}


def load(config: Config, key: jax.Array) -> gm.data.Dataset:
    if config.data == "moons":
        return gm.data.two_moons(key, config.num_train, noise=0.05)
    if config.data not in density.TOYS:
        raise ValueError(f"--data must be moons or one of {', '.join(density.TOYS)}, got {config.data!r}")
    data = density.TOYS[config.data](key, config.num_train)
    if data.event_shape != (2,):
        raise ValueError(f"--data must be a set in the plane, got {config.data!r} with events {data.event_shape}")
    return data


def build(config: Config, name: str) -> gm.models.Diffusion:
    if name not in SCHEDULES:
        raise ValueError(f"--schedules must be among {', '.join(SCHEDULES)}, got {name!r}")
    return gm.flows.diffusion((2,), schedule=SCHEDULES[name], kind=config.kind, hidden_sizes=config.hidden_sizes)


def w2(config: Config, x: jax.Array, y: jax.Array) -> tuple[float, float]:
    """The Wasserstein distance of order 2 between samples, exactly: mean of `num_distances` and its standard error."""
    pairs = zip(np.split(np.asarray(x), config.num_distances), np.split(np.asarray(y), config.num_distances), strict=True)
    mean, sem = gm.metrics.mean_and_sem(np.array([float(gm.metrics.wasserstein(a, b)) for a, b in pairs]))
    return float(mean), float(sem)


def draw(run: gm.lab.Run, name: str, data: gm.data.Dataset, model, fit: gm.Fit, test, drawn, key) -> None:
    title = f"{name} diffusion of {data.name}"
    log_prob = functools.partial(model.log_prob, fit.params)
    gm.lab.plot.density(run.figure(f"density_{name}"), log_prob, test, title=title, true_log_prob_fn=data.log_prob, num=100)
    gm.lab.plot.samples(run.figure(f"samples_{name}"), test, drawn, title=title)
    schedule, num = model.predictor.schedule, 12
    denoiser = functools.partial(model.denoise, fit.params)
    keys = jax.random.split(key, 3)
    latent = jax.vmap(model.data_side.inverse, (None, 0))(fit.params["bijector"][1], test[:num])
    times = SAMPLERS["reverse SDE, 500"].grid.times(schedule)
    paths = {"forward SDE": noised(schedule, times[::-1], latent, keys[0])}
    noise = model.base.sample({}, keys[1], (num,))
    for label in ("reverse SDE, 500", "Heun, 50"):
        run_all = jax.jit(
            jax.vmap(lambda key, x, sampler=SAMPLERS[label]: sampler.trajectory(key, denoiser, schedule, x), out_axes=(None, 0))
        )
        times, states = run_all(jax.random.split(keys[2], num), noise)
        paths[label.split(",")[0]] = unit(schedule, times, states)
    gm.lab.plot.trajectories(run.figure(f"paths_{name}"), paths, title=f"{title}: paths, scaled to unit variance")


def noised(schedule: gm.denoising.Schedule, times: np.ndarray, x0: jax.Array, key: jax.Array) -> jax.Array:
    """Paths of the forward SDE from x0, (n, D), by its transitions between rising times: (n, times, D), of unit variance."""
    t = jnp.asarray(times, x0.dtype)
    keys = jax.random.split(key, len(times))
    first = schedule.perturb(t[0], x0, jax.random.normal(keys[0], x0.shape, x0.dtype))

    def step(x, each):
        key, s, t = each
        scale, std = schedule.transition(s, t)
        x = scale * x + std * jax.random.normal(key, x.shape, x.dtype)
        return x, x

    _, states = jax.lax.scan(step, first, (keys[1:], t[:-1], t[1:]))
    return unit(schedule, t, jnp.concatenate([first[None], states]).swapaxes(0, 1))


def unit(schedule: gm.denoising.Schedule, times: jax.Array, states: jax.Array) -> jax.Array:
    """States (n, times, D) over sqrt(alpha^2 + sigma^2): of variance one where that of the data is."""
    return states / jnp.sqrt(schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2)[None, :, None]


if __name__ == "__main__":
    small = {"num_train": 5_000, "num_test": 500, "num_samples": 200, "num_distances": 2}
    gm.lab.main(experiment, Config, quick={"num_steps": 500, "hidden_sizes": (64, 64), **small})
