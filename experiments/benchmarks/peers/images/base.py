"""What every library is asked to build, and the images that it is given.

An adapter is a module of this package, named like its library, with `build(cell, x) -> peers.base.Flow`: a Glow whose actnorms
have seen the batch x. Images are (N, H, W, C) floats in [0, 1] on both sides of the adapter, and densities are theirs.
"""

import dataclasses

import numpy as np

IMAGE = (28, 28, 1)
BATCH_SIZE = 64
NUM_BATCHES = 16
NUM_POINTS = 256
NUM_SAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Cell:
    """One Glow to build: K steps in each of L scales, couplings with a network of 3x3, 1x1 and 3x3 convolutions."""

    num_layers: int
    num_scales: int = 2
    hidden_channels: int = 64


def images(seed: int, num: int) -> np.ndarray:
    """Three smooth blobs on black in 8 bits, made continuous by uniform noise: (num, H, W, 1) float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(7.0, 21.0, (num, 3, 2, 1, 1)), rng.uniform(1.0, 4.0, (num, 3, 1, 1))
    square = ((np.mgrid[: IMAGE[0], : IMAGE[1]] - centre) ** 2).sum(2)
    pixels = np.floor(255.0 * np.exp(-0.5 * square / radius**2).sum(1).clip(0.0, 1.0))
    return ((pixels + rng.random(pixels.shape)) / 256.0)[..., None].astype(np.float32)
