"""A diffusion of images: training, samples over the steps, samplers by their cost, and bits per dimension by two routes.

python -m experiments.ddpm                                  scikit-learn's digits, which come with it
python -m experiments.ddpm --data mnist --num-steps 4000    files from GENMOD_DATA (gm.data.images.download)
python -m experiments.ddpm --data cifar10 --hidden-channels 128 --multipliers 1 2 2 2 --num-blocks 2 --num-steps 500000
                                                            towards the published numbers, on a GPU, with --half-precision

Figures: samples, one row of them on its way from noise, a row per number of DDIM steps. Reported: bits per dimension by the
probability flow (an estimate of a bound: Hutchinson's trace, dequantised data) and by the variational bound; and the distance of
samples from data by sampler and number of evaluations of the network.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine, with_labels
from genmod.core.keys import stream

SCHEDULES = {
    "linear": gm.denoising.LinearBetas,
    "cosine": gm.denoising.Cosine,
    "edm": functools.partial(gm.denoising.EDM, 0.002, 20.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    schedule: Literal["linear", "cosine", "edm"] = "cosine"
    kind: gm.denoising.Kind = "v"
    """What the network predicts."""
    hidden_channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 1
    class_conditional: bool = False
    """p(x | class), trained with 1/10 of the classes dropped; samples are guided by weight `guidance`."""
    guidance: float = 2.0
    num_steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    """After a warm-up over 500 steps, a cosine down to zero."""
    ema_decay: float = 0.995
    half_precision: bool = False
    """bfloat16 in the network (for GPUs)."""
    num_sampling_steps: int = 50
    compared: tuple[int, ...] = (5, 10, 20, 50, 100)
    """Numbers of steps in the comparison of samplers."""
    num_samples: int = 500
    """Samples of which the distance from data is taken, for each sampler."""
    num_test: int = 200
    """Test images that are scored (the flow costs some hundred passes of the network for each)."""
    num_times: int = 64
    """Noise levels of the variational bound, for each image."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = gm.data.images.SETS[config.data]()
    model = build(config, data)
    fit = gm.fit(
        model,
        with_labels(data, "train", config.class_conditional),
        key=stream(key, "fit"),
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, warm_up=500),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=with_labels(data, "validation", config.class_conditional),
        validate_every=min(500, config.num_steps),
        ema_decay=config.ema_decay,
        clip_norm=1.0,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    metrics: dict[str, Any] = {"model": "ddpm", "data": config.data, "num_test": config.num_test}
    metrics |= likelihoods(config, model, fit.params, data, stream(key, "test"))
    rows = samplers(config, run, model, fit.params, data, stream(key, "samplers"))
    print(gm.lab.text_table([likelihood_row(config, metrics)]))
    print(gm.lab.text_table(rows))
    (run.folder / "samplers.txt").write_text(gm.lab.text_table(rows) + "\n")
    draw(config, run, data, model, fit, stream(key, "figures"))
    return metrics


def build(config: Config, data: gm.data.Dataset) -> gm.models.Dequantized:
    dtype = jnp.bfloat16 if config.half_precision else None
    network = gm.nets.UNet(config.hidden_channels, config.multipliers, config.num_blocks, dtype=dtype)
    assert data.num_levels is not None
    diffusion = gm.flows.diffusion(
        data.event_shape,
        schedule=SCHEDULES[config.schedule](),
        kind=config.kind,
        network=network,
        scaling=gm.bijectors.Rescale(0.5, 0.5),  # [-1, 1] inside, [0, 1] outside
        data_scale=0.5,
        divergence=gm.dynamics.Hutchinson(1),
        integrator=gm.dynamics.Adaptive(rtol=1e-4, atol=1e-4, max_steps=200),
        sampler=gm.denoising.Steps(gm.denoising.DDIM(), gm.denoising.LogSNRGrid(config.num_sampling_steps)),
        context_shape=(10,) if config.class_conditional else None,
        context_dropout=0.1 if config.class_conditional else 0.0,
    )
    return gm.models.Dequantized(diffusion, data.num_levels, own_loss=True)


def diffusion_of(model: gm.models.Dequantized) -> gm.models.Diffusion:
    assert isinstance(model.model, gm.models.Diffusion)
    return model.model


