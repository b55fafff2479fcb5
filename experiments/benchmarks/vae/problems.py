"""A variational autoencoder of binary images: a training step by the ELBO, and one by the importance-weighted bound.

    h = relu(x E + e),  (m, r) = h P + p,  q(z | x) = N(m, exp(2 s)),  s = S tanh(r / S)
    l = relu(z D + d) L + b,               p(x | z) = Bernoulli(l, the logits),  p(z) = N(0, I)

elbo: one draw of z for each image. The KL is in closed form where a library has it, else by the draw.
iwae-50: log of the mean of 50 weights p(x, z) / q(z | x) for each image.

784-400-20, that is 784 pixels, 400 hidden units on either side and 20 latents; an Adam step on 128 images. All libraries begin
with the same weights. A peer has beside `train`: `bound`, minus the bound in nats per image at these weights, one evaluation;
and `memory`, what its compiled training step allocates, where the library tells.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result, train

LARGEST_LOG_SCALE = 5.0  # S
NAMES = ("encoder", "posterior", "decoder", "logits")  # of the layers, each with NAME_w, (inputs, outputs), and NAME_b
NUM_BATCHES = 64  # more than the steps of a check: some libraries draw the same noise for the same batch again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """Sizes, and how many draws of z the bound of an image takes: 1 is the ELBO."""

    num_draws: int
    num_pixels: int = 784
    hidden_size: int = 400
    latent_size: int = 20
    batch_size: int = 128
    num_reference: int = 20  # evaluations of the bound that the reference is made of


def weights(arrays: Arrays) -> dict[str, np.ndarray]:
    """The shared weights by name, those of the layers NAMES."""
    return {f"{name}_{kind}": arrays[f"{name}_{kind}"] for name in NAMES for kind in "wb"}


def make(cell: Cell) -> Arrays:
    """Weights, uniform within 1 / sqrt(inputs) as PyTorch has it; images drawn from a decoder; the bound in float64."""
    rng = np.random.default_rng(0)
    pixels, hidden, latents = cell.num_pixels, cell.hidden_size, cell.latent_size
    sizes = dict(zip(NAMES, ((pixels, hidden), (hidden, 2 * latents), (latents, hidden), (hidden, pixels)), strict=True))
    arrays = {}
    for name, (a, b) in sizes.items():
        arrays[f"{name}_w"] = rng.uniform(-(a**-0.5), a**-0.5, (a, b)).astype(np.float32)
        arrays[f"{name}_b"] = rng.uniform(-(a**-0.5), a**-0.5, b).astype(np.float32)
    z = rng.standard_normal((NUM_BATCHES * cell.batch_size, latents))
    logits = 3.0 * np.tanh(z @ rng.standard_normal((latents, hidden))) @ rng.standard_normal((hidden, pixels)) / hidden**0.5
    images = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    batches = images.reshape(NUM_BATCHES, cell.batch_size, pixels)
    values = [_bound(cell, arrays, batches[0], rng) for _ in range(cell.num_reference)]
    return {**arrays, "batches": batches, "x": batches[0], "bound": np.mean(values), "spread": np.std(values, ddof=1)}


def _bound(cell: Cell, arrays: Arrays, x: np.ndarray, rng: np.random.Generator) -> float:
    """Minus the bound, nats per image: one evaluation by the definition, in float64."""
    w = {name: value.astype(np.float64) for name, value in weights(arrays).items()}
    raw = np.maximum(x @ w["encoder_w"] + w["encoder_b"], 0.0) @ w["posterior_w"] + w["posterior_b"]
    mean, log_scale = raw[:, : cell.latent_size], LARGEST_LOG_SCALE * np.tanh(raw[:, cell.latent_size :] / LARGEST_LOG_SCALE)
    noise = rng.standard_normal((cell.num_draws, *mean.shape))
    z = mean + np.exp(log_scale) * noise
    logits = np.maximum(z @ w["decoder_w"] + w["decoder_b"], 0.0) @ w["logits_w"] + w["logits_b"]
    log_likelihood = (x * logits - np.logaddexp(0.0, logits)).sum(-1)
    log_weights = log_likelihood + (0.5 * (noise**2 - z**2) + log_scale).sum(-1)  # the constants of prior and posterior cancel
    return float(-(np.logaddexp.reduce(log_weights, axis=0) - np.log(cell.num_draws)).mean())


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """What an operation is worth.

    train: the mean loss of the last quarter of `num_steps` steps from the shared weights. bound: that of one evaluation, and its
    distance from the mean of float64 evaluations, in standard deviations of these. memory: of a compiled training step.
    """
    peer.restart("initial")
    if name == "memory":
        return {"MiB of a training step": float(peer.bind("memory")()) / 2**20}
    if name == "train":
        return {"loss": np.mean(train(peer, name, num_steps)[-max(1, num_steps // 4) :])}
    value = result(peer, "bound", arrays["x"])
    return {"nats": value, "standard deviations from float64": (value - arrays["bound"]) / arrays["spread"]}


def _cell(problem: str, num_draws: int, **fields: Any) -> Cell:
    checks = ("train", "bound", "memory")
    return Cell(problem=problem, operations=("train",), checks=checks, num_draws=num_draws, **({"num_steps": 40} | fields))


TINY: dict[str, Any] = {"num_pixels": 12, "hidden_size": 8, "latent_size": 3, "batch_size": 16, "num_steps": 8}
FAMILY = Family(
    title="Variational autoencoders",
    cells={
        "elbo": _cell("elbo", 1),
        "iwae-50": _cell("iwae-50", 50, num_steps=8, turn_seconds=2.0),
        "tiny": _cell("tiny", 1, **TINY),
        "tiny-iwae": _cell("tiny-iwae", 5, **TINY),
    },
    quick=("elbo",),
    make=make,
    check=check,
    inputs={},
    notes="""\
An Adam step on 128 binary images of a 784-400-20 network with one draw (elbo) or 50 (iwae-50) for each; `flax` is what one would
write by hand. Loss: mean of the last quarter of the training steps, from shared weights, by other noise. One evaluation of the
bound lies within some three standard deviations of the float64 reference; of the ELBO those with a closed-form KL nearer.

genmod aims at the fastest of the others.""",
)
