"""A step of contrastive divergence, CD-1, of a restricted Boltzmann machine of bits.

    -log f(x, h) = -b.x - c.h - x^T W h,        W += rate (<x E[h | x]>_data - <x E[h | x]>_chains),  b and c alike

The chain draws h given x, and x given h. 784-500, SGD on 128 images; all libraries begin with the same weights. A peer has beside
`train`: `reconstruct`, x -> E[x | h = E[h | x]].
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result, train

RATE = 0.05
NUM_BATCHES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """Sizes."""

    num_visible: int = 784
    num_hidden: int = 500
    batch_size: int = 128


def make(cell: Cell) -> Arrays:
    """Weights N(0, .01^2), no biases; images that a few hidden causes draw."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((NUM_BATCHES * cell.batch_size, 10)) @ rng.standard_normal((10, cell.num_visible))
    images = (rng.random(causes.shape) < 1 / (1 + np.exp(-causes))).astype(np.uint8)
    batches = images.reshape(NUM_BATCHES, cell.batch_size, cell.num_visible)
    weights = (0.01 * rng.standard_normal((cell.num_visible, cell.num_hidden))).astype(np.float32)
    return {"weights": weights, "batches": batches, "x": batches[0]}


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """The mean squared error of the reconstruction of a batch after `num_steps` steps, beside that of its column means."""
    peer.restart("initial")
    train(peer, "train", num_steps)
    error = result(peer, "reconstruct", arrays["x"]) - arrays["x"]
    return {"error of reconstruction": float(np.mean(error**2)), "of column means": float(np.mean(arrays["x"].var(0)))}


FAMILY = Family(
    title="Contrastive divergence",
    cells={
        "784-500": Cell(problem="784-500", operations=("train",), checks=("train",), num_steps=200),
        "tiny": Cell(
            problem="tiny",
            operations=("train",),
            checks=("train",),
            num_steps=8,
            num_visible=12,
            num_hidden=8,
            batch_size=16,
        ),
    },
    quick=("784-500",),
    make=make,
    check=check,
    inputs={},
    notes="""\
A step of SGD by CD-1 on 128 images of a 784-500 machine. PyTorch is written by hand, with the five matrix products that
there must be and no autograd; scikit-learn's `partial_fit` moves persistent chains, which costs the same. genmod aims at half
of PyTorch's time and a quarter of scikit-learn's.""",
)
