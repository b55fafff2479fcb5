"""A flow of phi^4 on an 8 x 8 lattice (Albergo et al. 2021, arXiv:2101.08176): a training step by the reverse KL, and draws.

    x = z exp(s) + t on the sites of one colour,  (t, r) = net(z on the others, 0 elsewhere),  s = B tanh(r / B)
    loss = mean of log q(x) + S(x),    log q(x) = log N(z; 0, I) - sum of all s

S(x) is the action of genmod/densities/lattice.py. 16 couplings, whose colours alternate, odd sites pass first; networks 1-8-8-2
of circular convolutions, 3 x 3, with a leaky ReLU; an Adam step on 64 draws, and 1,000 draws with their log q. All libraries
begin with the same weights; each makes its own noise. A peer has beside `train` and `sample`: `given`, log q(x) + S(x) of a
given z.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result, train

LARGEST_LOG_SCALE = 3.0  # B
SLOPE = 0.01  # of the leaky ReLU below zero
MASS_SQUARED, COUPLING = -4.0, 8.0
NUM_BATCHES = 64  # keys in turn of the libraries that have keys; the batches themselves are not read
NUM_REFERENCE = 4_000  # draws of the float64 reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """Sizes."""

    size: int = 8  # of the lattice, in both directions
    num_layers: int = 16
    hidden_channels: tuple[int, ...] = (8, 8)
    batch_size: int = 64
    num_samples: int = 1_000


def weights(arrays: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    """By convolution (kernels, biases), of all N couplings: (N, 3, 3, inputs, outputs) and (N, outputs)."""
    return [(arrays[f"kernel_{i}"], arrays[f"bias_{i}"]) for i in range(sum(name.startswith("kernel_") for name in arrays))]


def kept_sites(cell: Cell, layer: int) -> np.ndarray:
    """The sites that pass a coupling unchanged, bools."""
    return np.indices((cell.size, cell.size)).sum(0) % 2 == (layer + 1) % 2


def action(x: np.ndarray) -> np.ndarray:
    """S(x) of fields (n, L, L)."""
    density = MASS_SQUARED * x**2 + COUPLING * x**4 + sum((x - np.roll(x, -1, axis)) ** 2 for axis in (1, 2))
    return density.sum((1, 2))


def make(cell: Cell) -> Arrays:
    """Weights, uniform within 1 / sqrt(inputs) as PyTorch has them; latents z, and log q(x) + S(x) of these and of others."""
    rng = np.random.default_rng(0)
    channels, arrays = (1, *cell.hidden_channels, 2), {}
    for i, (a, b) in enumerate(itertools.pairwise(channels)):
        bound = (9 * a) ** -0.5
        arrays[f"kernel_{i}"] = rng.uniform(-bound, bound, (cell.num_layers, 3, 3, a, b)).astype(np.float32)
        arrays[f"bias_{i}"] = rng.uniform(-bound, bound, (cell.num_layers, b)).astype(np.float32)
    z = rng.standard_normal((cell.batch_size, cell.size, cell.size)).astype(np.float32)
    others = _excess(cell, arrays, rng.standard_normal((NUM_REFERENCE, cell.size, cell.size)))
    found = {"given": _excess(cell, arrays, z.astype(np.float64)), "mean": others.mean(), "variance": others.var(ddof=1)}
    return {**arrays, **found, "z": z, "batches": np.zeros((NUM_BATCHES, 1), np.float32)}


def _excess(cell: Cell, arrays: Arrays, z: np.ndarray) -> np.ndarray:
    """log q(x) + S(x), by the definition in float64."""
    log_q = -0.5 * (z**2 + np.log(2 * np.pi)).sum((1, 2))
    for layer in range(cell.num_layers):
        kept = kept_sites(cell, layer)
        h = np.where(kept, z, 0.0)[..., None]
        for i, (kernels, biases) in enumerate(weights(arrays)):
            h = np.where(h < 0, SLOPE * h, h) if i else h
            near = ((np.roll(h, (1 - a, 1 - b), (1, 2)), kernels[layer, a, b]) for a in range(3) for b in range(3))
            h = biases[layer] + sum(shifted @ kernel.astype(np.float64) for shifted, kernel in near)
        log_scale = np.where(kept, 0.0, LARGEST_LOG_SCALE * np.tanh(h[..., 1] / LARGEST_LOG_SCALE))
        z = np.where(kept, z, z * np.exp(log_scale) + h[..., 0])
        log_q = log_q - log_scale.sum((1, 2))
    return log_q + action(z)


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """What an operation is worth.

    given: the error of log q(x) + S(x) of the same z. sample: the mean of the same over draws, and its distance from the float64
    reference. train: the mean loss of the last quarter of `num_steps` steps from the shared weights.
    """
    peer.restart("initial")
    if name == "train":
        return {"loss": np.mean(train(peer, name, num_steps)[-max(1, num_steps // 4) :])}
    if name == "given":
        error = result(peer, name, arrays["z"]) - arrays["given"]
        return {"largest relative error": float(np.max(np.abs(error / arrays["given"])))}
    x, log_q = (np.asarray(a, np.float64) for a in peer.bind(name)())
    mean = np.mean(log_q + action(x))
    sem = (arrays["variance"] * (1 / len(x) + 1 / NUM_REFERENCE)) ** 0.5
    return {"nats": mean, "standard deviations from float64": (mean - arrays["mean"]) / sem}


def _cell(problem: str, **fields: Any) -> Cell:
    return Cell(problem=problem, operations=("train", "sample"), checks=("train", "given", "sample"), **fields)


FAMILY = Family(
    title="Flows of phi^4 on a lattice",
    cells={
        "8x8": _cell("8x8", num_steps=200),
        "tiny": _cell("tiny", num_steps=200, size=4, num_layers=2, hidden_channels=(3,), batch_size=16),
    },
    quick=("8x8",),
    make=make,
    check=check,
    inputs={},
    notes="""\
An Adam step on 64 fields and 1,000 draws with log q, of 16 affine couplings with networks 1-8-8-2. `plainjax` and `torch` are
what one would write by hand. Loss: mean of the last quarter of the training steps, from shared weights, by other noise.

genmod aims at a third of PyTorch's time for a training step.""",
)
