"""The multi-scale architecture of image flows, and the split between its levels. Images are (H, W, C).

Written in the direction data to base, as in RealNVP (Dinh et al. 2016, arXiv:1605.08803, sec. 3.6) and Glow (Kingma &
Dhariwal 2018, arXiv:1807.03039, fig. 2): each level transforms the image, then half of the channels leave as latents,

    h_0 = x,    (h_i, y_i) = level_i^-1(h_i-1),    z_i = (y_i - mean(h_i)) / scale(h_i),    z_L = level_L^-1(h_L-1),

so that under a standard normal base y_i given h_i is a learned Gaussian. The latent event is all z_i in one flat vector;
`MultiScale.unpack` gives each its name and shape.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod.bijectors.base import Bijector, InfoBijector
from genmod.bijectors.chain import common_context, inverse_rows
from genmod.bijectors.coupling import Coupling
from genmod.bijectors.distrax import as_bijector
from genmod.bijectors.image.squeeze import image_shape
from genmod.bijectors.transformers import Affine
from genmod.core.checks import check_parts, check_shape
from genmod.core.info import add_info
from genmod.core.types import Array, Context, Interval, Shape


@dataclasses.dataclass(frozen=True)
class Split(Bijector):
    """The last C // 2 channels y of an image, given the others h, as a learned Gaussian: y = mean(h) + scale(h) z, h kept.

    `conditioner` is a convolutional network of h; None is mean 0 and scale 1 (RealNVP). In a `MultiScale` z then leaves.
    Raises ValueError for images of fewer than two channels.
    """

    onto_reals = True
    conditioner: Any = None
    context_shape: Shape | None = None
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        if self.conditioner is None and self.context_shape is not None:
            raise ValueError(f"context_shape={self.context_shape} is for the conditioner, which is None")

    def num_kept(self, shape: Shape) -> int:
        """How many channels of an image stay."""
        channels = image_shape(self, shape)[-1]
        if channels < 2:
            raise ValueError(
                f"Split wants an image of at least two channels, got shape {shape}: nothing would be left; squeeze it"
            )
        return channels - channels // 2

    def _init(self, key, x, context):
        self.num_kept(x.shape[1:])
        return {} if self.conditioner is None else self._gaussian(x.shape[1:])._init(key, x, context)

    def _forward(self, params, z, context):
        return (z, 0.0) if self.conditioner is None else self._gaussian(z.shape)._forward(params, z, context)

    def _inverse(self, params, x, context):
        return (x, 0.0) if self.conditioner is None else self._gaussian(x.shape)._inverse(params, x, context)

    def _gaussian(self, shape):
        return Coupling(Affine(), self.conditioner, self.num_kept(shape), self.context_shape)


@dataclasses.dataclass(frozen=True)
class MultiScale(InfoBijector):
    """Levels with a `Split` after each but the last, half of the channels leaving at each: see the module.

    image_shape: (H, W, C) of the data. levels: bijectors of images, from the data to the base (the finest scale first).
    The latent event is flat, (H W C,): in turn "scale_1", which left first, to "scale_L"; `unpack` and `pack` go between the
    vector and the dict.
    Parameters: {"levels": a tuple, "splits": a tuple}.
    Raises ValueError for sizes that a level cannot squeeze and for a split that leaves no channel.
    """

    image_shape: Shape
    levels: tuple[Bijector, ...]
    split: Split = Split()

    def __post_init__(self):
        object.__setattr__(self, "image_shape", check_shape("image_shape", self.image_shape))
        levels = (as_bijector(level, f"levels[{i}]") for i, level in enumerate(self.levels))
        object.__setattr__(self, "levels", tuple(levels))
        super().__post_init__()
        check_parts(self, split=Split)
        if not self.levels:
            raise ValueError("levels must hold at least one bijector, got none")
        _ = self.context_shape, self.latent_shapes  # raise where the parts do not fit each other or the image

    @property
    def event_shape(self):
        return self.image_shape

    @property
    def context_shape(self):
        return common_context("the levels and the split", (*self.levels, self.split))

    @property
    def likelihood(self):
        return max(b.likelihood for b in (*self.levels, self.split))

    @property
    def reads_data(self):
        return any(b.reads_data for b in (*self.levels, self.split))

    @property
    def latent_shapes(self) -> dict[str, Shape]:
        """{"scale_1": (H_1, W_1, C_1), ...}, in the order in which the latents leave."""
        shapes, shape, kept = {}, image_shape(self, self.image_shape), self.kept_shapes()
        for i, level in enumerate(self.levels):
            shape = level.latent_shape(shape)
            rest = kept[i][-1] if i < len(kept) else 0
            shapes[f"scale_{i + 1}"] = (*shape[:-1], shape[-1] - rest)
            shape = (*shape[:-1], rest)
        return shapes

    def kept_shapes(self) -> list[Shape]:
        """The shapes of the images that go on from each level to the next, one fewer than levels."""
        shapes, shape = [], image_shape(self, self.image_shape)
        for level in self.levels[:-1]:
            shape = level.latent_shape(shape)
            shape = (*shape[:-1], self.split.num_kept(shape))
            shapes.append(shape)
        return shapes

    def data_shape(self, latent_shape):
        if latent_shape != self.latent_shape(self.image_shape):
            raise ValueError(f"z must have shape {self.latent_shape(self.image_shape)}, got {latent_shape}")
        return self.image_shape

    def latent_shape(self, data_shape):
        return (math.prod(data_shape),)

    def image(self, interval, inverse=False):
        if inverse:
            return None
        moved: Interval | None = interval
        for i in reversed(range(len(self.levels))):
            if i < len(self.levels) - 1:
                moved = self.split.image(interval) if moved == interval else None  # joins two parts
            moved = None if moved is None else self.levels[i].image(moved)
            if moved is None:
                return None
        return moved

    def unpack(self, z: Array) -> dict[str, Array]:
        """The latents by name, each batch + its shape, of flat latents z, batch + (H W C,)."""
        if z.shape[-1:] != self.latent_shape(self.image_shape):
            raise ValueError(f"z must have shape (...,) + {self.latent_shape(self.image_shape)}, got {z.shape}")
        ends = np.cumsum([math.prod(shape) for shape in self.latent_shapes.values()])[:-1]
        parts = jnp.split(z, ends, -1)
        named = zip(self.latent_shapes.items(), parts, strict=True)
        return {name: part.reshape(*z.shape[:-1], *shape) for (name, shape), part in named}

    def pack(self, latents: dict[str, Array]) -> Array:
        """Flat latents, batch + (H W C,), of those that `unpack` names."""
        if latents.keys() != self.latent_shapes.keys():
            raise ValueError(f"latents must be named {list(self.latent_shapes)}, got {list(latents)}")
        parts = []
        for name, shape in self.latent_shapes.items():
            part = latents[name]
            if part.shape[part.ndim - len(shape) :] != shape:
                raise ValueError(f"latents[{name!r}] must have shape (...,) + {shape}, got {part.shape}")
            parts.append(part.reshape(*part.shape[: part.ndim - len(shape)], -1))
        return jnp.concatenate(parts, -1)

    def _init(self, key, x, context):
        levels, splits = [], []
        for i, level in enumerate(self.levels):
            level_key, split_key = jax.random.split(jax.random.fold_in(key, i))
            levels.append(level.init_rows(level_key, x, context))
            x = inverse_rows(level, levels[-1], x, context)
            if i < len(self.levels) - 1:
                splits.append(self.split.init_rows(split_key, x, context))
                x = x[..., : self.split.num_kept(x.shape[1:])]
        return {"levels": tuple(levels), "splits": tuple(splits)}

    def _move(self, params, event, context, key, inverse, log_det):
        return (self._to_latents if inverse else self._to_data)(params, event, context, key, log_det)

    def _to_data(self, params, z, context, key, log_det):
        latents = list(self.unpack(z).values())
        event, total, infos = latents[-1], 0.0, []
        for i in reversed(range(len(self.levels))):
            if i < len(self.levels) - 1:
                joined = jnp.concatenate([event, latents[i]], -1)
                event, term = self.split._forward(params["splits"][i], joined, _for(self.split, context))
                total = total + term
            event, term, info = self._level(i, params, event, context, key, False, log_det)
            total, infos = total + term, [*infos, info]
        return event, total, add_info(*infos)

    def _to_latents(self, params, x, context, key, log_det):
        event, total, infos, latents = x, 0.0, [], []
        for i in range(len(self.levels)):
            event, term, info = self._level(i, params, event, context, key, True, log_det)
            total, infos = total + term, [*infos, info]
            if i < len(self.levels) - 1:
                event, term = self.split._inverse(params["splits"][i], event, _for(self.split, context))
                kept = self.split.num_kept(event.shape)
                total, event, leaving = total + term, event[..., :kept], event[..., kept:]
                latents.append(leaving.reshape(-1))
        return jnp.concatenate([*latents, event.reshape(-1)]), total, add_info(*infos)

    def _level(self, i, params, event, context, key, inverse, log_det):
        level, level_key = self.levels[i], None if key is None else jax.random.fold_in(key, i)
        return level._move(params["levels"][i], event, _for(level, context), level_key, inverse, log_det)


def _for(bijector: Bijector, context: Context) -> Context:
    """The context if `bijector` takes one, else None."""
    return None if bijector.context_shape is None else context
