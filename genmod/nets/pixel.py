"""The gated PixelCNN: a convolutional network in which a channel of a pixel sees those before it alone, and all of them (van den
Oord et al. 2016, arXiv:1606.05328, fig. 2).

Pixels come in raster order, the channels of a pixel one after the other. Two stacks run side by side: the vertical one sees the
rows above, the horizontal one the pixels to the left, and reads the vertical one at every layer. So there is no blind spot: after
enough layers a pixel sees every pixel above, also those far to the right, which masked square kernels alone never reach.

    each layer:   vertical    v <- gate(conv_{n x n, rows <= i}(v))                       the first layer: rows < i
                  horizontal  h <- h + W gate(conv_{1 x n, columns <= j}(h) + V v)        the first: columns < j, no h +
    gate(a, b) = tanh(a + A context + p) sigmoid(b + B context + q)                        eq. 2 and 4

p and q are biases of each place, if wanted: convolutions alone do not know where they are, but by the border.

The features of a pixel come in as many groups as it has channels, and group c sees the groups up to c (first layer: below c).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from genmod.core.checks import check_count, check_shape
from genmod.core.types import Array, Shape
from genmod.nets.convolution import convolve_before


class GatedPixelCNN(nn.Module):
    """(H, W, C) and an optional flat context -> (H, W, C, num_outputs), of which an entry depends on those before it alone.

    The last layer starts at zero.

    Attributes:
      num_features: of each stack, a multiple of the image's channels.
      num_layers: gated layers. kernel_size, first_kernel_size: of their convolutions, odd.
      untied_biases: (H, W), the places of an image, each of which then has biases of its own in every gate; None: none has. For
        centred objects they are worth more than width.
      num_outputs: numbers per entry, set by the model that uses the network.
      dtype: of the arithmetic; None: that of the input.

    Raises ValueError for counts that are no integers >= 1, even kernels, features that channels do not divide, and images of
    another size than `untied_biases`.
    """

    num_features: int = 64
    num_layers: int = 7
    kernel_size: int = 3
    first_kernel_size: int = 7
    untied_biases: Shape | None = None
    num_outputs: int = 1
    dtype: Any = None

    def __post_init__(self):
        counts = ("num_features", "num_layers", "kernel_size", "first_kernel_size", "num_outputs")
        check_count(**{name: getattr(self, name) for name in counts})
        for name in ("kernel_size", "first_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {getattr(self, name)}")
        if self.untied_biases is not None:
            places = check_shape("untied_biases", self.untied_biases, least=1)
            if len(places) != 2:
                raise ValueError(f"untied_biases must be (H, W), got {places}")
            self.untied_biases = places
        super().__post_init__()

    @property
    def num_rows_above(self) -> int:
        """How many rows above its own an entry sees."""
        return self.first_kernel_size // 2 + (self.num_layers - 1) * (self.kernel_size // 2)

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, top: Array | None = None) -> Array:
        """x: an image or, with the row `top` of the image at which they begin, some of its rows."""
        channels, width = x.shape[-1], self.num_features
        places = x.shape[-3:-1]
        if self.untied_biases is not None and (
            places[1] != self.untied_biases[1] or (top is None and places != self.untied_biases)
        ):
            raise ValueError(f"untied_biases={self.untied_biases} want an image of that height and width, got {places}")
        if width % channels:
            raise ValueError(f"num_features must be a multiple of the {channels} channels of the image, got {width}")
        inputs, units = np.arange(channels), np.repeat(np.arange(channels), width // channels)
        gated = np.tile(units, 2)  # values, then gates
        vertical = horizontal = x
        for layer in range(self.num_layers):
            size = self.kernel_size if layer else self.first_kernel_size
            before = units if layer else inputs
            rows = np.ones((size // 2 + 1, size, before.size, gated.size), bool)
            rows[-1] = layer > 0
            above = self._convolution(f"vertical_{layer}", vertical, rows)
            left = np.ones((1, size // 2 + 1, before.size, gated.size), bool)
            left[0, -1] = _sees(before, gated, strictly=layer == 0)
            beside = self._convolution(f"horizontal_{layer}", horizontal, left)
            beside = beside + nn.Dense(gated.size, dtype=self.dtype, name=f"link_{layer}")(above)
            vertical = self._gate(f"vertical_{layer}", above, context, top)
            new = self._gate(f"horizontal_{layer}", beside, context, top)
            new = self._pointwise(f"mix_{layer}", new, _sees(units, units))
            horizontal = new if layer == 0 else horizontal + new
        hidden = self._pointwise("head", nn.relu(horizontal), _sees(units, units))
        outputs = np.repeat(np.arange(channels), self.num_outputs)
        raw = self._pointwise("out", nn.relu(hidden), _sees(units, outputs), last=True)
        return raw.reshape(*x.shape, self.num_outputs)

    def _convolution(self, name: str, x: Array, mask: np.ndarray) -> Array:
        """With a kernel that ends at its own row; of one row, at its own column."""
        # As if the kernel had the inputs that its mask leaves.
        initializer = nn.initializers.variance_scaling(mask.size / max(1, mask.sum()), "fan_in", "truncated_normal")
        kernel = self.param(f"{name}_kernel", initializer, mask.shape)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (mask.shape[-1],))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        height, width = mask.shape[:2]
        before = (height - 1, width // 2 if height > 1 else width - 1)
        out = convolve_before(x.reshape(-1, *x.shape[-3:]), kernel * mask, before).reshape(*x.shape[:-1], mask.shape[-1])
        return out + jnp.broadcast_to(bias, out.shape)

    def _pointwise(self, name: str, x: Array, mask: np.ndarray, last: bool = False) -> Array:
        initializer = nn.initializers.zeros if last else nn.initializers.lecun_normal()
        kernel = self.param(f"{name}_kernel", initializer, mask.shape)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (mask.shape[1],))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=None if last else self.dtype)  # the last in float32 at least
        return x @ (kernel * mask) + jnp.broadcast_to(bias, (*x.shape[:-1], mask.shape[1]))

    def _gate(self, name: str, x: Array, context: Array | None, top: Array | None) -> Array:
        if context is not None:
            shift = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=f"{name}_context")(context)
            x = x + jnp.broadcast_to(shift, x.shape)
        if self.untied_biases is not None:
            bias = self.param(f"{name}_places", nn.initializers.zeros, (*self.untied_biases, x.shape[-1]))
            bias = bias if top is None else jax.lax.dynamic_slice_in_dim(bias, top, x.shape[-3])
            x = x + jnp.broadcast_to(bias.astype(x.dtype), x.shape)
        value, gate = jnp.split(x, 2, -1)
        return jnp.tanh(value) * nn.sigmoid(gate)


def _sees(inputs: np.ndarray, outputs: np.ndarray, strictly: bool = False) -> np.ndarray:
    """(inputs, outputs) masks of the channels of one pixel, by the groups of both."""
    return inputs[:, None] < outputs[None] if strictly else inputs[:, None] <= outputs[None]
