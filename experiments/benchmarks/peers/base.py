"""What every library is asked to build and do, and the data it is given.

An adapter is a module of this package, named like its library, with a function
`build(cell) -> Flow` and, where the library ships a training loop,
`fitter(cell, x) -> fit` with `fit(num_epochs)`. It raises `Unsupported` for a model
that the library does not offer.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np

from experiments.benchmarks.peers.serve import Unsupported as Unsupported

OPERATIONS = ("train", "log_prob", "sample")

BATCH_SIZE = 1024
NUM_POINTS = 10_000
LEARNING_RATE = 1e-3
GRID_LIMIT = 5.0

FIT_BATCH_SIZE = 256
FIT_VALIDATION = 1_000
FIT_STEPS_PER_EPOCH = (NUM_POINTS - FIT_VALIDATION) // FIT_BATCH_SIZE


@dataclasses.dataclass(frozen=True)
class Cell:
    """One flow to build: family ("realnvp", "nsf" or "maf"), size and depth."""

    flow: str
    dim: int
    num_layers: int
    hidden_size: int = 128
    num_hidden: int = 2
    num_bins: int = 8
    bound: float = 5.0

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Widths of the conditioner's hidden layers."""
        return (self.hidden_size,) * self.num_hidden


class Flow(Protocol):
    """A built flow. Every method returns only when its result has been computed."""

    num_params: int
    compiles: bool

    def array(self, x: np.ndarray) -> Any:
        """The library's own array."""
        ...

    def train_step(self, batch: Any) -> None:
        """One Adam step on the mean negative log-likelihood of the batch."""
        ...

    def log_prob(self, x: Any) -> Any:
        """Log-density in nats, (N, D) -> (N,)."""
        ...

    def sample(self, num: int) -> Any:
        """Samples, (num, D)."""
        ...

    def round_trip(self, x: Any) -> Any:
        """The data x sent to the base and back, (N, D)."""
        ...


def moons(seed: int, num: int, dim: int) -> np.ndarray:
    """`dim / 2` independent pairs of two moons (noise 0.1), each coordinate standardised.

    For dim > 2 the coordinates are shuffled by one fixed permutation, so that no
    library's way of splitting them is favoured. Returns float32, (num, dim).
    """
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0.0, np.pi, (num, dim // 2))
    upper = rng.integers(0, 2, angle.shape)
    first = np.where(upper, np.cos(angle), 1.0 - np.cos(angle))
    second = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    pairs = np.stack([first, second], axis=-1) + 0.1 * rng.normal(size=(*angle.shape, 2))
    variance = np.array([0.75, 0.5625 - 1.0 / np.pi]) + 0.01
    x = ((pairs - np.array([0.5, 0.25])) / np.sqrt(variance)).reshape(num, dim)
    order = np.arange(dim) if dim == 2 else np.random.default_rng(0).permutation(dim)
    return x[:, order].astype(np.float32)


def uniform(seed: int, num: int, dim: int, limit: float) -> np.ndarray:
    """Uniform points in [-limit, limit]^dim: far outside the data where limit is 10."""
    return np.random.default_rng(seed).uniform(-limit, limit, (num, dim)).astype(np.float32)


def grid() -> np.ndarray:
    """`NUM_POINTS` midpoints of a square grid over [-GRID_LIMIT, GRID_LIMIT]^2."""
    side = round(NUM_POINTS**0.5)
    axis = (np.arange(side) + 0.5) / side * 2 * GRID_LIMIT - GRID_LIMIT
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
