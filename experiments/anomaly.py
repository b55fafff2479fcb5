"""The log p of an image flow as an anomaly detector, beside three corrections of it; and how plain log p fails.

python -m experiments.anomaly                            eight classes of scikit-learn's digits against the rest, and perturbed
python -m experiments.anomaly --pair fashion_mnist       Fashion-MNIST against MNIST (files from GENMOD_DATA)
python -m experiments.anomaly --pair mnist               the reverse

A flow trained on Fashion-MNIST gives MNIST MORE probability than its own test set (Nalisnick et al. 2018, arXiv:1810.09136):
simple images are cheap to encode under any model, so the AUROC of -log p can lie far below 1/2. Scores, of single images,
higher = more anomalous, in bits per dimension, with b the bits of the model (a bound):

  nll          b
  typicality   |b - mean of b over validation images|, the test for typical sets (Nalisnick et al. 2019, arXiv:1906.02994)
  complexity   b - bits of the best of some lossless compressors (Serra et al. 2020, arXiv:1909.11480)
  ratio        b - bits of a background model, the same flow trained on images some of whose pixels are replaced by uniform
               levels (Ren et al. 2019, arXiv:1906.02845)

Inliers are test images, used once; the perturbed ones are validation images, so that the two samples of an AUROC are
independent. (Validation images also choose the checkpoint and give typicality its mean, whose error the standard errors of
the AUROC do not hold.) Nothing is chosen by an AUROC.
"""

import bz2
import dataclasses
import functools
import lzma
import math
import zlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from experiments.common import adam_with_cosine
from genmod.core.keys import stream

OTHER = {"fashion_mnist": "mnist", "mnist": "fashion_mnist"}


