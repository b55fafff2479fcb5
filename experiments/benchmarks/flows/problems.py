"""Flows on vectors, and Glow on images.

realnvp, nsf, maf: 8 affine couplings, 8 spline couplings of 8 bins, 5 affine autoregressive layers in D = 2 or 64, with MLPs of
    2 x 128. One Adam step on the NLL of 1,024 points (`train`), log_prob of 10,000 points and sampling of 10,000.
glow: L = 2 scales of K = 8 or 32 steps on 28x28x1 images, couplings of 64 hidden channels. The same on 64, 256 and 64 images,
    (N, H, W, C) floats in [0, 1] on both sides of a peer, and densities are theirs; the actnorms have seen the first batch.
loop: the training loops that libraries ship, for 2 and for 12 epochs of 10,000 points.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.benchmarks import peer as base
from experiments.benchmarks.peer import Arrays, Family, Peer, result, train

OPERATIONS = ("train", "log_prob", "sample")
EPOCHS = {"epochs_2": 2, "epochs_12": 12}
FIT_BATCH_SIZE, FIT_VALIDATION = 256, 1_000
GRID_LIMIT = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(base.Cell):
    """One flow to build: "realnvp", "nsf", "maf" or, with two scales of `num_layers` steps, "glow"."""

    flow: str
    event_shape: tuple[int, ...]
    num_layers: int
    hidden_size: int = 128  # of two hidden layers
    num_bins: int = 8
    bound: float = 5.0
    batch_size: int = 1024
    num_points: int = 10_000  # of log_prob: the square of an integer
    num_samples: int = 10_000

    @property
    def dim(self) -> int:
        return int(np.prod(self.event_shape))


def moons(seed: int, num: int, dim: int) -> np.ndarray:
    """`dim / 2` independent pairs of two moons (noise 0.1), each coordinate standardised; float32, (num, dim).

    For dim > 2 the coordinates are shuffled by one fixed permutation, so that no library's way of splitting them is favoured.
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


