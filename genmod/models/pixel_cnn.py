"""PixelCNNs: images one entry after the other, in raster order, exact (van den Oord et al. 2016, arXiv:1606.05328).

    log p(x | context) = sum_{i, j, c} log p(x_ijc | entries before it, context)

The network gives all conditionals in one pass, so that training and `log_prob` cost one. Sampling takes H W C passes, each over
the rows only that the entry sees, in one compiled loop.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod import nets
from genmod.core.checks import check_parts, check_shape
from genmod.core.distribution import Likelihood
from genmod.core.event import Levels
from genmod.core.numerics import context_inputs, real
from genmod.core.types import Array, Context, Params, Shape
from genmod.densities import Head
from genmod.models.base import Model, likelihood_loss


@dataclasses.dataclass(frozen=True)
class PixelCNN(Model):
    """p(x | context) of images, (H, W, C), EXACT.

        model = gm.models.PixelCNN((28, 28, 1), gm.nets.GatedPixelCNN(32), gm.densities.BernoulliHead())

    Attributes:
      shape: of an image, (H, W, C).
      net: the network, which sees levels scaled to -1 .. 1; what it gives per entry is set by the head.
      head: the law of one entry: `BernoulliHead`, `CategoricalHead`, `DiscretizedLogisticHead`, or one of real numbers.
      context_shape: shape of the context, None without one.

    Parameters: {"net"}. Raises TypeError or ValueError for parts that do not fit each other, at the latest by `init`.
    """

    shape: Shape
    net: nets.GatedPixelCNN
    head: Head
    context_shape: Shape | None = None

    likelihood = Likelihood.EXACT

    def __post_init__(self):
        check_parts(self, net=nets.GatedPixelCNN, head=Head)
        object.__setattr__(self, "shape", check_shape("shape", self.shape, least=1))
        super().__post_init__()
        if len(self.shape) != 3:
            raise ValueError(f"shape must be that of an image, (H, W, C), got {self.shape}")

    @property
    def event(self):
        return self.head.event(self.shape)

    @property
    def reparameterized(self):
        return self.head.reparameterized

    def raw_one(self, params: Params, x: Array, context: Context = None, *, top: Array | None = None) -> Array:
        """The raw numbers of every entry of ONE image, (H, W, C, head.num_params), given those before it.

        top: the first row of x within the image, where x is a band of its rows; None: x is the whole image.
        """
        x = real(x)
        if isinstance(self.event, Levels):
            x = x * (2.0 / max(1, self.event.num_levels - 1)) - 1.0
        return nets.apply(self._network, params["net"], x, *context_inputs(context, x.dtype), top=top)

    def loss(self, params, key, batch, *, step=None):
        return likelihood_loss(self, params, key, self.read(batch))

    def _init(self, key, x, context):
        x = real(x[0])
        return {"net": nets.init(self._network, key, x, *context_inputs(None if context is None else context[0], x.dtype))}

    def log_prob_one(self, params, x, context=None, key=None):
        return self.head.log_prob(self.raw_one(params, x, context), x).sum()

    def sample_one(self, params, key, context=None):
        return self.sample_and_log_prob_one(params, key, context)[0]

    def sample_and_log_prob_one(self, params, key, context=None):
        height, width, channels = self.shape
        band = min(height, self._network.num_rows_above + 1)
        dtype = self.event.dtype if isinstance(self.event, Levels) else jnp.result_type(*jax.tree.leaves(params))

        def draw(x, n):
            place = n // (width * channels), n // channels % width, n % channels
            # Rows above the band do not reach this entry, and where the band begins at the top its border is the image's.
            top = jnp.clip(place[0] - band + 1, 0, height - band)
            raw = self.raw_one(params, jax.lax.dynamic_slice_in_dim(x, top, band), context, top=top)
            raw = raw[place[0] - top, place[1], place[2]]
            value = self.head.sample(raw, jax.random.fold_in(key, n)).astype(dtype)
            return x.at[place].set(value), self.head.log_prob(raw, value)

        x, log_p = jax.lax.scan(draw, jnp.zeros(self.shape, dtype), jnp.arange(math.prod(self.shape)))
        return x, log_p.sum()

    @property
    def _network(self) -> nets.GatedPixelCNN:
        return self.net.clone(num_outputs=self.head.num_params)
