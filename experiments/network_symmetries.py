"""What an output of a convolutional network sees, and what a shift of the image does to it.

receptive field     1 + sum_l (k_l - 1) j_l along a side, j_l the product of the strides before layer l; of a causal
                    convolution 1 + (k - 1) sum_l d_l with dilations d_l; counted as the support of a gradient
what it weighs      of a ReLU net of random kernels E(gradient)^2 is a convolution of uniform squares: its variance along a
                    side is sum_l (k_l^2 - 1) / 12, so that it grows as the root of the field (Luo et al. 2016,
                    arXiv:1701.04128, sec. 2)
equivariance        f(shifted x) = shifted f(x) off the border for a convolution; for one with a mean over s x s pixels, for
                    shifts by multiples of s; the mean over all pixels does not change
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import genmod as gm
from genmod.nets.convolution import Conv

CAUSAL = ((2, (1, 2, 4, 8)), (2, (1, 1, 1, 1)), (3, (1, 3, 9)), (3, (1, 2, 4, 1, 2, 4)))
"""Kernel sizes and dilations of causal convolutions."""
STACKS = ((3, 3, 3, 3), (5, 5), (9,), (3, 3, 2, 3, 3), (3, 2, 3, 2, 3))
"""Layers of convolutions: odd numbers are kernel sizes, even ones the sides of the squares over which the mean is taken."""


class Convolutions(nn.Module):
    """Convolutions with an activation after each, and means over squares: an image (H, W, C) -> (h, w, channels).

    Attributes:
      layers: as of `STACKS`. channels: of every convolution. activation: after each.
    """

    layers: Sequence[int]
    channels: int = 8
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh

    @nn.compact
    def __call__(self, x):
        for size in self.layers:
            x = self.activation(Conv(self.channels, size)(x)) if size % 2 else pooled(x, size)
        return x


def pooled(x: jax.Array, size: int) -> jax.Array:
    """Means over squares of size x size pixels of an image (H, W, C) whose sides are multiples of it."""
    height, width, channels = x.shape
    return x.reshape(height // size, size, width // size, size, channels).mean((1, 3))


def causal_field(key: jax.Array, kernel_size: int, dilations: tuple[int, ...]) -> tuple[int, int]:
    """The receptive field of `CausalConv` by the formula, and by the gradient of its last output."""
    net = gm.nets.CausalConv(4, kernel_size, dilations)
    formula = 1 + (kernel_size - 1) * sum(dilations)
    keys = jax.random.split(key)
    x = jax.random.normal(keys[0], (formula + 8, 2))
    params = net.init(keys[1], x)
    gradient = jax.jit(jax.grad(lambda x: net.apply(params, x)[-1].sum()))(x)
    seen = np.flatnonzero(np.abs(np.asarray(gradient)).sum(1))
    return formula, len(x) - int(seen[0])


def image_field(key: jax.Array, layers: tuple[int, ...]) -> tuple[int, int]:
    """The side of the receptive field of a stack by the formula, and by the gradient of an output in the middle."""
    formula, stride = 1, 1
    for size in layers:
        formula += (size - 1) * stride
        stride *= 1 if size % 2 else size
    keys = jax.random.split(key)
    side = stride * (2 * (formula // stride) + 4)
    x = jax.random.normal(keys[0], (side, side, 1))
    net = Convolutions(layers)
    params = gm.nets.init(net, keys[1], x)
    middle = side // stride // 2
    gradient = jax.jit(jax.grad(lambda x: gm.nets.apply(net, params, x)[middle, middle].sum()))(x)
    seen = np.abs(np.asarray(gradient)[..., 0])
    rows, columns = (np.flatnonzero(seen.sum(axis)) for axis in (1, 0))
    assert len(rows) == len(columns)
    return formula, int(rows[-1] - rows[0]) + 1


def effective_field(key: jax.Array, num_layers: int, num_draws: int) -> tuple[np.ndarray, gm.metrics.Measured, float]:
    """Of a ReLU net of 3x3 kernels: the mean squared gradient of an output, (side, side) with the receptive field as the side;
    the standard deviation of that mass along a side, and what it should be."""
    side = 2 * num_layers + 1
    net = Convolutions((3,) * num_layers, activation=nn.relu)

    def draw(key):
        keys = jax.random.split(key, 3)
        x = jax.random.normal(keys[0], (side, side, 1))
        params = gm.nets.init(net, keys[1], x)
        # Random signs of the channels, so that paths to different ones do not interfere.
        signs = jax.random.rademacher(keys[2], (net.channels,), x.dtype)
        return jax.grad(lambda x: gm.nets.apply(net, params, x)[num_layers, num_layers] @ signs)(x)[..., 0] ** 2

    squares = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=8))(jax.random.split(key, num_draws))
    squares = np.asarray(squares, np.float64)
    distance = (np.arange(side) - num_layers) ** 2
    # Both sides count; the delta method for a ratio of means, then for the root.
    moments = (squares.sum(2) @ distance + squares.sum(1) @ distance) / 2
    masses = squares.sum((1, 2))
    variance = moments.mean() / masses.mean()
    sem = float(gm.metrics.mean_and_sem((moments - variance * masses) / masses.mean())[1])
    measured = gm.metrics.Measured(float(np.sqrt(variance)), sem / (2 * float(np.sqrt(variance))))
    return squares.mean(0) / squares.mean(0).sum(), measured, float(np.sqrt(num_layers * 8 / 12))


def equivariance(key: jax.Array, shifts: Sequence[int], side: int, num_layers: int) -> list[dict[str, float]]:
    """For each shift along a side, |f(shifted x) - shifted f(x)| / |f(x)| of an image of noise.

    By 3x3 convolutions, off the border, at it, with circular padding, and then behind a mean over 2x2 pixels.
    """
    keys = jax.random.split(key)
    x, net = jax.random.normal(keys[0], (side, side, 1)), Convolutions((3,) * num_layers, activation=nn.relu)
    params = gm.nets.init(net, keys[1], x)
    features = jax.jit(lambda x: gm.nets.apply(net, params, x))
    shifted = jax.jit(lambda x, by: jnp.roll(x, by, 1))

    def circular(x):
        margin = [(num_layers, num_layers)] * 2 + [(0, 0)]
        return features(jnp.pad(x, margin, mode="wrap"))[num_layers:-num_layers, num_layers:-num_layers]

    def error(f, by, out, rows=slice(None)):
        found, expected = f(shifted(x, by))[:, rows], shifted(f(x), out)[:, rows]
        return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))

    table = []
    for by in shifts:
        # Where either the image or its shift feels the border of zeros, or the seam of the shift.
        inside = slice(num_layers + by, side - num_layers)
        row = {"shift": by, "off the border": error(features, by, by, inside)}
        row |= {"at the border": error(features, by, by, slice(0, num_layers + by)), "circular": error(circular, by, by)}
        if by % 2 == 0:
            row["circular, mean over 2x2"] = error(lambda x: pooled(circular(x), 2), by, by // 2)
        table.append(row)
    return table


def invariance(key: jax.Array, digits: jax.Array, shifts: Sequence[int], num_layers: int) -> dict[str, np.ndarray]:
    """By features, |f(shifted x) - f(x)| / |f(x)| of digits on a black ground, (n, shifts).

    Features are those of 3x3 convolutions, their means over squares and over the whole image, and those of a perceptron.
    """
    side = digits.shape[1]
    keys = jax.random.split(key)
    net, perceptron = Convolutions((3,) * num_layers, activation=nn.relu), gm.nets.FlatNet(gm.nets.MLP((128, 128)))
    params, other = gm.nets.init(net, keys[0], digits[0]), gm.nets.init(perceptron, keys[1], digits[0])
    sizes = [size for size in (1, 2, 4, 8) if side % size == 0]

    def features(x):
        found = gm.nets.apply(net, params, x)
        outs = {"perceptron": gm.nets.apply(perceptron, other, x), "convolutions": found}
        outs |= {f"mean over {size}x{size}": pooled(found, size) for size in sizes[1:]}
        return outs | {"mean over all": found.mean((0, 1))}

    def change(x):
        plain = features(x)
        moved = [features(jnp.roll(x, by, 1)) for by in shifts]
        return {name: jnp.stack([jnp.linalg.norm(m[name] - f) for m in moved]) / jnp.linalg.norm(f) for name, f in plain.items()}

    return {name: np.asarray(value) for name, value in jax.jit(jax.vmap(change))(digits).items()}
