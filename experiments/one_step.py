"""From noise to data in one evaluation: MeanFlow and consistency models, beside the flow and the diffusion they stand on.

python -m experiments.one_step                   normal to moons, the laws and the networks of experiments.flow_matching
python -m experiments.one_step --data digits     scikit-learn's digits, as 64 real numbers

Protocol of the moons: that of experiments.flow_matching, three hidden layers of 128 silu units for all, fresh draws in every
step, W2 of `num_eval` samples to as many draws of the target beside its floor. `flow` is OT-CFM by Euler steps; `diffusion` is
EDM's, by DDIM and by Heun, whose steps cost two evaluations; `mean flow` has the path and the coupling of the flow,
`consistency training` the schedule of the diffusion, and `consistency distillation` the diffusion itself as its teacher. All
are averages of their parameters. Digits: levels with uniform noise; sliced W2, MMD^2, precision and recall of five times as many
samples as there are test images, to these; the floor is that of training images.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments import flow_matching
from experiments.common import adam_with_cosine
from genmod import denoising
from genmod.core.keys import stream

PAIR = "normal_moons"
STUDENTS = {"mean flow": "flow", "consistency training": "diffusion", "consistency distillation": "diffusion"}
EVALUATIONS = (1, 2, 50)


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["moons", "digits"] = "moons"
    hidden_sizes: tuple[int, ...] | None = None
    """None: three layers of 128 in the plane, of 256 for digits."""
    num_steps: int = 10_000
    """Of the flow; the others, which have more to learn, take twice as many."""
    batch_size: int = 256
    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at zero."""
    ema_decay: float = 0.999
    span_share: float = 0.5
    """MeanFlow: the share of spans that are no points. They end at the data, as that of one evaluation does."""
    num_levels: int = 4
    """Consistency distillation: intervals between noise levels."""
    num_solves: int = 6
    """Its steps of Heun's method in each."""
    training_levels: tuple[int, int] = (10, 160)
    """Consistency training: the first and the last number of intervals."""
    num_eval: int = 10_000
    """Samples in the plane."""
    seed: int = 0


class Task(NamedTuple):
    """The data: `draw(key, n)` for training, and `measure(samples)` -> numbers by name, the first of which is plotted."""

    event_shape: tuple[int, ...]
    draw: Callable[[jax.Array, int], jax.Array]
    measure: Callable[[np.ndarray], dict[str, float]]
    target: np.ndarray
    num_samples: int
    floor: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Fresh:
    """The loss of a model on data drawn afresh, for `gm.fit` without data."""

    model: gm.Model
    draw: Callable[[jax.Array, int], jax.Array]
    batch_size: int

    def __call__(self, params, key, batch, *, step=None):
        data_key, loss_key = jax.random.split(key)
        return self.model.loss(params, loss_key, self.draw(data_key, self.batch_size), step=step)


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    task = digits(config) if config.data == "digits" else moons(config)
    models, params = models_of(config, task), {}
    for name, model in models.items():
        params[name] = train(config, run, task, name, model, params, stream(key, name))
    rows, shown, metrics = [], {"data": task.target}, {"model": "one_step", "data": config.data}
    for name, num, sampler in samplers(config, models):
        model = sampler(models[name.split(",")[0]])
        samples = np.asarray(model.sample(params[name.split(",")[0]], stream(key, "samples"), task.num_samples))
        found = task.measure(samples)
        rows.append({"model": name, "evaluations": num, **found})
        metrics |= {f"{name.replace(', ', '_').replace(' ', '_')}_{num}_{k}": v for k, v in found.items()}
        if num == (1 if name in STUDENTS else 50):
            shown[f"{name}, {num}"] = samples
    rows.append({"model": "floor", "evaluations": "", **task.floor})
    metrics |= {f"floor_{k}": v for k, v in task.floor.items()}
    print(gm.lab.text_table(rows))
    draw_figures(config, run, rows, shown)
    return metrics


def models_of(config: Config, task: Task) -> dict[str, Any]:
    """The five models, teachers first, whose networks have the same hidden layers."""
    sizes = config.hidden_sizes or ((128,) * 3 if config.data == "moons" else (256,) * 3)
    plane = config.data == "moons"
    path, coupling = gm.transport.Linear(), gm.transport.ExactAssignment()
    common = {"path": path, "coupling": coupling, "hidden_sizes": sizes, "standardize": False}
    low, high = 0.01, 20.0
    # Digits come in units of one scale; pixels that are always black have none of their own.
    shared = {"schedule": denoising.EDM(low, high), "hidden_sizes": sizes}
    shared |= {"scaling": gm.bijectors.Standardize()} if plane else {"scaling": None, "data_scale": 1.0}
    levels: dict[str, Any] = {"mean": -0.5, "std": 2.0}
    diffusion = gm.flows.diffusion(
        task.event_shape,
        weighting=denoising.EDMWeighting(),
        times=denoising.LogNormalTimes(-1.2, 1.2),
        **shared,
    )
    return {
        "flow": gm.flows.flow_matching(task.event_shape, **common),
        "diffusion": diffusion,
        "mean flow": gm.flows.mean_flow(task.event_shape, spans=gm.models.UniformSpans(config.span_share, 1.0), **common),
        "consistency training": gm.flows.consistency(
            task.event_shape,
            levels=denoising.NeighboringLevels(*config.training_levels, 2 * config.num_steps, **levels),
            huber_scale=0.03,
            **shared,
        ),
        "consistency distillation": gm.flows.consistency_distillation(
            diffusion,
            levels=denoising.NeighboringLevels(config.num_levels, config.num_levels, **levels),
            huber_scale=float("inf"),
            num_solves=config.num_solves,
        ),
    }