def with_diffusion(model: gm.models.Dequantized, **changes: Any) -> gm.models.Dequantized:
    """The model with another sampler or bound; the parameters stay."""
    return dataclasses.replace(model, model=dataclasses.replace(diffusion_of(model), **changes))


def likelihoods(config: Config, model: gm.models.Dequantized, params: Any, data: gm.data.Dataset, key) -> dict[str, Any]:
    """Bits per dimension of random test images, by the flow and by the bound, with the same noise of dequantisation."""
    num = min(config.num_test, len(data.test))
    rows = jax.random.permutation(stream(key, "rows"), len(data.test))[:num]
    images, labels = with_labels(data, "test", config.class_conditional)
    x, context = images[rows], None if labels is None else labels[rows]
    found: dict[str, Any] = {"num_params": gm.num_params(params), "num_test": num}
    bound = gm.models.Bound(num_times=config.num_times)
    for name, scored in (("flow", model), ("bound", with_diffusion(model, bound=bound))):
        values = -np.asarray(scored.log_prob(params, x, context, key=stream(key, "noise")), np.float64)
        values = values[np.isfinite(values)]
        nats, sem = (float(v) for v in gm.metrics.mean_and_sem(values))
        found |= {f"failed_{name}": num - len(values)}
        in_bits = functools.partial(gm.metrics.bits_per_dim, event_shape=data.event_shape)
        found |= {f"bits_per_dim_{name}": in_bits(nats), f"bits_per_dim_{name}_sem": in_bits(sem)}
        if name == "bound":
            found |= {gm.Likelihood.LOWER_BOUND.nll_key: nats, f"{gm.Likelihood.LOWER_BOUND.nll_key}_sem": sem}
    y = model.dequantize(x, jax.random.uniform(stream(key, "parts"), x.shape))
    bounded = diffusion_of(with_diffusion(model, bound=bound))
    parts = bounded.bound_parts(params["model"], y, context, key=stream(key, "bound"))
    return found | {f"bound_{name}_nats": float(part.mean()) for name, part in parts._asdict().items()}


