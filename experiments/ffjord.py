"""A continuous normalizing flow in the plane, by maximum likelihood, by flow matching, and by the one after the other.

python -m experiments.ffjord                               FFJORD's own moons, all three schedules
python -m experiments.ffjord --data two_moons              another set (two_moons, eight_gaussians, rings, ...)

Three schedules train one field: `likelihood` (FFJORD), `matching` (flow matching along the optimal-transport path: no solve in
training), and `mixed`, which begins with the second and ends with the first, on the same parameters. The table shows the
exact test NLL and the seconds that training took, compilation included. Beside it: how far the test NLL of each moves with the
integrator, how many evaluations of the field a solve took while it was trained, and the field, paths and density as figures.
"""

import dataclasses
import functools
import math
import time
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments import density
from experiments.common import adam_with_cosine
from genmod.core.batching import vmap_events
from genmod.core.keys import stream
from genmod.core.params import cast

Schedule = Literal["likelihood", "matching", "mixed"]


@dataclasses.dataclass(frozen=True)
class FFJORDMoons(gm.data.Toy):
    """The moons of FFJORD's toy data: scikit-learn's with noise .1, times 2, shifted by (-1, -.2)."""

    @property
    def event(self):
        return gm.Real((2,))

    @property
    def unit(self) -> gm.data.TwoMoons:
        """The moons before scale and shift."""
        return gm.data.TwoMoons(0.1)

    def sample_one(self, params, key, context=None):
        return 2.0 * self.unit.sample_one(params, key) + jnp.asarray((-1.0, -0.2))

    def log_prob_one(self, params, x, context=None, key=None):
        return self.unit.log_prob_one(params, (x - jnp.asarray((-1.0, -0.2), x.dtype)) / 2.0) - 2.0 * math.log(2.0)

    def exact_entropy(self):
        return self.unit.entropy() + 2.0 * math.log(2.0)


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "ffjord_moons"
    """FFJORD's moons, or a toy set of `experiments.density` in the plane."""
    schedules: tuple[Schedule, ...] = ("likelihood", "matching", "mixed")
    hidden_sizes: tuple[int, ...] = (64, 64, 64)
    conditioning: Literal["concat", "concat_squash"] = "concat"
    num_steps: int = 2_000
    """Steps of maximum likelihood."""
    num_matching_steps: int = 5_000
    """Steps of flow matching, alone."""
    mixed_steps: tuple[int, int] = (8_000, 900)
    """Steps of flow matching, then of maximum likelihood."""
    batch_size: int = 512
    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at zero."""
    finish_learning_rate: float = 2e-3
    """Of the likelihood part of `mixed`."""
    tolerance: float = 1e-4
    """rtol and atol in training; tests are run at 1e-5."""
    kinetic_energy: float = 0.0
    """Weight of int |v|^2 dt in the likelihood loss (0: reported only)."""
    jacobian_norm: float = 0.0
    """Weight of int |dv/dx|_F^2 dt (0: reported only)."""
    num_train: int = 100_000
    num_test: int = 50_000
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = load(config, stream(key, "data"))
    test = data.sample(stream(key, "test"), config.num_test)
    metrics: dict[str, Any] = {"model": "ffjord", "data": data.name, "limit_nats": data.entropy, "num_test": len(test)}
    rows, studies, nfe = [], [], {}
    for schedule in config.schedules:
        params, history, seconds = train(config, schedule, data, stream(key, "fit"), run)
        model = build(config, gm.dynamics.Adaptive())
        found = gm.evaluate(model, params, test, true_log_prob=data.log_prob)
        metrics |= {f"{schedule}_{name}": value for name, value in found.items()}
        nll, gap = (gm.lab.with_error(found[name], found[f"{name}_sem"]) for name in ("nll_nats", "gap_nats"))
        times = {"training, wall s": f"{seconds[0]:.0f}", "training, CPU s": f"{seconds[1]:.0f}"}
        rows.append({"schedule": schedule, "test NLL (nats)": nll, "limit": f"{data.entropy:.4f}", "gap (nats)": gap, **times})
        studies += [{"schedule": schedule, **row} for row in integrator_study(config, params, test[:2_000])]
        if "nfe" in history:
            nfe[schedule] = (history["step"], history["nfe"])
        draw(run, schedule, data, model, params, test, stream(key, "draw"))
    first = config.schedules[0]
    names = ("num_params", "nll_nats", "nll_nats_sem", "gap_nats", "gap_nats_sem")
    metrics |= {name: metrics[f"{first}_{name}"] for name in names}
    for title, table in (("schedules", rows), ("integrators", studies)):
        print(f"\n{gm.lab.text_table(table)}")
        (run.folder / f"{title}.txt").write_text(gm.lab.text_table(table) + "\n")
    if nfe:
        gm.lab.plot.lines(run.figure("nfe"), None, nfe, xlabel="step", ylabel="evaluations per solve", title=f"NFE, {data.name}")
    return metrics


def load(config: Config, key: jax.Array) -> gm.data.Dataset:
    if config.data == "ffjord_moons":
        return gm.data.from_density("ffjord_moons", FFJORDMoons(), key, config.num_train)
    if config.data not in density.TOYS:
        raise ValueError(f"--data must be ffjord_moons or one of {', '.join(density.TOYS)}, got {config.data!r}")
    data = density.TOYS[config.data](key, config.num_train)
    if data.event_shape != (2,):
        raise ValueError(f"--data must be a set in the plane, got {config.data!r} with events {data.event_shape}")
    return data


def build(config: Config, integrator: gm.dynamics.Integrator, *, penalised: bool = False) -> gm.models.Flow:
    return gm.flows.ffjord(
        (2,),
        hidden_sizes=config.hidden_sizes,
        conditioning=config.conditioning,
        integrator=integrator,
        kinetic_energy=config.kinetic_energy if penalised else None,
        jacobian_norm=config.jacobian_norm if penalised else None,
    )


def layers(flow: gm.models.Flow) -> tuple[gm.bijectors.CNF, gm.bijectors.Bijector]:
    """The continuous part of a flow, and its standardisation."""
    assert isinstance(flow.bijector, gm.bijectors.Chain)
    cnf, data_side = flow.bijector.bijectors
    assert isinstance(cnf, gm.bijectors.CNF)
    return cnf, data_side


def train(config: Config, schedule: Schedule, data: gm.data.Dataset, key: jax.Array, run: gm.lab.Run):
    """(parameters, history of the likelihood steps, (wall, CPU) seconds) of one schedule."""
    flow = build(config, gm.dynamics.Adaptive(rtol=config.tolerance, atol=config.tolerance), penalised=True)
    cnf, data_side = layers(build(config, gm.dynamics.Adaptive()))
    matching = gm.models.FlowMatching(cnf, flow.base, gm.transport.OptimalTransport(), data_side=data_side)
    steps, finish = {
        "likelihood": (0, config.num_steps),
        "matching": (config.num_matching_steps, 0),
        "mixed": config.mixed_steps,
    }[schedule]
    rate = config.learning_rate if schedule == "likelihood" else config.finish_learning_rate
    params, history = None, {}
    begun = time.perf_counter(), time.process_time()
    for name, model, num, peak in (("matching", matching, steps, config.learning_rate), ("likelihood", flow, finish, rate)):
        if num:
            fit = gm.fit(
                model,
                data.train,
                key=stream(key, name),
                optimizer=adam_with_cosine(peak, num),
                num_steps=num,
                batch_size=config.batch_size,
                clip_norm=5.0,
                params=params,
                checkpoint=run.folder / f"checkpoint_{schedule}_{name}",
                log=run.folder / f"log_{schedule}_{name}.jsonl",
            )
            params, history = fit.params, fit.history
    return params, history, (time.perf_counter() - begun[0], time.process_time() - begun[1])


def integrator_study(config: Config, params: Any, x: jax.Array) -> list[dict[str, Any]]:
    """Error of the log-density in nats by integrator, against a float64 solve at 1e-10."""
    with jax.enable_x64(True):
        tight = build(config, gm.dynamics.Adaptive(diffrax.Dopri8(), rtol=1e-10, atol=1e-10))
        exact = tight.log_prob(cast(params, jnp.float64), jnp.asarray(np.asarray(x), jnp.float64))
        exact = np.asarray(exact)
    integrators = {f"dopri5, {t:g}": gm.dynamics.Adaptive(rtol=t, atol=t) for t in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}
    integrators |= {f"{n} steps of RK4": gm.dynamics.FixedSteps(n, gm.dynamics.RK4()) for n in (10, 40)}
    integrators |= {f"{n} steps of Euler": gm.dynamics.FixedSteps(n, diffrax.Euler()) for n in (10, 100)}
    rows = []
    for name, integrator in integrators.items():
        log_prob, info = build(config, integrator).log_prob_with_info(params, x)
        error = np.asarray(log_prob, np.float64) - exact
        row = {"integrator": name, "NFE": f"{float(info['nfe'].mean()):.0f}", "largest error": f"{np.abs(error).max():.1e}"}
        rows.append(row | {"rms error": f"{np.sqrt((error**2).mean()):.1e}", "error of the NLL": f"{-error.mean():.1e}"})
    return rows


def draw(run: gm.lab.Run, schedule: str, data, model: gm.models.Flow, params, test, key) -> None:
    title = f"{schedule}, {data.name}"
    cnf, field = layers(model)[0], params["bijector"][0]
    log_prob = functools.partial(model.log_prob, params)
    gm.lab.plot.density(run.figure(f"density_{schedule}"), log_prob, test, title=title, true_log_prob_fn=data.log_prob)
    z = jax.random.normal(key, (300, 2))
    path = functools.partial(cnf.trajectory, field, num_times=40)
    paths = np.asarray(jax.jit(vmap_events(path))(z))
    gm.lab.plot.trajectories(run.figure(f"trajectories_{schedule}"), {"from noise to data": paths}, title=title)
    velocity = jax.vmap(cnf.velocity, (None, 0, None))
    fields = {
        f"t = {t:g}": functools.partial(lambda x, t: velocity(field, x, jnp.asarray(t, x.dtype)), t=t) for t in (0.0, 0.5, 1.0)
    }
    gm.lab.plot.vector_fields(run.figure(f"field_{schedule}"), fields, paths.reshape(-1, 2), title=title)


if __name__ == "__main__":
    quick = {"num_train": 20_000, "num_test": 5_000, "num_steps": 100, "num_matching_steps": 600, "mixed_steps": (500, 50)}
    gm.lab.main(experiment, Config, quick=quick | {"hidden_sizes": (64, 64), "tolerance": 1e-3})
