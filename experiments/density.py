"""Fit a flow to a table of numbers and report its exact test log-likelihood.

python -m experiments.density                                   two moons, with the exact entropy as the limit
python -m experiments.density --data my.csv --model maf         a table of your own (.npy, .npz, .csv)
python -m experiments.density --data miniboone --model nsf_ar   a named set (files from GENMOD_DATA)
"""

import dataclasses
import functools
import inspect
import time
from pathlib import Path
from typing import Any, Literal

import jax
import optax

import genmod as gm
from genmod.core.keys import stream

MODELS = {
    "affine": gm.flows.affine,
    "nice": gm.flows.nice,
    "real_nvp": gm.flows.real_nvp,
    "glow_1d": gm.flows.glow_1d,
    "nsf": gm.flows.neural_spline_flow,
    "maf": gm.flows.masked_autoregressive_flow,
    "iaf": gm.flows.inverse_autoregressive_flow,
    "nsf_ar": gm.flows.autoregressive_spline_flow,
    "naf": gm.flows.neural_autoregressive_flow,
    "planar": gm.flows.planar_flow,
    "radial": gm.flows.radial_flow,
    "sylvester": gm.flows.sylvester_flow,
    "ffjord": gm.flows.ffjord,
    "flow_matching": gm.flows.flow_matching,
}
TOYS = {
    "two_moons": gm.data.two_moons,
    "eight_gaussians": gm.data.eight_gaussians,
    "gaussian_grid": gm.data.gaussian_grid,
    "checkerboard": gm.data.checkerboard,
    "rings": gm.data.rings,
    "pinwheel": gm.data.pinwheel,
    "two_spirals": gm.data.two_spirals,
    "swiss_roll": gm.data.swiss_roll,
    "two_bumps": gm.data.two_bumps,
    "twonorm": gm.data.twonorm,
    "funnel": gm.data.funnel,
}
TABLES = {
    "miniboone": gm.data.miniboone,
    "digits": gm.data.digits,
    "breast_cancer": gm.data.breast_cancer,
    "wine": gm.data.wine,
}
ModelName = Literal[
    "affine",
    "nice",
    "real_nvp",
    "glow_1d",
    "nsf",
    "maf",
    "iaf",
    "nsf_ar",
    "naf",
    "planar",
    "radial",
    "sylvester",
    "ffjord",
    "flow_matching",
]


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "two_moons"
    """A toy set, a named table, or the path of a .npy, .npz or .csv file."""
    model: ModelName = "nsf"
    num_layers: int | None = None
    """Layers of the flow; None is the builder's own number (flow_matching has none)."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    activation: Literal["relu", "tanh", "silu"] = "relu"
    """For the continuous flows relu, which has kinks, is read as silu."""
    num_train: int = 100_000
    """Training points of a toy set (a quarter as many to validate)."""
    num_test: int = 50_000
    """Fresh test points of a toy set."""
    num_steps: int = 3_000
    batch_size: int = 512
    learning_rate: float = 2e-3
    """Peak of a cosine schedule that ends at zero."""
    tolerance: float = 1e-4
    """rtol and atol with which a continuous flow is trained; it is tested at 1e-5."""
    weight_decay: float = 0.0
    """Decoupled decay of the networks' kernels."""
    clip_norm: float = 5.0
    ema_decay: float | None = None
    """Validate, keep and test an exponential moving average of the parameters."""
    patience: int | None = None
    """Stop after so many validations (one in 100 steps) without a new best."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = load(config, stream(key, "data"))
    test = data.test if data.density is None else data.sample(stream(key, "test"), config.num_test)
    begun = time.perf_counter()
    fit = gm.fit(
        build(config, data.event_shape, config.tolerance),
        data.train,
        key=stream(key, "fit"),
        optimizer=optimizer(config),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=data.validation,
        patience=config.patience,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    seconds = time.perf_counter() - begun
    model = build(config, data.event_shape)
    metrics: dict[str, Any] = {"model": config.model, "data": data.name, "num_test": len(test)}
    metrics |= gm.evaluate(model, fit.params, test, true_log_prob=data.log_prob)
    if data.entropy is not None:
        metrics["limit_nats"] = data.entropy
    print(gm.lab.text_table([row(metrics, seconds)]))
    report = gm.health(model.bijector, fit.params["bijector"], test)
    print(report)
    (run.folder / "health.txt").write_text(f"{report}\n")
    draw(config, run, data, model, fit, test, stream(key, "samples"))
    return metrics


def load(config: Config, key: jax.Array) -> gm.data.Dataset:
    if config.data in TOYS:
        return TOYS[config.data](key, config.num_train)
    if config.data in TABLES:
        return TABLES[config.data](seed=config.seed)
    if Path(config.data).suffix.lower() in (".npy", ".npz", ".csv"):
        return gm.data.table(config.data, seed=config.seed)
    raise ValueError(
        f"--data must be one of {', '.join([*TOYS, *TABLES])}, or the path of a .npy, .npz or .csv file; got {config.data!r}"
    )


def build(config: Config, event_shape: tuple[int, ...], tolerance: float = 1e-5) -> gm.models.Pushforward:
    builder = MODELS[config.model]
    takes = inspect.signature(builder).parameters
    if config.num_layers is not None and "num_layers" not in takes:
        raise ValueError(f"--num-layers: {config.model} is one field, not layers; leave it out")
    layers = {} if config.num_layers is None else {"num_layers": config.num_layers}
    # A vector field is differentiated along the way, so its activation must be smooth.
    name = "silu" if "integrator" in takes and config.activation == "relu" else config.activation
    networks = {"hidden_sizes": config.hidden_sizes, "activation": getattr(jax.nn, name)}
    solve = {"integrator": gm.dynamics.Adaptive(rtol=tolerance, atol=tolerance)} if "integrator" in takes else {}
    return builder(event_shape, **layers, **solve, **(networks if "hidden_sizes" in takes else {}))


def optimizer(config: Config) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    return optax.adamw(schedule, weight_decay=config.weight_decay, mask=_kernels)


def _kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(getattr(path[-1], "key", "")), params)


def row(metrics: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One line of the table: exact values in nats, +- standard errors."""
    line = {
        "model": metrics["model"],
        "data": metrics["data"],
        "parameters": metrics["num_params"],
        "test NLL (nats)": gm.lab.with_error(metrics["nll_nats"], metrics["nll_nats_sem"]),
    }
    if "limit_nats" in metrics:
        line |= {"exact limit": f"{metrics['limit_nats']:.4f}"}
        line |= {"gap": gm.lab.with_error(metrics["gap_nats"], metrics["gap_nats_sem"])}
    return line | {"seconds": f"{seconds:.0f}"}


def draw(config: Config, run: gm.lab.Run, data: gm.data.Dataset, model: gm.models.Pushforward, fit: gm.Fit, test, key) -> None:
    title = f"{config.model} on {data.name}"
    likelihood = isinstance(model, gm.models.Flow)  # flow matching's loss is an error of velocities
    limit, ylabel = (data.entropy, "loss (nats)") if likelihood else (None, "loss (squared velocity)")
    gm.lab.plot.training(run.figure("training"), fit.history, limit=limit, ylabel=ylabel, title=title)
    gm.lab.plot.samples(run.figure("samples"), test, model.sample(fit.params, key, (min(len(test), 5_000),)), title=title)
    if data.event_shape == (2,):
        log_prob = functools.partial(model.log_prob, fit.params)
        gm.lab.plot.density(run.figure("density"), log_prob, test, title=title, true_log_prob_fn=data.log_prob)


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_train": 20_000, "num_steps": 1_200, "hidden_sizes": (64, 64)})
