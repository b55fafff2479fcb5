"""Binary images for the experiments on variational autoencoders."""

import jax
import jax.numpy as jnp

import genmod as gm
from genmod.core.keys import stream

COPIES = 20
"""Binary copies of each of scikit-learn's training images."""


def load(name: str, seed: int) -> gm.data.Dataset:
    """`binarized_mnist`, or `digits`: each pixel on with the probability of its grey level, drawn once for each copy.

    Raises ValueError for another name.
    """
    if name == "binarized_mnist":
        return gm.data.binarized_mnist()
    if name != "digits":
        raise ValueError(f"--data must be digits or binarized_mnist, got {name!r}")
    grey, key = gm.data.images.digits(seed), jax.random.key(seed)

    def draw(part, copies=1):
        levels = jnp.tile(getattr(grey, part), (copies, 1, 1, 1))
        return jax.random.bernoulli(stream(key, f"binary {part}"), levels / 16).astype(jnp.uint8)

    return gm.data.Dataset("binary_digits", draw("train", COPIES), draw("validation"), draw("test"), num_levels=2)
