"""One energy network in the plane, trained in several ways: its exact test NLL, with log Z by quadrature.

python -m experiments.ebm                            two moons
python -m experiments.ebm --data eight_gaussians
python -m experiments.ebm --data checkerboard

The network tilts a broad Gaussian, so that Z is finite:

    replay         contrast with Langevin chains from a replay buffer
    nce_gaussian   noise-contrastive estimation, the noise being that Gaussian
    nce_flow       noise-contrastive estimation, the noise being a spline flow that was fitted before
    nce_on_flow    the same, but the network tilts that flow, too
    explicit       score matching with the exact divergence of the score
    sliced         score matching with one random direction for each point
    denoising      score matching of the data blurred by a little noise
    flow           no energy network but that spline flow; the quadrature must find log Z = 0

Only noise-contrastive estimation learns log Z, as one more parameter; it stands beside that of the quadrature.

The plane is cut into parts with equal shares of the data, one for each moon, Gaussian or square. By the chain rule the gap,
KL(p || q), is the KL of these shares plus the mean KL within the parts; the first stands beside the gap.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from scipy.special import rel_entr

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream
from genmod.models import EnergyModel, NoiseContrastive
from genmod.training import ContrastiveStep, ReplayChains

Method = Literal["replay", "nce_gaussian", "nce_flow", "nce_on_flow", "explicit", "sliced", "denoising"]


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["two_moons", "eight_gaussians", "checkerboard"] = "two_moons"
    methods: tuple[Method, ...] = ("replay", "nce_gaussian", "nce_flow", "nce_on_flow", "explicit", "sliced", "denoising")
    hidden_sizes: tuple[int, ...] = (64, 64, 64)
    """Of the energy network."""
    base_scale: float = 1.5
    """Of the Gaussian that the network tilts, in standard deviations of the data."""
    num_train: int = 100_000
    """A quarter as many points to validate, and to test."""
    num_steps: int = 5_000
    """Of training the energy network, in every way."""
    batch_size: int = 256
    learning_rate: float = 5e-3
    """Of Adam; it falls to zero along a cosine."""
    replay_learning_rate: float = 2e-3
    """The same, of the chains, which must keep up with the parameters."""
    ema_decay: float = 0.99
    num_chains: int = 10_000
    """In the replay buffer; batch_size of them move in a step."""
    restart_rate: float = 0.002
    """The probability that one of these begins anew."""
    chain_steps: int = 10
    """Langevin steps of these chains in one step of training."""
    step_size: float = 0.01
    """e of Langevin's x + e score + sqrt(2 e) z, in variances of the data."""
    num_noise: int = 2
    """Draws of noise for each point of a batch, in noise-contrastive estimation."""
    sigma: float = 0.05
    """Of the noise of denoising score matching, in units of the least standard deviation of the data."""
    num_flow_steps: int = 2_000
    num_cells: int = 600
    """Of the quadrature along an axis; a multiple of 8."""
    num_draws: int = 2_000
    """Ends of chains in the figure."""
    num_sweeps: int = 1_000
    """Langevin steps of these chains, which begin at draws of the Gaussian."""
    split: Literal["validation", "test"] = "test"
    """The points on which models are measured."""
    seed: int = 0


class Trained(NamedTuple):
    """What a method ends with; `learned`: the log Z that it learned, None where it learns none."""

    model: gm.Model
    params: Any
    seconds: float
    learned: float | None = None


