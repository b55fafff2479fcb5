"""Convolutional conditioners of one image: (H, W, channels) -> (H, W, hidden_channels) features.

`ZeroHead` puts the zero-initialised last layer behind them, a convolution of `head_kernel` x `head_kernel` pixels. All raise
ValueError for sizes that are no integers >= 1.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_count
from genmod.core.types import Array
from genmod.nets.convolution import Conv


class GlowNet(nn.Module):
    """Glow's three layers: 3x3 convolution, 1x1 convolution, and the 3x3 head (Kingma & Dhariwal 2018, app. B).

    Attributes:
      hidden_channels: width of both layers. activation: after each.
      dtype: of the arithmetic; None: that of the input.
      head_kernel: size of the convolution that `ZeroHead` puts behind it.
    """

    hidden_channels: int = 64
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = None
    head_kernel: int = 3

    def __post_init__(self):
        check_count(hidden_channels=self.hidden_channels, head_kernel=self.head_kernel)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.activation(Conv(self.hidden_channels, dtype=self.dtype)(x))
        return self.activation(nn.Dense(self.hidden_channels, dtype=self.dtype)(x))  # a 1x1 convolution


class ResNet(nn.Module):
    """RealNVP's residual network, pre-activated (Dinh et al. 2016, arXiv:1605.08803, sec. 4.1).

    Each block adds half of conv3x3(act(conv3x3(act(h)))), half so that the variance does not double block by block. With
    `layer_norm` the block's input is normalised over the channels of each pixel; batch statistics would make the density of
    an image depend on its neighbours in the batch.

    Attributes:
      hidden_channels: width of every layer. num_blocks: residual blocks.
      activation, layer_norm: of the blocks.
      dtype: of the arithmetic; None: that of the input.
      head_kernel: size of the convolution that `ZeroHead` puts behind it.
    """

    hidden_channels: int = 32
    num_blocks: int = 2
    activation: Callable[[Array], Array] = nn.relu
    layer_norm: bool = False
    dtype: Any = None
    head_kernel: int = 1

    def __post_init__(self):
        check_count(hidden_channels=self.hidden_channels, num_blocks=self.num_blocks, head_kernel=self.head_kernel)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.hidden_channels, dtype=self.dtype)(x)
        for _ in range(self.num_blocks):
            hidden = nn.LayerNorm(dtype=self.dtype)(x) if self.layer_norm else x
            hidden = Conv(self.hidden_channels, dtype=self.dtype)(self.activation(hidden))
            x = x + 0.5 * Conv(self.hidden_channels, dtype=self.dtype)(self.activation(hidden))
        return self.activation(x)


class GatedAttentionNet(nn.Module):
    """Gated convolutions and self-attention over the pixels (Flow++; Ho et al. 2019, arXiv:1902.00275, sec. 3.3).

    Each block is h <- norm(h + gated conv(h)), then h <- norm(h + gated attention(h)), a gated layer being a sigmoid(b) of
    two halves a, b. Attention costs O((H W)^2) in time and memory: for the coarse scales of an image.

    Attributes:
      hidden_channels: width of every layer, a multiple of `num_heads`. num_blocks: pairs of gated layers.
      num_heads: of the attention.
      activation: of the convolutions.
      dtype: of the arithmetic; None: that of the input.
      head_kernel: size of the convolution that `ZeroHead` puts behind it.
    """

    hidden_channels: int = 32
    num_blocks: int = 1
    num_heads: int = 4
    activation: Callable[[Array], Array] = nn.elu
    dtype: Any = None
    head_kernel: int = 3

    def __post_init__(self):
        check_count(hidden_channels=self.hidden_channels, num_blocks=self.num_blocks, num_heads=self.num_heads)
        if self.hidden_channels % self.num_heads:
            raise ValueError(f"hidden_channels must be a multiple of num_heads={self.num_heads}, got {self.hidden_channels}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        place = self.param("position", nn.initializers.normal(0.01), (*x.shape[:2], self.hidden_channels))
        hidden = Conv(self.hidden_channels, dtype=self.dtype)(x) + place.astype(x.dtype)
        for _ in range(self.num_blocks):
            gated = Conv(2 * self.hidden_channels, dtype=self.dtype)(self.activation(hidden))
            hidden = nn.LayerNorm(dtype=self.dtype)(hidden + _gate(gated))
            hidden = nn.LayerNorm(dtype=self.dtype)(hidden + _gate(self._attention(hidden)))
        return self.activation(hidden)

    def _attention(self, hidden: Array) -> Array:
        pixels = hidden.reshape(-1, self.hidden_channels)
        shape = (3, self.num_heads, self.hidden_channels // self.num_heads)
        query, key, value = jnp.moveaxis(nn.DenseGeneral(shape, use_bias=False, dtype=self.dtype)(pixels), 1, 0)
        logits = jnp.einsum("ihd,jhd->hij", query, key) / math.sqrt(shape[-1])
        mixed = jnp.einsum("hij,jhd->ihd", jax.nn.softmax(logits, -1), value).reshape(pixels.shape)
        return nn.Dense(2 * self.hidden_channels, dtype=self.dtype)(mixed).reshape(*hidden.shape[:2], -1)


def _gate(x: Array) -> Array:
    value, gate = jnp.split(x, 2, -1)
    return value * nn.sigmoid(gate)