@dataclasses.dataclass(frozen=True)
class Config:
    pair: Literal["digits", "fashion_mnist", "mnist"] = "digits"
    """What is trained on. Outliers: the digits of the other classes, or the other set of the two; and perturbed images."""
    classes: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """Of `--pair digits`: the classes that are trained on."""
    background: bool = True
    """Train the background model too, at the same cost again; without it there is no score `ratio`."""
    replaced: float = 0.2
    """Share of pixels that the background model sees replaced (arXiv:1906.02845 takes 0.1 to 0.3)."""
    num_layers: int = 8
    """Steps of Glow per scale."""
    num_scales: int = 2
    hidden_channels: int = 64
    alpha: float = 1e-6
    """Of the logit that takes pixels to the real line: tiny where most pixels are black."""
    num_steps: int = 2_500
    batch_size: int = 64
    learning_rate: float = 1e-3
    """After a warm-up over 500 steps, a cosine down to zero."""
    clip_norm: float = 100.0
    num_draws: int = 4
    """Draws of the dequantisation noise for each log p."""
    num_test: int = 2_000
    """Images of each set that is scored, drawn at random where there are more."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Replaced:
    """The loss of a model on images each of whose pixels is a uniform level instead with probability `rate`."""

    model: gm.models.Dequantized
    rate: float

    def __call__(self, params, key, x, *, step=None):
        which, what, loss_key = jax.random.split(key, 3)
        levels = jax.random.randint(what, x.shape, 0, self.model.num_levels).astype(x.dtype)
        replaced = jnp.where(jax.random.bernoulli(which, self.rate, x.shape), levels, x)
        return self.model.loss(params, loss_key, replaced, step=step)


def experiment(config: Config, run: gm.lab.Run) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    data, outliers = load(config, stream(key, "data"))
    sets = {"inliers": data.test, "validation": data.validation} | outliers
    assert data.num_levels is not None
    flow = gm.flows.glow(
        data.event_shape,
        config.num_layers,
        num_scales=config.num_scales,
        hidden_channels=config.hidden_channels,
        alpha=config.alpha,
    )
    model = gm.models.Dequantized(flow, data.num_levels)
    fit = train(config, run, "checkpoint", model, data, None, stream(key, "fit"))
    bits = bits_of(config, model, fit.params, sets, stream(key, "bits"))
    background = None
    if config.background:
        loss = Replaced(model, config.replaced)
        noisy = train(config, run, "checkpoint_background", model, data, loss, stream(key, "background"))
        background = bits_of(config, model, noisy.params, sets, stream(key, "bits"))
    compressed = {name: compressed_bits(x, data.num_levels) / math.prod(data.event_shape) for name, x in sets.items()}
    found = scores(bits, compressed, background)
    metrics: dict[str, Any] = {"pair": config.pair, "num_params": gm.num_params(fit.params)}
    metrics |= measure(sets, bits, compressed, found)
    print(gm.lab.text_table(rows(metrics, sets, list(found))))
    for name in outliers:
        if metrics[f"auroc_nll_{name}"] + 2 * metrics[f"auroc_nll_{name}_sem"] < 0.5:
            print(f"log p fails on {name}: it is higher there than on the inliers")
    draw(config, run, fit, bits, found, metrics)
    return metrics


def load(config: Config, key: jax.Array) -> tuple[gm.data.Dataset, dict[str, jax.Array]]:
    """The data of the inliers, at most `num_test` to test and to validate; and the sets of outliers, the unseen images first."""
    if config.pair == "digits":
        data, unseen = classes_of(gm.data.images.digits(config.seed), config.classes)
        outliers = {"other_classes": unseen}
    else:
        data, other = (gm.data.images.SETS[name]() for name in (config.pair, OTHER[config.pair]))
        outliers = {other.name: other.test}

    def some(x, name):
        return jax.random.permutation(stream(key, name), x)[: config.num_test]

    data = dataclasses.replace(data, validation=some(data.validation, "validation"), test=some(data.test, "test"), labels=None)
    outliers = {name: some(x, name) for name, x in outliers.items()}
    perturb = {name: fn(stream(key, name), data.validation, data.num_levels) for name, fn in PERTURBATIONS.items()}
    return data, outliers | perturb


def classes_of(data: gm.data.Dataset, classes: tuple[int, ...]) -> tuple[gm.data.Dataset, jax.Array]:
    """The data of these classes alone, and all the images of the others, which then no model has seen."""
    assert data.labels is not None
    if not 0 < len(set(classes) & set(range(10))) < 10 or not set(classes) <= set(range(10)):
        raise ValueError(f"--classes must be some of 0..9 and leave some out, got {classes}")
    kept = {part: np.isin(getattr(data.labels, part), classes) for part in ("train", "validation", "test")}
    unseen = jnp.concatenate([getattr(data, part)[~rows] for part, rows in kept.items()])
    return dataclasses.replace(data, labels=None, **{part: getattr(data, part)[rows] for part, rows in kept.items()}), unseen


def noisy(key, x, num_levels):
    """Gaussian noise of a tenth of the range, rounded to levels and clipped."""
    noise = jnp.round(0.1 * num_levels * jax.random.normal(key, x.shape)).astype(jnp.int32)
    return jnp.clip(x.astype(jnp.int32) + noise, 0, num_levels - 1).astype(x.dtype)


def permuted(key, x, num_levels):
    """The pixels of each image in a random order of its own."""
    pixels = x.reshape(len(x), -1, x.shape[-1])
    return jax.vmap(jax.random.permutation)(jax.random.split(key, len(x)), pixels).reshape(x.shape)


PERTURBATIONS = {
    "noisy": noisy,
    "rolled": lambda key, x, num_levels: jnp.roll(x, x.shape[2] // 4, axis=2),  # a quarter of the width to the right
    "rotated": lambda key, x, num_levels: jnp.rot90(x, axes=(1, 2)),
    "inverted": lambda key, x, num_levels: (num_levels - 1 - x).astype(x.dtype),
    "permuted": permuted,
}


def train(config: Config, run: gm.lab.Run, name: str, model, data: gm.data.Dataset, loss_fn, key: jax.Array) -> gm.Fit:
    return gm.fit(
        model,
        data.train,
        key=key,
        optimizer=adam_with_cosine(config.learning_rate, config.num_steps, warm_up=500),
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=data.validation,
        clip_norm=config.clip_norm,
        loss_fn=loss_fn,
        checkpoint=run.folder / name,
        log=run.log.with_name(f"{name.replace('checkpoint', 'log')}.jsonl"),
    )


def bits_of(config: Config, model: gm.models.Dequantized, params: Any, sets: dict[str, Any], key) -> dict[str, np.ndarray]:
    """-log2 P(x) per dimension of every image of every set, a bound."""
    model = dataclasses.replace(model, num_draws=config.num_draws)
    ends = np.cumsum([len(x) for x in sets.values()])[:-1]
    # All sets in one call: one compilation.
    log_prob = np.asarray(model.log_prob(params, jnp.concatenate([*sets.values()]), key=key), np.float64)
    return dict(zip(sets, np.split(gm.metrics.bits_per_dim(-log_prob, model.event_shape), ends), strict=True))


LZMA = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "dict_size": 2**16}]}
COMPRESSORS = (lambda data: zlib.compress(data, 9, wbits=-15), bz2.compress, lambda data: lzma.compress(data, **LZMA))


def compressed_bits(x: Any, num_levels: int) -> np.ndarray:
    """The bits to which the best compressor takes each image (n, H, W, C) of at most 256 levels, an upper bound of K(x).

    Of three compressors over the five predictors of PNG (none, left, up, average, Paeth), whose residuals are taken modulo
    num_levels. The choice of one costs log2(15) bits; what a compressor makes of nothing, its header, is taken off.
    """
    x = np.asarray(x, np.int32)
    padded = np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    near = left, up, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    closest = np.argmin([np.abs(left + up - corner - neighbour) for neighbour in near], axis=0)
    predictions = (0, left, up, (left + up) // 2, np.choose(closest, near))
    residuals = np.stack([(x - prediction) % num_levels for prediction in predictions], axis=1).astype(np.uint8)
    headers = [len(compress(b"")) for compress in COMPRESSORS]

    def shortest(codes):
        texts = [code.tobytes() for code in codes]
        return min(len(c(text)) - header for c, header in zip(COMPRESSORS, headers, strict=True) for text in texts)

    choices = len(predictions) * len(COMPRESSORS)
    return 8.0 * np.array([shortest(codes) for codes in residuals]) + math.log2(choices)


def scores(bits: dict[str, Any], compressed: dict[str, Any], background: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Score -> set -> values (n,), higher = more anomalous; from the bits per dimension of model, compressor, background."""
    typical = bits["validation"].mean()
    found = {
        "nll": bits,
        "typicality": {name: np.abs(b - typical) for name, b in bits.items()},
        "complexity": {name: b - compressed[name] for name, b in bits.items()},
    }
    return found | ({} if background is None else {"ratio": {name: b - background[name] for name, b in bits.items()}})