def train(config: Config, run: gm.lab.Run, task: Task, name: str, model: Any, trained: dict[str, Any], key: jax.Array) -> Any:
    """The averaged parameters of one model; those of its teacher are among `trained`."""
    distilled = name == "consistency distillation"
    example = task.draw(stream(key, "example"), 4_096)
    params = model.taught(trained["diffusion"]) if distilled else model.init(stream(key, "init"), example)
    num_steps = config.num_steps * (1 if name == "flow" else 2)
    # What is distilled begins near its end; the target of consistency moves with the parameters, so it goes in smaller steps.
    rate = config.learning_rate * (0.5 if name.startswith("consistency") else 1.0)
    folder = run.folder / name.replace(" ", "_")
    fit = gm.fit(
        model,
        None,
        key=stream(key, "fit"),
        loss_fn=Fresh(model, task.draw, config.batch_size),
        params=params,
        optimizer=adam_with_cosine(rate, num_steps, 500),
        num_steps=num_steps,
        batch_size=config.batch_size,
        ema_decay=config.ema_decay,
        checkpoint=folder / "checkpoint",
        log=folder / "log.jsonl",
    )
    return fit.params


def samplers(config: Config, models: dict[str, Any]) -> list[tuple[str, int, Callable[[Any], Any]]]:
    """(row, evaluations, model -> the model that draws with so many), of all rows of the table."""

    def euler(num):
        integrator = gm.dynamics.FixedSteps(num, diffrax.Euler())
        return lambda model: dataclasses.replace(model, cnf=dataclasses.replace(model.cnf, integrator=integrator))

    def diffused(stepper, num):
        steps = denoising.Steps(stepper, denoising.EDMGrid(num // stepper.num_evaluations), denoise=False)
        return lambda model: dataclasses.replace(model, sampler=steps)

    def own(num):
        return lambda model: dataclasses.replace(model, num_steps=num)

    found = [("flow", num, euler(num)) for num in EVALUATIONS]
    found += [("diffusion, DDIM", num, diffused(denoising.DDIM(), num)) for num in EVALUATIONS]
    found += [("diffusion, Heun", num, diffused(denoising.Heun(), num)) for num in EVALUATIONS[1:]]
    # A distillation knows the levels that it was trained at, and no others.
    known = {"consistency distillation": [num for num in EVALUATIONS if config.num_levels % num == 0]}
    return found + [(name, num, own(num)) for name in models if name in STUDENTS for num in known.get(name, EVALUATIONS)]


# --- the data ------------------------------------------------------------------------------------------------------------------


def moons(config: Config) -> Task:
    ends = flow_matching.evaluation_sets(PAIR, config.num_eval, config.seed)

    def measure(samples):
        return {"w2": gm.metrics.wasserstein(samples, ends["target"])}

    return Task((2,), flow_matching.draws(PAIR)[1], measure, ends["target"], config.num_eval, {"w2": ends["floor"]})


def digits(config: Config) -> Task:
    data = gm.data.images.digits(config.seed)
    levels, test = (part.reshape(len(part), -1) for part in (data.train, data.test))

    # About unit variance for the networks: levels have a mean of 5 and a standard deviation of 6.
    def scaled(levels, key):
        return (levels + jax.random.uniform(key, levels.shape) - 5.4) / 6.0

    def draw(key, num):
        keys = jax.random.split(key)
        rows = jax.random.randint(keys[0], (num,), 0, len(levels))
        return scaled(jnp.asarray(levels)[rows].astype(jnp.float32), keys[1])

    target = np.asarray(scaled(jnp.asarray(test).astype(jnp.float32), stream(jax.random.key(config.seed), "test")))

    def measure(samples):
        mmd, near = gm.metrics.squared_mmd(samples, target), gm.metrics.precision_recall(samples, target)
        sliced = gm.metrics.sliced_wasserstein(samples, target)
        return {"sliced_w2": sliced.value, "mmd2": mmd.value} | {name: value.value for name, value in near.items()}

    num = 5 * len(target)
    return Task((64,), draw, measure, target, num, measure(np.asarray(draw(jax.random.key(config.seed), num))))


# --- figures -------------------------------------------------------------------------------------------------------------------


def draw_figures(config: Config, run: gm.lab.Run, rows: list[dict[str, Any]], shown: dict[str, np.ndarray]) -> None:
    """Samples of every model, and the first measure against the number of evaluations."""
    title = f"{config.data}: samples, and the evaluations of one"
    if config.data == "digits":
        images = [(name, (x[:16].reshape(-1, 8, 8, 1) * 6.0 + 5.4) / 17.0) for name, x in shown.items()]
        gm.lab.plot.images(run.figure("samples"), images, title=title)
    else:
        panels = {name: (x[:5_000, 0], x[:5_000, 1]) for name, x in shown.items()}
        gm.lab.plot.scatter(run.figure("samples"), panels, xlabel="x", ylabel="y", title=title, like="data")
    measure = list(rows[0])[2]
    floor = next(row[measure] for row in rows if row["model"] == "floor")
    curves: dict[str, Any] = {"two samples of the data": (EVALUATIONS, [floor] * len(EVALUATIONS))}
    for name in dict.fromkeys(row["model"] for row in rows if row["model"] != "floor"):
        own = [row for row in rows if row["model"] == name]
        curves[name] = [row["evaluations"] for row in own], [row[measure] for row in own]
    gm.lab.plot.lines(
        run.figure("samples_against_evaluations"), None, curves, xlabel="evaluations", ylabel=measure, title=config.data, log=True
    )


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 1_000, "batch_size": 256, "num_eval": 1_000, "hidden_sizes": (64, 64)})
