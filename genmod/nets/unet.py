"""A compact U-Net (Ronneberger et al. 2015, arXiv:1505.04597) for images at a noise level, as in DDPM (Ho et al. 2020,
arXiv:2006.11239, app. B)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_widths
from genmod.core.numerics import flat_context
from genmod.core.types import Array
from genmod.nets.convolution import Conv


class UNet(nn.Module):
    """(x, c, context) -> an image like x, (H, W, C), for a scalar noise level c; the last layer starts at zero.

    Blocks are group normalised, and scaled and shifted by an embedding of c and of the context (flat, if there is one). Between
    resolutions the image is halved, so 2^(len(multipliers) - 1) must divide its height and width.

    Attributes:
      hidden_channels: width of the first resolution. multipliers: one per resolution, of that width.
      num_blocks: residual blocks per resolution on the way down; one more on the way up.
      attention_pixels: self-attention stands in the middle, and wherever an image has at most so many pixels.
      num_heads: of the attention. activation: of the blocks.
      dtype: of the arithmetic; None: that of the input.

    Raises ValueError for sizes that are no integers >= 1, and for images that cannot be halved so often.
    """

    hidden_channels: int = 32
    multipliers: Sequence[int] = (1, 2, 2)
    num_blocks: int = 1
    attention_pixels: int = 64
    num_heads: int = 4
    activation: Callable[[Array], Array] = nn.silu
    dtype: Any = None

    def __post_init__(self):
        self.multipliers = check_widths("multipliers", self.multipliers)
        check_count(num_multipliers=len(self.multipliers), hidden_channels=self.hidden_channels)
        check_count(num_blocks=self.num_blocks, num_heads=self.num_heads)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, c: Array, context: Array | None = None) -> Array:
        factor = 2 ** (len(self.multipliers) - 1)
        if x.ndim != 3 or x.shape[0] % factor or x.shape[1] % factor:
            raise ValueError(f"UNet wants an image (H, W, C) whose height and width {factor} divides, got shape {x.shape}")
        embedding = self._embed(c, context)
        widths = [self.hidden_channels * multiplier for multiplier in self.multipliers]
        hidden = Conv(widths[0], dtype=self.dtype)(x)
        kept = [hidden]
        for i, width in enumerate(widths):
            if i:
                hidden = Conv(width, dtype=self.dtype)(_halved(hidden))
                kept.append(hidden)
            for _ in range(self.num_blocks):
                hidden = self._block(hidden, embedding, width)
                kept.append(hidden)
        hidden = self._block(hidden, embedding, widths[-1], attend=True)
        for i, width in reversed(list(enumerate(widths))):
            for _ in range(self.num_blocks + 1):
                hidden = self._block(jnp.concatenate([hidden, kept.pop()], -1), embedding, width)
            if i:
                hidden = Conv(width, dtype=self.dtype)(_doubled(hidden))
        hidden = self.activation(_normalised(hidden))
        hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
        return Conv(x.shape[-1], kernel_init=nn.initializers.zeros)(hidden)

    def _embed(self, c, context):
        # The slowest wave has a period of 16, so that no two levels of |c| < 8 look alike; c is -lambda / 8 of a diffusion.
        angles = jnp.pi * c * 2.0 ** jnp.arange(-3, 7, dtype=c.dtype)
        features = [jnp.sin(angles), jnp.cos(angles)]
        if context is not None:
            features.append(flat_context(context, c.dtype))
        hidden = nn.Dense(4 * self.hidden_channels, dtype=self.dtype)(jnp.concatenate(features))
        return self.activation(nn.Dense(4 * self.hidden_channels, dtype=self.dtype)(self.activation(hidden)))

    def _block(self, x, embedding, width, attend=False):
        """x + conv(act(film(norm(conv(act(norm(x))))))), then attention on small images."""
        hidden = Conv(width, dtype=self.dtype)(self.activation(_normalised(x)))
        scale, shift = jnp.split(nn.Dense(2 * width, dtype=self.dtype)(embedding), 2)
        hidden = _normalised(hidden) * (1.0 + scale)[None, None] + shift[None, None]
        hidden = Conv(width, kernel_init=nn.initializers.zeros, dtype=self.dtype)(self.activation(hidden))
        skip = x if x.shape[-1] == width else nn.Dense(width, dtype=self.dtype)(x)
        x = skip + hidden
        return self._attend(x) if attend or x.shape[0] * x.shape[1] <= self.attention_pixels else x

    def _attend(self, x):
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"the channels of a level must be a multiple of num_heads={self.num_heads}, got {width}")
        pixels = _normalised(x).reshape(-1, width)
        shape = (3, self.num_heads, width // self.num_heads)
        query, key, value = jnp.moveaxis(nn.DenseGeneral(shape, dtype=self.dtype)(pixels), 1, 0)
        logits = jnp.einsum("ihd,jhd->hij", query, key) / math.sqrt(shape[-1])
        mixed = jnp.einsum("hij,jhd->ihd", jax.nn.softmax(logits, -1), value).reshape(pixels.shape)
        return x + nn.Dense(width, kernel_init=nn.initializers.zeros, dtype=self.dtype)(mixed).reshape(x.shape)


def _normalised(x: Array) -> Array:
    """Group normalisation of one image, in groups of about eight channels."""
    groups = math.gcd(x.shape[-1], max(1, x.shape[-1] // 8))
    return nn.GroupNorm(groups)(x[None])[0]


def _halved(x: Array) -> Array:
    height, width, channels = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, 0), 2, 1)
