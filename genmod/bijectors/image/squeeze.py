"""Squeeze: space to channels, a permutation of the pixels' entries. Images are (H, W, C)."""

import dataclasses

from genmod.bijectors.base import Bijector
from genmod.bijectors.coupling import space_to_channels
from genmod.core.checks import check_count
from genmod.core.types import Shape


@dataclasses.dataclass(frozen=True)
class Squeeze(Bijector):
    """Space to channels, data to base: (H, W, C) becomes (H / k, W / k, k^2 C); log_det 0. Raises ValueError for odd sizes."""

    factor: int = 2
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_count(factor=self.factor)

    def data_shape(self, latent_shape):
        height, width, channels = image_shape(self, latent_shape)
        if channels % self.factor**2:
            raise ValueError(f"{self} wants a multiple of {self.factor**2} channels on the latent side, got shape {latent_shape}")
        return self.factor * height, self.factor * width, channels // self.factor**2

    def latent_shape(self, data_shape):
        height, width, channels = image_shape(self, data_shape)
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"{self} wants a height and width that {self.factor} divides, got shape {data_shape}; pad or crop the images"
            )
        return height // self.factor, width // self.factor, self.factor**2 * channels

    def image(self, interval, inverse=False):
        return interval

    def _init(self, key, x, context):
        self.latent_shape(x.shape[1:])
        return {}

    def _forward(self, params, z, context):
        height, width, channels = self.data_shape(z.shape)
        blocks = z.reshape(*z.shape[:2], self.factor, self.factor, channels)
        return blocks.transpose(0, 2, 1, 3, 4).reshape(height, width, channels), 0.0

    def _inverse(self, params, x, context):
        return space_to_channels(x, self.factor), 0.0


def image_shape(bijector: Bijector, shape: Shape) -> Shape:
    """`shape` if it is that of an image, (H, W, C); raises ValueError for another."""
    if len(shape) != 3:
        raise ValueError(f"{type(bijector).__name__} takes images (H, W, C), got shape {shape}")
    return shape