def images(seed: int, num: int, shape: tuple[int, ...]) -> np.ndarray:
    """Three smooth blobs on black in 8 bits, made continuous by uniform noise: (num, H, W, 1) float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(7.0, 21.0, (num, 3, 2, 1, 1)), rng.uniform(1.0, 4.0, (num, 3, 1, 1))
    square = ((np.mgrid[: shape[0], : shape[1]] - centre) ** 2).sum(2)
    pixels = np.floor(255.0 * np.exp(-0.5 * square / radius**2).sum(1).clip(0.0, 1.0))
    return ((pixels + rng.random(pixels.shape)) / 256.0)[..., None].astype(np.float32)


def make(cell: Cell) -> Arrays:
    """Training batches and held-out `x`; of vectors, points far outside (`wide`) and midpoints of a square grid for D = 2."""
    draw, of = (images, cell.event_shape) if cell.flow == "glow" else (moons, cell.dim)
    batches = draw(1, 16 * cell.batch_size, of).reshape(16, cell.batch_size, *cell.event_shape)
    arrays = {"batches": batches, "x": draw(2, cell.num_points, of)}
    if cell.flow == "glow":
        return arrays
    side = round(cell.num_points**0.5)
    axis = (np.arange(side) + 0.5) / side * 2 * GRID_LIMIT - GRID_LIMIT
    wide = np.random.default_rng(3).uniform(-10.0, 10.0, (cell.num_points, cell.dim)).astype(np.float32)
    return arrays | {"wide": wide, "grid": np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)}


def check(cell: Cell, arrays: Arrays, peer: Peer, name: str, num_steps: int) -> dict[str, Any]:
    """`train` trains; then `log_prob` asks whether this is a density, `sample` whether it is a bijection."""
    if name == "train":
        train(peer, name, num_steps)
        return {}
    if name == "sample":
        return {f"inverse error, {of}": inverse_error(peer, arrays[of]) for of in ("x", "wide") if of in arrays}
    nll = -result(peer, name, arrays["x"]).mean()
    if cell.flow == "glow":
        return {"bits per dimension of 8-bit images": nll / cell.dim / np.log(2.0) + 8.0}
    if cell.dim > 2:
        return {"NLL, nats": nll}
    return {"NLL, nats": nll, "mass": np.exp(result(peer, name, arrays["grid"])).mean() * (2 * GRID_LIMIT) ** 2}


def inverse_error(peer: Peer, x: np.ndarray) -> float | str:
    """max |x - f(f^-1(x))|."""
    try:
        return np.abs(result(peer, "round_trip", x) - x).max()
    except AssertionError:  # the spline inverse of nflows and normflows refuses this way
        return "fails"


def fit_data(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, int]:
    """(training points, validation points, steps per epoch) of the training loops."""
    x = np.concatenate(arrays["batches"])[:10_000]
    return x[:-FIT_VALIDATION], x[-FIT_VALIDATION:], (len(x) - FIT_VALIDATION) // FIT_BATCH_SIZE


def _cell(flow: str, dim: int = 2, **fields: Any) -> Cell:
    shared = {"operations": OPERATIONS, "checks": OPERATIONS, "num_steps": 300 if dim == 2 else 100, "problem": f"moons-{dim}"}
    return Cell(flow=flow, event_shape=(dim,), **(shared | {"num_layers": 5 if flow == "maf" else 8} | fields))


def _glow(num_layers: int, **fields: Any) -> Cell:
    sizes = {"event_shape": (28, 28, 1), "hidden_size": 64, "batch_size": 64, "num_points": 256, "num_samples": 64}
    shared = {"operations": OPERATIONS, "problem": "blobs", "num_steps": 50, "turn_seconds": 1.0}
    return Cell(flow="glow", num_layers=num_layers, **(shared | sizes | fields))


TINY = {"problem": "tiny", "hidden_size": 8, "batch_size": 32, "num_points": 100, "num_samples": 100, "num_steps": 10}
FAMILY = Family(
    title="Flows",
    cells={
        **{f"{flow}-{dim}": _cell(flow, dim) for flow in ("realnvp", "nsf", "maf") for dim in (2, 64)},
        "nsf-2-deep": _cell("nsf", num_layers=32, operations=("train",), checks=()),
        **{f"{flow}-loop": _cell(flow, operations=tuple(EPOCHS), checks=()) for flow in ("realnvp", "nsf")},
        "glow": _glow(8, checks=OPERATIONS),
        "glow-deep": _glow(32),
        "tiny": _cell("realnvp", num_layers=2, **TINY),
        "tiny-glow": _glow(1, checks=OPERATIONS, **(TINY | {"problem": "tiny-blobs", "event_shape": (8, 8, 1)})),
    },
    quick=("realnvp-2", "nsf-2"),
    make=make,
    check=check,
    inputs={"log_prob": "x"},
    notes="""\
Mass is the integral of the density over [-5, 5]^2; inverse error is max |x - f(f^-1(x))|, wide on uniform points in [-10, 10]^D;
both after 300 training steps (D = 2), 100 (D = 64) or 50 (glow), a fifth with --quick. Training loops: D = 2, 10,000 points,
batch 256, a validation per epoch (35 steps). The deep cells show how compilation grows with depth.

Glow, equal on both sides: images, alpha-logit, two scales of K steps (actnorm, 1x1 convolution by PLU, affine coupling of half
the channels), a network of 3x3, 1x1 and 3x3 convolutions with 64 hidden channels, ReLU, no actnorm inside and zeros at the end,
Adam, float32. Different: genmod's latents that leave early are Gaussian given the rest, by one network more (7,684 parameters),
normflows' are Gaussian with a learned mean and scale each; log-scales are soft-bounded here, a sigmoid there; log_prob inverts
the small matrices here (triangular solves), sampling there (in float64); normflows' sampling computes log q as well.""",
    differences={"an epoch": ("epochs_12", "epochs_2", 10)},
)
