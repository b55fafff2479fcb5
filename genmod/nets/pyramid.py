"""Convolutional networks between images and vectors: `ConvEncoder` halves an image level by level, `ConvDecoder` doubles it.

A level is a 3x3 convolution, an activation, and a mean over 2x2 pixels (or their repetition): no batch statistics, no strides,
whose gradients are slow on CPU. Where a side is odd a row or column of zeros is added, and cut off again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from genmod.core.checks import check_count, check_shape, check_widths
from genmod.core.types import Array, Shape
from genmod.nets.convolution import Conv


class ConvEncoder(nn.Module):
    """An image (H, W, C) -> (num_features,) features.

    Attributes:
      channels: of the convolutions, one for each halving. num_features: of the dense layer at the end.
      activation: after every layer. layer_norm: whether the channels of each pixel are normalised before it.
      dtype: of the arithmetic; None: that of the input.

    Raises TypeError or ValueError for sizes that are no integers >= 1, ValueError for an input that is no image.
    """

    channels: Sequence[int] = (32, 64)
    num_features: int = 256
    activation: Callable[[Array], Array] = nn.relu
    layer_norm: bool = False
    dtype: Any = None

    def __post_init__(self):
        self.channels = check_widths("channels", self.channels)
        check_count(num_features=self.num_features)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.ndim != 3:
            raise ValueError(f"ConvEncoder wants an image (H, W, C), got shape {x.shape}")
        for size in self.channels:
            x = _halved(_level(self, x, size))
        return self.activation(nn.Dense(self.num_features, dtype=self.dtype)(x.reshape(-1)))


class ConvDecoder(nn.Module):
    """A vector -> raw numbers of an image, (H, W, C, num_params), or (H, W, C * num_params) flattened alike.

    Attributes:
      shape: (H, W, C) of the image. num_params: raw numbers of every entry, those of a `Head`.
      channels: of the convolutions, one for each doubling, the coarsest first.
      activation, layer_norm, dtype: as of `ConvEncoder`.

    Raises TypeError or ValueError for sizes that are no integers >= 1, and for a shape that is not (H, W, C).
    """

    shape: Shape
    num_params: int = 1
    channels: Sequence[int] = (64, 32)
    activation: Callable[[Array], Array] = nn.relu
    layer_norm: bool = False
    dtype: Any = None

    def __post_init__(self):
        self.shape, self.channels = check_shape("shape", self.shape, least=1), check_widths("channels", self.channels)
        check_count(num_params=self.num_params)
        if len(self.shape) != 3:
            raise ValueError(f"shape must be (H, W, C), that of an image, got {self.shape}")
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.shape
        sides = [(height, width)]
        for _ in self.channels:
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        start = (*sides[-1], self.channels[0])
        x = self.activation(nn.Dense(start[0] * start[1] * start[2], dtype=self.dtype)(z.reshape(-1))).reshape(start)
        for size, (rows, columns) in zip(self.channels, sides[-2::-1], strict=True):
            x = _level(self, _doubled(x)[:rows, :columns], size)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return Conv(channels * self.num_params)(x).reshape(*self.shape, self.num_params)


def _level(net: Any, x: Array, size: int) -> Array:
    x = Conv(size, dtype=net.dtype)(x)
    return net.activation(nn.LayerNorm(dtype=net.dtype)(x) if net.layer_norm else x)


def _halved(x: Array) -> Array:
    height, width, channels = x.shape
    x = jnp.pad(x, ((0, height % 2), (0, width % 2), (0, 0)))
    return x.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((1, 3))


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, 0), 2, 1)