def likelihood_row(config: Config, metrics: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    bits = {
        name: gm.lab.with_error(*(metrics[f"bits_per_dim_{name}{end}"] for end in ("", "_sem"))) for name in ("flow", "bound")
    }
    return {
        "data": config.data,
        "parameters": f"{metrics['num_params']:,}",
        "test bits/dim (flow, estimate)": bits["flow"],
        "test bits/dim (variational bound)": bits["bound"],
        **{f"{name}, nats": f"{metrics[f'bound_{name}_nats']:.1f}" for name in ("prior", "diffusion", "reconstruction")},
    }


def samplers(config: Config, run: gm.lab.Run, model, params, data: gm.data.Dataset, key) -> list[dict[str, Any]]:
    """Sliced W2 between samples and validation images, by sampler and evaluations of the network; what training images have."""
    num = min(config.num_samples, len(data.validation), len(data.train))
    images, labels = with_labels(data, "validation", config.class_conditional, num)
    reference = model.dequantize(images)

    def distance(x):
        return gm.metrics.sliced_wasserstein(model.dequantize(x), reference).value

    s = gm.denoising
    rows = [{"sampler": "training images", "evaluations": 0, "sliced W2": f"{distance(data.train[:num]):.4f}"}]
    curves: dict[str, tuple[list, list]] = {}
    for name, stepper in (("DDIM", s.DDIM()), ("DDPM", s.Ancestral()), ("DPM-Solver++", s.DPMSolverPlusPlus())):
        for steps in config.compared:
            sampler = s.Steps(stepper, s.LogSNRGrid(steps))
            drawn = with_diffusion(model, sampler=sampler).sample(
                params, stream(key, "draw"), () if labels is not None else num, labels
            )
            rows.append({"sampler": name, "evaluations": sampler.num_evaluations, "sliced W2": f"{distance(drawn):.4f}"})
            xs, ys = curves.setdefault(name, ([], []))
            xs.append(sampler.num_evaluations)
            ys.append(float(rows[-1]["sliced W2"]))
    title = f"quality against cost, {config.data}"
    gm.lab.plot.lines(run.figure("quality"), None, curves, xlabel="evaluations of the network", ylabel="sliced W2", title=title)
    return rows


def draw(config: Config, run: gm.lab.Run, data: gm.data.Dataset, model, fit: gm.Fit, key) -> None:
    title = f"diffusion of {config.data}"
    gm.lab.plot.training(run.figure("training"), fit.history, title=title, ylabel="error of eps")
    at = jnp.eye(10) if config.class_conditional else None
    shape = () if config.class_conditional else (10,)

    def shown(x):
        return x / (model.num_levels - 1)

    rows = [("data" if i == 0 else "", shown(data.validation[10 * i : 10 * i + 10])) for i in range(2)]
    for i in range(6):
        rows.append(("samples" if i == 0 else "", shown(model.sample(fit.params, stream(key, f"row {i}"), shape, at))))
    gm.lab.plot.images(run.figure("samples"), rows, title=f"{title}, {config.num_sampling_steps} DDIM steps")
    s = gm.denoising
    rows = []
    for steps in config.compared:
        sampler = s.Steps(s.DDIM(), s.LogSNRGrid(steps))
        rows.append(
            (f"{steps} steps", shown(with_diffusion(model, sampler=sampler).sample(fit.params, stream(key, "steps"), shape, at)))
        )
    gm.lab.plot.images(run.figure("steps"), rows, title=f"{title}: the same noise, DDIM")
    gm.lab.plot.images(run.figure("trajectory"), trajectory(model, fit.params, key, at), title=f"{title}: from noise to data")
    labels = None if data.labels is None or at is None else jax.nn.one_hot(data.labels.validation[:10], 10)
    rows = inpainted(config, model, fit.params, data.validation[:10], labels, stream(key, "inpaint"))
    gm.lab.plot.images(run.figure("inpainting"), rows, title=f"{title}: lower halves drawn given the upper ones")


def trajectory(model, params, key, at) -> list[tuple[str, Any]]:
    """Six samples at times on their way, and what the network takes them for."""
    diffusion = diffusion_of(model)
    sampler, schedule = diffusion.sampler, diffusion.predictor.schedule
    assert isinstance(sampler, gm.denoising.Steps)
    noise = diffusion.base.sample({}, stream(key, "trajectory"), (6,))
    rows = []
    for i, x in enumerate(noise):
        context = None if at is None else at[i]
        denoiser = functools.partial(lambda x, t, context: diffusion.denoise(params["model"], x, t, context), context=context)
        times, states = jax.jit(lambda key, x: sampler.trajectory(key, denoiser, schedule, x))(key, x)  # noqa: B023
        places = np.linspace(0, len(times) - 1, 10).astype(int)
        scale = np.asarray(jnp.sqrt(schedule.alpha(times) ** 2 + schedule.sigma(times) ** 2))[places].reshape(-1, 1, 1, 1)
        rows.append(("x_t" if i == 0 else "", jnp.clip(0.5 + 0.5 * states[places] / scale, 0.0, 1.0)))
    return rows


def inpainted(config: Config, model, params, x, labels, key) -> list[tuple[str, Any]]:
    """Images, their upper halves, and three completions of each by the same network, with a posterior denoiser."""
    sampler = gm.denoising.Steps(gm.denoising.Ancestral(), gm.denoising.LogSNRGrid(2 * config.num_sampling_steps))
    diffusion = diffusion_of(with_diffusion(model, sampler=sampler))
    seen = upper_half(model.dequantize(x))
    rows = [("data", model.dequantize(x)), ("seen", seen)]
    for i in range(3):
        drawn = diffusion.sample_posterior(params["model"], jax.random.fold_in(key, i), seen, upper_half, 0.015, labels)
        rows.append(("drawn" if i == 0 else "", jnp.clip(drawn, 0.0, 1.0)))
    return rows


def upper_half(x):
    """The image, or images, with black lower halves."""
    rows = x.shape[-3]
    return x * (jnp.arange(rows) < rows // 2).astype(x.dtype).reshape(rows, 1, 1)


if __name__ == "__main__":
    quick = {"num_steps": 200, "hidden_channels": 16, "multipliers": (1, 2), "num_test": 20, "num_times": 16, "num_samples": 100}
    quick |= {"num_sampling_steps": 20, "compared": (5, 20)}
    gm.lab.main(experiment, Config, quick=quick)