def measure(sets: dict[str, Any], bits: dict[str, Any], compressed: dict[str, Any], found: dict[str, dict]) -> dict[str, Any]:
    """The mean bits of every set, by model and compressor, and the AUROC of every score on every set of outliers."""
    metrics: dict[str, Any] = {}
    for name, x in sets.items():
        suffix = "" if name == "inliers" else f"_{name}"
        metrics[f"num{suffix or '_inliers'}"] = len(x)
        for kind, values in (("bits_per_dim", bits), ("compressed_bits_per_dim", compressed)):
            mean, sem = gm.metrics.mean_and_sem(values[name])
            metrics |= {f"{kind}{suffix}": float(mean), f"{kind}{suffix}_sem": float(sem)}
        for score, values in found.items():
            if name not in ("inliers", "validation"):
                value, sem = gm.metrics.auroc(values["inliers"], values[name])
                metrics |= {f"auroc_{score}_{name}": value, f"auroc_{score}_{name}_sem": sem}
    return metrics


def rows(metrics: dict[str, Any], sets: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """A line per set: bits per dimension of model and compressor, and the AUROC of every score."""
    lines = []
    for name, x in sets.items():
        suffix = "" if name == "inliers" else f"_{name}"
        keys = {"bits/dim (bound)": f"bits_per_dim{suffix}", "compressed": f"compressed_bits_per_dim{suffix}"}
        keys |= {f"AUROC {score}": f"auroc_{score}_{name}" for score in names}
        cells = {c: gm.lab.with_error(metrics[k], metrics[f"{k}_sem"]) if k in metrics else "" for c, k in keys.items()}
        lines.append({"set": name, "images": len(x)} | cells)
    return lines


def draw(config: Config, run: gm.lab.Run, fit: gm.Fit, bits: dict, found: dict[str, dict], metrics: dict[str, Any]) -> None:
    outliers = [name for name in bits if name not in ("inliers", "validation")]
    title = f"Glow trained on {config.pair}"
    histograms = functools.partial(gm.lab.plot.histograms, xlabel="bits per dimension (bound)", title=title)
    histograms(run.figure("bits"), {name: bits[name] for name in ("inliers", outliers[0])})
    # Perturbed images can be a thousand times as improbable.
    histograms(run.figure("bits_all"), {name: bits[name] for name in ("inliers", *outliers)}, log=True)
    curves = {score: (score, outliers[0]) for score in found}
    _roc(run.figure("roc"), curves, found, metrics, f"{title}: inliers against {outliers[0]}")
    curves = {name: ("nll", name) for name in outliers}
    _roc(run.figure("roc_nll"), curves, found, metrics, f"{title}: log p alone")


def _roc(path, curves: dict[str, tuple[str, str]], found: dict[str, dict], metrics: dict[str, Any], title: str) -> None:
    drawn: dict[str, Any] = {"chance, 0.5": ([0.0, 1.0], [0.0, 1.0])}
    for name, (score, outliers) in curves.items():
        label = f"{name}, {metrics[f'auroc_{score}_{outliers}']:.3f}"
        drawn[label] = gm.metrics.roc_curve(found[score]["inliers"], found[score][outliers])
    gm.lab.plot.lines(path, None, drawn, xlabel="false positive rate", ylabel="true positive rate", title=title)


if __name__ == "__main__":
    gm.lab.main(experiment, Config, quick={"num_steps": 400, "num_layers": 4, "hidden_channels": 32, "num_draws": 1})