class Grid(NamedTuple):
    """The midpoint rule in the plane.

    Attributes:
      points, areas: of the cells, (m, 2) and (m,); the first `num`^2 are those of the inner box, the last `num_outer` those that
        only the widest box has.
      low, high: the corners of the inner box, (2,) each.
    """

    points: np.ndarray
    areas: np.ndarray
    num: int
    num_outer: int
    low: np.ndarray
    high: np.ndarray


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    if config.num_cells < 8 or config.num_cells % 8:
        raise ValueError(f"--num-cells must be a positive multiple of 8, got {config.num_cells}")
    key = jax.random.key(config.seed)
    data = getattr(gm.data, config.data)(stream(key, "data"), config.num_train)
    x, true_log_prob = getattr(data, config.split), cast(Callable, data.log_prob)
    low, high = np.asarray(data.train).min(0), np.asarray(data.train).max(0)
    grids = [nested_grid(low, high, num) for num in (config.num_cells, config.num_cells // 2)]
    inner = grids[0].num ** 2
    metrics: dict[str, Any] = {"model": "ebm", "data": config.data, "num_points": len(x), "limit_nats": data.entropy}
    rows, shown = [], {"truth": (np.asarray(true_log_prob(grids[0].points[:inner])), x[: config.num_draws])}
    for name, trained in train_all(config, run, data, key).items():
        log_prob, measured = measure(trained, grids, x, np.asarray(true_log_prob(x), np.float64), PARTS[config.data])
        rows.append(line(name, trained.seconds, measured, data.entropy))
        metrics |= {f"{name}_{what}": value for what, value in measured.items()}
        draws = trained.model.sample(trained.params, stream(key, f"draws of {name}"), (config.num_draws,))
        shown[name] = log_prob[:inner], draws
    print(gm.lab.text_table(rows))
    error, outer = (max(v for name, v in metrics.items() if name.endswith(end)) for end in ("error_nats", "outer_mass"))
    print(f"cells twice as wide change log Z by at most {error:.1e} nats; the widest box adds a mass of at most {outer:.1e}")
    (run.folder / "table.txt").write_text(gm.lab.text_table(rows) + "\n")
    panels = {name: (log_prob.reshape(config.num_cells, -1), points) for name, (log_prob, points) in shown.items()}
    gm.lab.panels.densities(run.figure("densities"), panels, grids[0].low, grids[0].high, title=config.data)
    return metrics


def train_all(config: Config, run: gm.lab.Run, data: gm.data.Dataset, key: jax.Array) -> dict[str, Trained]:
    """Every method by its name, the flow last."""

    def fit(name: str, model: gm.Model, **options: Any) -> tuple[Any, float]:
        begun = time.perf_counter()
        found = gm.fit(
            model,
            data.train,
            key=stream(key, name),
            batch_size=config.batch_size,
            checkpoint=run.folder / f"checkpoint_{name}",
            log=run.log.with_name(f"log_{name}.jsonl"),
            **options,
        )
        return found.params, time.perf_counter() - begun

    gaussian = gm.flows.affine((2,), base=gm.densities.Normal((2,), config.base_scale))
    flow = gm.flows.neural_spline_flow((2,), 4, hidden_sizes=(64, 64))
    num, model = config.num_flow_steps, energy_model(config, gaussian)
    of_flow, flow_seconds = fit("flow", flow, num_steps=num, optimizer=adam_with_cosine(2e-3, num), clip_norm=5.0)
    adam = adam_with_cosine(config.learning_rate, config.num_steps)
    average = {"num_steps": config.num_steps, "ema_decay": config.ema_decay}
    found = {}
    for name in config.methods:
        if name == "replay":
            chains = ReplayChains(config.num_chains, config.batch_size, config.restart_rate, config.chain_steps)
            slower = adam_with_cosine(config.replay_learning_rate, config.num_steps)
            step = ContrastiveStep(model, slower, chains, ema_decay=config.ema_decay)
            found[name] = Trained(model, *fit(name, model, step=step, num_steps=config.num_steps))
        elif name in ("explicit", "sliced", "denoising"):
            loss_fn = gm.call(score_loss, model, name, config.sigma)
            found[name] = Trained(model, *fit(name, model, loss_fn=loss_fn, optimizer=adam, clip_norm=10.0, **average))
        else:
            tilting = energy_model(config, flow) if name == "nce_on_flow" else model
            learner = NoiseContrastive(tilting, gaussian if name == "nce_gaussian" else flow, config.num_noise)
            start = learner.init(stream(key, f"start of {name}"), data.train)
            if name != "nce_gaussian":
                start["noise"] = gm.Fixed(of_flow)
            if name == "nce_on_flow":
                start["model"]["base"] = gm.Fixed(of_flow)
            params, seconds = fit(name, learner, params=start, optimizer=adam, **average)
            found[name] = Trained(tilting, params["model"], seconds, float(params["log_normalizer"]))
    return found | {"flow": Trained(flow, of_flow, flow_seconds)}


def energy_model(config: Config, base: gm.models.Flow) -> EnergyModel:
    """A perceptron that tilts `base`; it begins at zero, hence the model at the base."""
    network = gm.nets.ZeroHead(gm.nets.MLP(config.hidden_sizes, jax.nn.silu), 1)
    return EnergyModel((2,), network, base, step_size=config.step_size, num_sweeps=config.num_sweeps)


def score_loss(
    model: EnergyModel, name: Method, sigma: float, params: Any, key: jax.Array, batch: Any, *, step: Any = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A loss of the model's score, in the place of its own."""
    x, _, weight = model.read(batch)
    score_fn = functools.partial(model.score_one, params)
    if name == "denoising":
        sigma = sigma * params["units"].constant["scale"].min()
        return gm.losses.denoising_score_matching(score_fn, x, key, sigma=sigma, weight=weight)
    if name == "sliced":
        return gm.losses.sliced_score_matching(score_fn, x, key, weight=weight)
    return gm.losses.explicit_score_matching(score_fn, x, weight=weight)


def nested_grid(low: np.ndarray, high: np.ndarray, num: int, num_boxes: int = 4) -> Grid:
    """A box a tenth wider than from low to high, in boxes 2, 4, 8, ... times as wide.

    Each is cut into num x num cells, num a multiple of 4, and gives those that are not in the box within it.
    """
    center, half = (np.asarray(high, np.float64) + low) / 2, 0.55 * (np.asarray(high, np.float64) - low)
    middles = (np.arange(num) + 0.5) * 2 / num - 1
    box = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2)
    rim = box[np.abs(box).max(1) > 0.5]
    layers = [box] + [2.0**k * rim for k in range(1, num_boxes)]
    cell = (2 / num) ** 2 * half.prod()
    areas = np.concatenate([np.full(len(layer), 4.0**k * cell) for k, layer in enumerate(layers)])
    points = (center + half * np.concatenate(layers)).astype(np.float32)
    return Grid(points, areas, num, len(rim), center - half, center + half)


def measure(
    trained: Trained, grids: list[Grid], x: Any, true_log_prob: np.ndarray, parts: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, dict[str, float]]:
    """(log q at the points of the first grid, what the table shows of it).

    Args:
      trained: a model with its parameters.
      grids: a fine one and a coarse one, whose log Z tells how far that of the first may be trusted.
      x, true_log_prob: draws of p and log p of them, (n, 2) and (n,).
      parts: points (m, 2) -> the part of the plane in which each lies.
    """
    log_f = [np.asarray(trained.model.log_prob(trained.params, grid.points), np.float64) for grid in grids]
    log_z, coarse = (log_normalizer(values, grid) for values, grid in zip(log_f, grids, strict=True))
    log_prob, outer = log_f[0] - log_z, slice(-grids[0].num_outer, None)
    found = {"num_params": gm.num_params(trained.params), "log_normalizer_nats": log_z}
    found |= {} if trained.learned is None else {"learned_log_normalizer_nats": trained.learned}
    found |= {"quadrature_error_nats": abs(coarse - log_z), "outer_mass": float(np.exp(log_prob[outer]) @ grids[0].areas[outer])}
    found |= gaps(np.asarray(trained.model.log_prob(trained.params, x), np.float64) - log_z, true_log_prob)
    return log_prob, found | shares(log_prob, grids[0], parts)


def log_normalizer(log_f: np.ndarray, grid: Grid) -> float:
    """log of the integral of f, from log f at the points of a grid."""
    largest = log_f.max()
    return float(largest + np.log(np.exp(log_f - largest) @ grid.areas))


def gaps(log_prob: np.ndarray, true_log_prob: np.ndarray) -> dict[str, float]:
    """NLL and gap with their standard errors, from log q and log p at the same draws of p."""
    found = {"nll_nats": gm.metrics.mean_and_sem(-log_prob), "gap_nats": gm.metrics.mean_and_sem(true_log_prob - log_prob)}
    return {f"{name}{end}": float(pair[i]) for name, pair in found.items() for i, end in enumerate(("", "_sem"))}


def shares(log_prob: np.ndarray, grid: Grid, parts: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """The least and the greatest mass of the parts of the plane, and KL(equal shares || these masses)."""
    mass = np.bincount(parts(grid.points), np.exp(log_prob) * grid.areas)
    kl = float(rel_entr(1 / len(mass), mass).sum())
    return {"least_share": float(mass.min()), "greatest_share": float(mass.max()), "shares_kl_nats": kl}


def line(name: str, seconds: float, measured: dict[str, float], entropy: float | None) -> dict[str, Any]:
    """A row of the table."""
    learned = measured.get("learned_log_normalizer_nats")
    return {
        "method": name,
        "seconds": f"{seconds:.0f}",
        "log Z": measured["log_normalizer_nats"],
        "learned log Z": "" if learned is None else learned,
        "NLL (nats)": gm.lab.with_error(measured["nll_nats"], measured["nll_nats_sem"]),
        "limit": entropy,
        "gap": gm.lab.with_error(measured["gap_nats"], measured["gap_nats_sem"]),
        "of it by shares": measured["shares_kl_nats"],
        "shares": f"{measured['least_share']:.3f} to {measured['greatest_share']:.3f}",
    }


def nearest_moon(x: np.ndarray) -> np.ndarray:
    """0 of points that are nearer to the upper half circle, else 1."""

    def distance(x):  # from (cos t, sin t), 0 <= t <= pi
        return np.where(x[:, 1] >= 0, np.abs(np.hypot(*x.T) - 1), np.hypot(np.abs(x[:, 0]) - 1, x[:, 1]))

    return (distance(x) > distance(np.array([1.0, 0.5]) - x)).astype(int)


def nearest_gaussian(x: np.ndarray) -> np.ndarray:
    """Which of the eight, by the angle."""
    return np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8


def half_column(x: np.ndarray) -> np.ndarray:
    """Which half of which of the four columns of the board: there is one dark square in each."""
    column = np.clip(np.floor(x[:, 0] / 2), -2, 1).astype(int) + 2
    return 2 * column + (x[:, 1] >= 0)


PARTS = {"two_moons": nearest_moon, "eight_gaussians": nearest_gaussian, "checkerboard": half_column}


if __name__ == "__main__":
    quick: dict = {"methods": ("replay", "nce_gaussian", "nce_flow", "explicit"), "num_train": 20_000, "num_steps": 500}
    quick |= {"num_flow_steps": 500, "num_cells": 200, "num_draws": 1_000, "num_sweeps": 200}
    gm.lab.main(experiment, Config, quick=quick)
