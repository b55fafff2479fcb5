"""Flow matching between two laws in the plane: how paths and couplings differ, and what they cost to sample.

python -m experiments.flow_matching                                              normal to moons, OT-CFM
python -m experiments.flow_matching --pair moons_eight_gaussians --method icfm   another pair, another method
python -m experiments.flow_matching --method rectified                           and a round of reflow, and a one-step student

Protocol: the laws are those of torchcfm (moons evenly spaced, with diagonal uniform noise .2, times 3, minus 1; eight
Gaussians of sd .1^(1/4) on a circle of radius 5); a field of 3 x 128 silu units; Adam with a cosine schedule; fresh draws of
source and target in every step. W2 is the exact distance of 10,000 model samples (dopri5, tolerance 1e-5) to 10,000 draws of
the target, printed beside its floor, that of two samples of the target (evenly spaced ones where the target is the moons:
the independent draws of a model scatter more, and cannot reach it; where the moons are the source, a model starts from
independent draws of them). NPE = |E int |v|^2 dt - W2^2(source, target)| /
W2^2(source, target) over such draws. Straightness = E int |v|^2 dt - E|x - z|^2, 0 for straight paths at constant speed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.batching import vmap_events
from genmod.core.keys import stream

EIGHT = gm.data.EightGaussians(5.0, 0.1**0.25)
Pair = Literal["normal_moons", "normal_eight_gaussians", "moons_eight_gaussians"]
Method = Literal["otcfm", "otcfm_sinkhorn", "icfm", "fm", "vp", "trigonometric", "rectified"]
METHODS = {
    "otcfm": (gm.transport.Linear(), gm.transport.ExactAssignment()),
    "otcfm_sinkhorn": (gm.transport.Linear(), gm.transport.Sinkhorn()),
    "icfm": (gm.transport.Linear(), gm.transport.Independent()),
    "fm": (gm.transport.OptimalTransport(sigma_min=0.01), gm.transport.Independent()),
    "vp": (gm.transport.Scheduled(gm.denoising.VariancePreserving()), gm.transport.Independent()),
    "trigonometric": (gm.transport.Trigonometric(), gm.transport.Independent()),
    "rectified": (gm.transport.Linear(), gm.transport.Independent()),
}
EULER_STEPS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Config:
    pair: Pair = "normal_moons"
    """Source and target."""
    method: Method = "otcfm"
    """A path and a coupling; `rectified` is icfm followed by one round of reflow on pairs of its own, and by distillation."""
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    num_steps: int = 8_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at zero."""
    num_eval: int = 10_000
    """Samples for W2 and the path energy."""
    num_eval_euler: int = 2_000
    """Samples for the curve of W2 against the number of Euler steps."""
    num_pairs: int = 100_000
    """Pairs for reflow."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Fresh:
    """The loss of a model on a batch of the target drawn afresh, for `gm.fit` without data."""

    model: gm.models.FlowMatching
    pair: Pair
    batch_size: int

    def __call__(self, params, key, batch, *, step=None):
        data_key, loss_key = jax.random.split(key)
        return self.model.loss(params, loss_key, draws(self.pair)[1](data_key, self.batch_size))


def moons(key: jax.Array, num: int) -> jax.Array:
    """torchcfm's two moons, (num, 2): evenly spaced half circles moved along the diagonal by U(0, .2), times 3, minus 1."""
    angle = jnp.concatenate([jnp.linspace(0.0, jnp.pi, num // 2), jnp.linspace(0.0, jnp.pi, num - num // 2)])
    return on_moons(angle, jnp.arange(num) < num // 2, jax.random.uniform(key, (num,)))


def one_of_moons(key: jax.Array) -> jax.Array:
    """One point of the moons, at a random angle."""
    keys = jax.random.split(key, 3)
    return on_moons(jnp.pi * jax.random.uniform(keys[0]), jax.random.bernoulli(keys[1]), jax.random.uniform(keys[2]))


def on_moons(angle: jax.Array, outer: jax.Array, along: jax.Array) -> jax.Array:
    x = jnp.where(outer, jnp.cos(angle), 1.0 - jnp.cos(angle)) + 0.2 * along
    y = jnp.where(outer, jnp.sin(angle), 0.5 - jnp.sin(angle)) + 0.2 * along
    return 3.0 * jnp.stack([x, y], -1) - 1.0


SOURCES = {"normal": gm.densities.Normal((2,)), "moons": gm.densities.FromFunctions((2,), one_of_moons)}
DRAWS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "normal": functools.partial(SOURCES["normal"].sample, {}),
    "moons": moons,
    "eight_gaussians": functools.partial(EIGHT.sample, {}),
}


def draws(pair: Pair) -> tuple[Callable[[jax.Array, int], jax.Array], Callable[[jax.Array, int], jax.Array]]:
    """(key, n) -> n points, (n, 2), of the source and of the target."""
    source, target = pair.split("_", 1)
    return DRAWS[source], DRAWS[target]


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    source, target = draws(config.pair)
    if config.method in ("fm", "vp") and config.pair.startswith("moons"):
        raise ValueError(f"--method {config.method} starts from the normal law, --pair {config.pair} does not")
    model = build(config)
    params = model.init(stream(key, "init"), target(stream(key, "example"), 256))
    loss = Fresh(model, config.pair, config.batch_size)
    optimizer = adam_with_cosine(config.learning_rate, config.num_steps)
    options = {"optimizer": optimizer, "num_steps": config.num_steps, "batch_size": config.batch_size}
    fit = gm.fit(
        model, None, key=stream(key, "fit"), loss_fn=loss, params=params, checkpoint=run.checkpoint, log=run.log, **options
    )
    trained = {config.method: fit.params}
    if config.method == "rectified":
        trained = {"first": fit.params, **rectify(config, model, fit.params, stream(key, "reflow"), run, options)}
    metrics: dict[str, Any] = {"model": config.method, "pair": config.pair, "num_params": gm.num_params(params)}
    curves, rows = {}, []
    for name, params in trained.items():
        # The student is made for one Euler step: its whole path matters less.
        num = config.num_eval_euler if name == "one_step" else config.num_eval
        found, curves[name] = measure(config, model, params, stream(key, "evaluate"), num)
        rows.append({"model": name, **found})
        metrics |= found if name in (config.method, "reflow") else {f"{name}_{k}": v for k, v in found.items()}
    print(gm.lab.text_table(rows))
    reference = {"floor": [metrics["w2_floor_euler"]] * len(EULER_STEPS)}
    gm.lab.plot.lines(
        run.figure("samples_against_nfe"),
        EULER_STEPS,
        reference | {name: curve for name, curve in curves.items() if name != "one_step"},
        xlabel="Euler steps = evaluations of the field",
        ylabel="W2 to the target",
        title=f"{config.method}, {config.pair}",
        log=True,
    )
    z = source(stream(key, "paths"), 300)
    # The one-step student has no path to speak of: its field is trained at t = 0 only.
    paths = {name: trajectories(model, params, z) for name, params in trained.items() if name != "one_step"}
    gm.lab.plot.trajectories(run.figure("trajectories"), paths, title=f"{config.method}, {config.pair}")
    return metrics


def build(config: Config) -> gm.models.FlowMatching:
    path, coupling = METHODS[config.method]
    return gm.flows.flow_matching(
        (2,),
        path=path,
        coupling=coupling,
        hidden_sizes=config.hidden_sizes,
        base=SOURCES[config.pair.split("_", 1)[0]],
        standardize=False,
        track_energy=True,
    )


def rectify(config: Config, model, params, key, run: gm.lab.Run, options: dict[str, Any]) -> dict[str, Any]:
    """Parameters after a round of reflow on pairs of the first model, and of a one-step student of the second's pairs."""
    rounds = {}
    for name, one_step in (("reflow", False), ("one_step", True)):
        pairs = gm.models.Reflow(model).sample(params, stream(key, f"{name} pairs"), (config.num_pairs,))
        student = gm.models.Reflow(model, one_step)
        folder = run.folder / f"checkpoint_{name}"
        fit = gm.fit(student, pairs, key=stream(key, name), params=params, checkpoint=folder, **options)
        params = rounds[name] = fit.params
    return rounds


def measure(config: Config, model: gm.models.FlowMatching, params: Any, key, num: int) -> tuple[dict[str, float], list[float]]:
    """W2 of `num` samples with its floor, NPE, straightness, NFE; and W2 after 1, 2, 4, ... Euler steps."""
    ends = evaluation_sets(config.pair, num, config.seed)
    samples, info = model.sample_with_info(params, stream(key, "samples"), num)
    start = model.base.sample({}, stream(key, "samples"), (num,))
    energy = float(info["kinetic_energy"].mean())
    moved = float(jnp.sum((samples - start) ** 2, 1).mean())
    found = {
        "w2": gm.metrics.wasserstein(samples, ends["target"]),
        "w2_floor": ends["floor"],
        "npe": abs(energy - ends["w2_squared"]) / ends["w2_squared"],
        "path_energy": energy,
        "w2_squared_source_target": ends["w2_squared"],
        "straightness": energy - moved,
        "nfe": float(info["nfe"].mean()),
        "failed": float(info["failed_solves"].sum()),
    }
    few = evaluation_sets(config.pair, config.num_eval_euler, config.seed)
    euler = [euler_w2(model, params, stream(key, "samples"), few["target"], steps) for steps in EULER_STEPS]
    found |= {f"w2_euler_{steps}": value for steps, value in zip(EULER_STEPS, euler, strict=True)}
    return found | {"w2_floor_euler": few["floor"]}, euler


def euler_w2(model, params, key, target, num_steps: int) -> float:
    cnf = dataclasses.replace(model.cnf, integrator=gm.dynamics.FixedSteps(num_steps, diffrax.Euler()), track=())
    stepped = dataclasses.replace(model, cnf=cnf)
    return gm.metrics.wasserstein(stepped.sample(params, key, (len(target),)), target)


@functools.cache  # every method of a pair and seed is measured on the same draws
def evaluation_sets(pair: Pair, num: int, seed: int) -> dict[str, Any]:
    source, target = draws(pair)
    key = stream(jax.random.key(seed), f"evaluation sets {num}")
    ends, other = (np.asarray(target(stream(key, "target", i), num)) for i in range(2))
    start = np.asarray(source(stream(key, "source"), num))
    squared = gm.metrics.wasserstein(start, ends) ** 2
    return {"target": ends, "floor": gm.metrics.wasserstein(other, ends), "w2_squared": squared}


def trajectories(model: gm.models.FlowMatching, params: Any, z: jax.Array) -> np.ndarray:
    path = functools.partial(model.cnf.trajectory, model.field_params(params), num_times=40)
    return np.asarray(jax.jit(vmap_events(path))(z))


if __name__ == "__main__":
    quick = {"num_steps": 1_000, "num_eval": 1_000, "num_eval_euler": 1_000, "hidden_sizes": (64, 64), "num_pairs": 10_000}
    gm.lab.main(experiment, Config, quick=quick)
