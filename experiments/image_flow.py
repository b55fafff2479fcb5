"""Fit an image flow to 8-bit (or fewer) images and report bits per dimension, an upper bound by dequantisation.

python -m experiments.image_flow                                        Glow on scikit-learn's digits, which come with it
python -m experiments.image_flow --data mnist --model real_nvp          files from GENMOD_DATA (gm.data.images.download)
python -m experiments.image_flow --data mnist --num-layers 32 --num-scales 2 --hidden-channels 256 --num-steps 200000
                                                                        towards the published numbers, on a GPU

Figures: samples at two temperatures, a sweep of temperatures, reconstructions from the coarse latents alone, and
interpolations, of all scales and of the coarsest.
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


@dataclasses.dataclass(frozen=True)
class Config:
    data: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    num_bits: int = 8
    """Fewer than 8 keep the highest bits of each pixel. Not for digits, which have 17 levels."""
    model: Literal["glow", "real_nvp"] = "glow"
    num_layers: int | None = None
    """Steps of Glow, or couplings of each kind of RealNVP, per scale; None: 8 and 3."""
    num_scales: int | None = None
    """None: as many as the size allows, at most 3."""
    hidden_channels: int | None = None
    """None: 64 for Glow, 32 for RealNVP."""
    num_blocks: int = 1
    """Residual blocks of RealNVP's networks, or blocks of the attention's."""
    transformer: Literal["affine", "spline"] = "affine"
    attention: bool = False
    """Gated convolutions with self-attention as conditioners, in the place of the published networks."""
    alpha: float = 1e-6
    """Of the logit that takes pixels to the real line: tiny where most pixels are black, 0.05 for photographs."""
    dequantization: Literal["uniform", "variational"] = "uniform"
    class_conditional: bool = False
    """p(x | class) instead of p(x)."""
    num_steps: int = 8_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    """After a warm-up over 500 steps, a cosine down to zero."""
    clip_norm: float = 100.0
    half_precision: bool = False
    """bfloat16 in the networks (for GPUs)."""
    num_draws: int = 16
    """Draws of the noise for the tighter of the two bounds reported: the bound of one draw, less what the draws gain on 2,000
    random test images."""
    num_test: int | None = None
    """Test images (None: all)."""
    seed: int = 0


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data = load(config)
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
        clip_norm=config.clip_norm,
        checkpoint=run.checkpoint,
        log=run.log,
    )
    x, context = with_labels(data, "test", config.class_conditional, config.num_test)
    metrics: dict[str, Any] = {"model": config.model, "data": config.data, "num_test": len(x)}
    metrics |= gm.evaluate(model, fit.params, x, context, key=stream(key, "test"))
    metrics |= bits(metrics, data.event_shape, "bits_per_dim")
    metrics |= tighter(config, model, fit.params, x, context, metrics, stream(key, "draws"))
    metrics["round_trip"] = round_trip(model, fit.params, x[:256], None if context is None else context[:256])
    print(gm.lab.text_table([row(config, metrics)]))
    draw(config, run, data, model, fit, stream(key, "figures"))
    return metrics


def load(config: Config) -> gm.data.Dataset:
    data = gm.data.images.SETS[config.data]()
    if config.num_bits == 8:
        return data
    if config.data == "digits":
        raise ValueError(f"--num-bits {config.num_bits} is for images of 8 bits; digits have {data.num_levels} levels")
    parts = {name: gm.data.images.quantize(getattr(data, name), config.num_bits) for name in ("train", "validation", "test")}
    return dataclasses.replace(data, **parts, num_levels=2**config.num_bits)


def build(config: Config, data: gm.data.Dataset) -> gm.models.Dequantized:
    defaults = {"glow": (8, 64), "real_nvp": (3, 32)}[config.model]
    num_layers = defaults[0] if config.num_layers is None else config.num_layers
    hidden_channels = defaults[1] if config.hidden_channels is None else config.hidden_channels
    dtype = jnp.bfloat16 if config.half_precision else None
    if config.attention:
        network = gm.nets.GatedAttentionNet(hidden_channels, config.num_blocks, dtype=dtype)
    elif config.model == "glow":
        network = gm.nets.GlowNet(hidden_channels, dtype=dtype)
    else:
        network = gm.nets.ResNet(hidden_channels, config.num_blocks, dtype=dtype)
    flow = {"glow": gm.flows.glow, "real_nvp": gm.flows.real_nvp_image}[config.model](
        data.event_shape,
        num_layers,
        num_scales=config.num_scales,
        conditioner=network,
        transformer=gm.bijectors.RationalQuadraticSpline() if config.transformer == "spline" else gm.bijectors.Affine(),
        alpha=config.alpha,
        context_shape=(10,) if config.class_conditional else None,
    )
    noise = gm.flows.dequantizer(data.event_shape) if config.dequantization == "variational" else None
    assert data.num_levels is not None
    return gm.models.Dequantized(flow, data.num_levels, noise)


def bits(metrics: dict[str, Any], event_shape: tuple[int, ...], name: str) -> dict[str, float]:
    """The bound of `evaluate` and its standard error as bits per dimension, under `name`."""
    nats = gm.Likelihood.LOWER_BOUND.nll_key
    in_bits = functools.partial(gm.metrics.bits_per_dim, event_shape=event_shape)
    return {name: in_bits(metrics[nats]), f"{name}_sem": in_bits(metrics[f"{nats}_sem"])}


def tighter(
    config: Config, model: gm.models.Dequantized, params: Any, x, context, metrics: dict[str, Any], key
) -> dict[str, float]:
    """The bound of several draws: that of one draw on all images, less the mean gain on some, image by image."""
    rows = jax.random.permutation(stream(key, "rows"), len(x))[:2_000]
    some = (x[rows], None if context is None else context[rows])

    def nats(num_draws):
        bound = dataclasses.replace(model, num_draws=num_draws).log_prob(params, *some, key=stream(key, f"{num_draws} draws"))
        return np.asarray(bound, np.float64)

    gain, sem = (
        gm.metrics.bits_per_dim(float(v), model.event_shape) for v in gm.metrics.mean_and_sem(nats(config.num_draws) - nats(1))
    )
    name = f"bits_per_dim_{config.num_draws}_draws"
    return {
        name: metrics["bits_per_dim"] - gain,
        f"{name}_sem": float(np.hypot(metrics["bits_per_dim_sem"], sem)),
        "num_draws_test": len(rows),
    }


def round_trip(model: gm.models.Dequantized, params: Any, x: jax.Array, context: Any) -> float:
    """The largest error of a pixel that went to the latents and back, as a part of the range [0, 1]."""
    flow, y = flow_of(model), model.dequantize(x)
    back = flow.decode(params["model"], flow.encode(params["model"], y, context), context)
    return float(jnp.abs(back - y).max())


def flow_of(model: gm.models.Dequantized) -> gm.models.Flow:
    assert isinstance(model.model, gm.models.Flow)
    return model.model


def row(config: Config, metrics: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    several = f"bits_per_dim_{config.num_draws}_draws"
    return {
        "model": config.model,
        "data": config.data,
        "parameters": f"{metrics['num_params']:,}",
        "test bits/dim (bound)": gm.lab.with_error(metrics["bits_per_dim"], metrics["bits_per_dim_sem"]),
        f"{config.num_draws} draws": gm.lab.with_error(metrics[several], metrics[f"{several}_sem"]),
        "round trip": f"{metrics['round_trip']:.1e}",
    }


def draw(config: Config, run: gm.lab.Run, data: gm.data.Dataset, model: gm.models.Dequantized, fit: gm.Fit, key) -> None:
    title = f"{config.model} on {config.data}"
    in_bits = functools.partial(gm.metrics.bits_per_dim, event_shape=data.event_shape)
    curves = {name: in_bits(fit.history[name]) for name in ("loss", "validation_loss")}
    gm.lab.plot.training(run.figure("training"), fit.history | curves, title=title, ylabel="bits per dimension (bound)")
    # Held-out images that no number is reported on.
    x, context = with_labels(data, "validation", config.class_conditional, 10)
    params, flow, y = fit.params["model"], flow_of(model), model.dequantize(x)

    def shown(y):
        """Reals in [0, 1] as the levels that they are quantised to, black and white at the ends."""
        return model.quantize(y) / (model.num_levels - 1)

    def samples(temperature, name, num=10):
        at = None if context is None else jnp.eye(10)[jnp.arange(num) % 10]
        narrowed = flow.tempered(temperature)  # under one key, the same latents times the temperature
        return shown(narrowed.sample(params, stream(key, name), num if at is None else (), at))

    grid = []
    for t in (0.7, 1.0):
        lines = samples(t, "samples", 40).reshape(4, 10, *data.event_shape)
        grid += [(f"T = {t}" if i == 0 else "", line) for i, line in enumerate(lines)]
    gm.lab.plot.images(run.figure("samples"), grid, title=title)
    sweep = [(f"T = {t}", samples(t, "sweep")) for t in (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    gm.lab.plot.images(run.figure("temperatures"), sweep, title=f"{title}: the same latents times T")
    scales = list(gm.flows.multi_scale(flow).latent_shapes)
    again = functools.partial(gm.flows.resample, flow, params, stream(key, "resample"), y, temperature=0.7, context=context)
    rows = [("data", shown(y)), ("decoded", shown(flow.decode(params, flow.encode(params, y, context), context)))]
    rows += [(f"new {' '.join(scales[:i])}", shown(again(scales=scales[:i]))) for i in range(1, len(scales))]
    gm.lab.plot.images(run.figure("reconstruction"), rows, title=f"{title}: scales drawn anew at T = 0.7")
    shared = None if context is None else context[:4]
    line = functools.partial(gm.flows.interpolate, flow, params, y[:4], y[4:8], 10, context=shared)
    rows = [("all scales", shown(images)) for images in line()]
    rows += [(scales[-1], shown(images)) for images in line(scales=scales[-1:])]
    gm.lab.plot.images(run.figure("interpolation"), rows, title=f"{title}: interpolation of the latents")


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 400, "num_layers": 4, "hidden_channels": 32})
