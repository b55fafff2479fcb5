"""Layers of image flows: squeeze, invertible 1x1 convolution, and the multi-scale architecture. Images are (H, W, C).

Written in the direction data to base, as in RealNVP (Dinh et al. 2016, arXiv:1605.08803, sec. 3.6) and Glow (Kingma &
Dhariwal 2018, arXiv:1807.03039, fig. 2): each level transforms the image, then half of the channels leave as latents,

    h_0 = x,    (h_i, y_i) = level_i^-1(h_i-1),    z_i = (y_i - mean(h_i)) / scale(h_i),    z_L = level_L^-1(h_L-1),

so that under a standard normal base y_i given h_i is a learned Gaussian. The latent event is all z_i in one flat vector;
`MultiScale.unpack` gives each its name and shape.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from genmod.base import FIXED, Array, Bijector, InfoBijector, Shape, add_info
from genmod.bijectors.combinators import context_for, init_member, inverse_batch
from genmod.bijectors.coupling import Coupling, space_to_channels
from genmod.bijectors.linear import dot
from genmod.bijectors.transformers import Affine
from genmod.checks import check_count


@dataclasses.dataclass(frozen=True)
class Squeeze(Bijector):
    """Space to channels, data to base: (H, W, C) becomes (H / k, W / k, k^2 C); log_det 0. Raises ValueError for odd sizes."""

    factor: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_count(factor=self.factor)

    def data_shape(self, latent_shape):
        height, width, channels = _image(self, latent_shape)
        if channels % self.factor**2:
            raise ValueError(f"{self} wants a multiple of {self.factor**2} channels on the latent side, got shape {latent_shape}")
        return self.factor * height, self.factor * width, channels // self.factor**2

    def latent_shape(self, data_shape):
        height, width, channels = _image(self, data_shape)
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"{self} wants a height and width that {self.factor} divides, got shape {data_shape}; pad or crop the images"
            )
        return height // self.factor, width // self.factor, self.factor**2 * channels

    def _init(self, key, x, context):
        self.latent_shape(x.shape[1:])
        return {}

    def _forward(self, params, z, context):
        height, width, channels = self.data_shape(z.shape)
        blocks = z.reshape(*z.shape[:2], self.factor, self.factor, channels)
        return blocks.transpose(0, 2, 1, 3, 4).reshape(height, width, channels), 0.0

    def _inverse(self, params, x, context):
        return space_to_channels(x, self.factor), 0.0


@dataclasses.dataclass(frozen=True)
class Conv1x1(Bijector):
    """x = W z in every pixel, W a learned (C, C) matrix started at a random rotation; log_det = H W log |det W|.

    method: "plu", W = P L (U + diag(s)) with P and the signs of s fixed (Kingma & Dhariwal 2018, arXiv:1807.03039, eq. 10),
    log |det W| = sum log |s|; or "free", any W, through slogdet.
    """

    method: Literal["plu", "free"] = "plu"

    def __post_init__(self):
        super().__post_init__()
        if self.method not in ("plu", "free"):
            raise ValueError(f"method must be 'plu' or 'free', got {self.method!r}")

    def _init(self, key, x, context):
        channels = _image(self, x.shape[1:])[-1]
        rotation = jnp.linalg.qr(jax.random.normal(key, (channels, channels), x.dtype))[0]
        return self.from_matrix(rotation)

    def from_matrix(self, matrix: Array) -> dict[str, Any]:
        """The parameters for which W is `matrix`, (C, C). Raises ValueError where it is known to be singular."""
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, (C, C), got shape {matrix.shape}")
        if not isinstance(matrix, Tracer) and np.linalg.matrix_rank(np.asarray(matrix)) < matrix.shape[0]:
            raise ValueError("matrix must be invertible, got a singular one")
        if self.method == "free":
            return {"matrix": matrix}
        permutation, lower, upper = jax.scipy.linalg.lu(matrix)
        diagonal = jnp.diagonal(upper)
        return {
            FIXED: {"permutation": permutation, "sign": jnp.sign(diagonal)},
            "lower": jnp.tril(lower, -1),
            "upper": jnp.triu(upper, 1),
            "log_diagonal": jnp.log(jnp.abs(diagonal)),
        }

    def matrix(self, params: Any) -> Array:
        """W, (C, C)."""
        if self.method == "free":
            return params["matrix"]
        lower, upper = self._factors(params)
        return dot(jax.lax.stop_gradient(params[FIXED]["permutation"]), dot(lower, upper))

    def _forward(self, params, z, context):
        return self._apply(params, self.matrix(params), z), self._log_det(params, z)

    def _inverse(self, params, x, context):
        return self._apply(params, self._inverse_matrix(params), x), -self._log_det(params, x)

    def _apply(self, params, matrix, event):
        if _image(self, event.shape)[-1] != matrix.shape[0]:
            raise ValueError(f"this Conv1x1 is of {matrix.shape[0]} channels, the event has shape {event.shape}")
        return dot(event.reshape(-1, matrix.shape[0]), matrix.T).reshape(event.shape)

    def _inverse_matrix(self, params):
        if self.method == "free":
            return jnp.linalg.inv(params["matrix"])
        lower, upper = self._factors(params)
        # The inverse of the small matrix, then one product over all pixels.
        order = jax.lax.stop_gradient(params[FIXED]["permutation"]).T
        y = jax.scipy.linalg.solve_triangular(lower, order, lower=True, unit_diagonal=True)
        return jax.scipy.linalg.solve_triangular(upper, y, lower=False)

    def _factors(self, params):
        lower = jnp.tril(params["lower"], -1) + jnp.eye(params["lower"].shape[0], dtype=params["lower"].dtype)
        diagonal = jax.lax.stop_gradient(params[FIXED]["sign"]) * jnp.exp(params["log_diagonal"])
        return lower, jnp.triu(params["upper"], 1) + jnp.diag(diagonal)

    def _log_det(self, params, event):
        pixels = math.prod(event.shape[:-1])
        if self.method == "free":
            return pixels * jnp.linalg.slogdet(params["matrix"])[1]
        return pixels * params["log_diagonal"].sum()


@dataclasses.dataclass(frozen=True)
class Split(Bijector):
    """The last C // 2 channels y of an image, given the others h, as a learned Gaussian: y = mean(h) + scale(h) z, h kept.

    `conditioner` is a convolutional network of h; None is mean 0 and scale 1 (RealNVP). In a `MultiScale` z then leaves.
    Raises ValueError for images of fewer than two channels.
    """

    conditioner: Any = None
    context_shape: Shape | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.conditioner is None and self.context_shape is not None:
            raise ValueError(f"context_shape={self.context_shape} is for the conditioner, which is None")

    def num_kept(self, shape: Shape) -> int:
        """How many channels of an image stay."""
        channels = _image(self, shape)[-1]
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
        super().__post_init__()
        if not self.levels:
            raise ValueError("levels must hold at least one bijector, got none")
        shapes = {b.context_shape for b in (*self.levels, self.split)} - {None}
        if len(shapes) > 1:
            raise ValueError(f"the levels and the split must share one context_shape, got {sorted(map(str, shapes))}")
        _ = self.latent_shapes  # raises where the levels do not fit the image

    @property
    def event_shape(self):
        return self.image_shape

    @property
    def context_shape(self):
        return next((b.context_shape for b in (*self.levels, self.split) if b.context_shape is not None), None)

    @property
    def likelihood(self):
        return max(b.likelihood for b in (*self.levels, self.split))

    @property
    def latent_shapes(self) -> dict[str, Shape]:
        """{"scale_1": (H_1, W_1, C_1), ...}, in the order in which the latents leave."""
        shapes, shape, kept = {}, _image(self, self.image_shape), self.kept_shapes()
        for i, level in enumerate(self.levels):
            shape = level.latent_shape(shape)
            rest = kept[i][-1] if i < len(kept) else 0
            shapes[f"scale_{i + 1}"] = (*shape[:-1], shape[-1] - rest)
            shape = (*shape[:-1], rest)
        return shapes

    def kept_shapes(self) -> list[Shape]:
        """The shapes of the images that go on from each level to the next, one fewer than levels."""
        shapes, shape = [], _image(self, self.image_shape)
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
            levels.append(init_member(level, level_key, x, context))
            x = inverse_batch(level, levels[-1], x, context)
            if i < len(self.levels) - 1:
                splits.append(init_member(self.split, split_key, x, context))
                x = x[..., : self.split.num_kept(x.shape[1:])]
        return {"levels": tuple(levels), "splits": tuple(splits)}

    def _forward_with_info(self, params, z, context, key, log_det):
        latents = list(self.unpack(z).values())
        event, total, infos = latents[-1], 0.0, []
        for i in reversed(range(len(self.levels))):
            if i < len(self.levels) - 1:
                joined = jnp.concatenate([event, latents[i]], -1)
                event, term = self.split.forward_and_log_det(params["splits"][i], joined, context_for(self.split, context))
                total = total + term
            event, term, info = self._level(i, "forward_with_info", params, event, context, key, log_det)
            total, infos = total + term, [*infos, info]
        return event, total, add_info(*infos)

    def _inverse_with_info(self, params, x, context, key, log_det):
        event, total, infos, latents = x, 0.0, [], []
        for i in range(len(self.levels)):
            event, term, info = self._level(i, "inverse_with_info", params, event, context, key, log_det)
            total, infos = total + term, [*infos, info]
            if i < len(self.levels) - 1:
                event, term = self.split.inverse_and_log_det(params["splits"][i], event, context_for(self.split, context))
                kept = self.split.num_kept(event.shape)
                total, event, leaving = total + term, event[..., :kept], event[..., kept:]
                latents.append(leaving.reshape(-1))
        return jnp.concatenate([*latents, event.reshape(-1)]), total, add_info(*infos)

    def _level(self, i, direction, params, event, context, key, log_det):
        level, level_key = self.levels[i], None if key is None else jax.random.fold_in(key, i)
        step = getattr(level, direction)
        return step(params["levels"][i], event, context_for(level, context), key=level_key, log_det=log_det)


def _image(bijector: Bijector, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"{type(bijector).__name__} takes images (H, W, C), got shape {shape}")
    return shape
