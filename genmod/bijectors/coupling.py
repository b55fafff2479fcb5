"""Coupling layers (Dinh et al. 2014, arXiv:1410.8516; 2016, arXiv:1605.08803).

One part of the event passes unchanged and parameterises a transformer of the other part:

    x_a = z_a,  x_b = tau(z_b; net(z_a, context)),  log_det = sum log |dtau/dz_b|.

Both directions cost one pass of the network. With `Additive` this is NICE, with `Affine` RealNVP, with a spline NSF. Events
are vectors, (D,), or images, (H, W, C); the parts of an image are channels or the two colours of a checkerboard.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from genmod import nets
from genmod.bijectors.base import InfoBijector
from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check_parts
from genmod.core.description import Description
from genmod.core.numerics import flat_context
from genmod.core.types import Array, Context, Shape


@dataclasses.dataclass(frozen=True)
class Checkerboard(Description):
    """The split of an image by pixels: those with i + j even (`odd`: odd) pass unchanged (RealNVP, fig. 3)."""

    odd: bool = False

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width, 1) bools, True where a pixel passes unchanged."""
        i, j = np.indices((height, width))
        return ((i + j) % 2 == int(self.odd))[..., None]


@dataclasses.dataclass(frozen=True)
class Coupling(InfoBijector):
    """A coupling layer of a vector, (D,), or of an image, (H, W, C).

    Attributes:
      transformer: the scalar bijection of the changed part.
      conditioner: a Flax Linen module of the unchanged part, (num_inputs,) -> features, or (H, W, channels) -> features
        for images. A zero-initialised last layer follows it (`nets.ZeroHead`), so that the layer starts as the identity.
      split: the number of leading entries of the last axis (coordinates, channels) that pass unchanged; or a mask of that
        axis, True where unchanged; or a `Checkerboard`, whose network sees zeros in the place of the changed pixels.
      context_shape: shape of the context, None without one. `network_input` says how the conditioner sees it.

    Raises ValueError where the split does not fit the event or leaves nothing to transform, TypeError for a transformer that is
    none.
    """

    transformer: Transformer
    conditioner: Any
    split: int | tuple[bool, ...] | Checkerboard
    context_shape: Shape | None = None
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, transformer=Transformer)

    def image(self, interval, inverse=False):
        return self.transformer.image(interval)

    def _init(self, key, x, context):
        kept, moved = self.parts(x[0])
        inputs = network_input(self._seen(kept, x.shape[-1]), None if context is None else context[0])
        return nets.init(self._network(moved, x.shape[-1]), key, inputs)

    def _move(self, params, event, context, key, inverse, log_det):
        kept, moved = self.parts(event)
        raw = nets.apply(self._network(moved, event.shape[-1]), params, network_input(self._seen(kept, event.shape[-1]), context))
        # Parameter by parameter in memory, so that a transformer's reads of one parameter are contiguous.
        transformer = self._transformers(event.shape[-1])[1]
        raw = raw.astype(event.dtype).reshape(*moved.shape[:-1], transformer.num_params, moved.shape[-1])
        direction = transformer.inverse if inverse else transformer.forward
        moved, log_slope = direction(jnp.moveaxis(raw, -2, -1), moved)
        merged, total = self._merge(event, kept, moved, log_slope)
        return merged, total, self.transformer.info(merged, inverse)

    def _transformers(self, size):
        """Those of the unchanged and of the changed entries of the last axis."""
        if isinstance(self.split, Checkerboard):
            return self.transformer, self.transformer
        kept = np.arange(size) < self.split if isinstance(self.split, int) else np.asarray(self.split)
        return self.transformer.at(np.flatnonzero(kept)) if kept.any() else None, self.transformer.at(np.flatnonzero(~kept))

    def _seen(self, kept, size):
        transformer = self._transformers(size)[0]
        features = kept[..., None] if transformer is None else transformer.features(kept)
        return features.reshape(*kept.shape[:-1], -1)

    def _network(self, moved, size):
        transformer = self._transformers(size)[1]
        return nets.ZeroHead(self.conditioner, moved.shape[-1] * transformer.num_params)

    def parts(self, event: Array) -> tuple[Array, Array]:
        """(unchanged, changed) part of one event; the whole event counts as changed where the split is a checkerboard."""
        if event.ndim not in (1, 3):
            raise ValueError(f"Coupling takes vectors (D,) and images (H, W, C), got an event of shape {event.shape}")
        if isinstance(self.split, Checkerboard):
            if event.ndim != 3 or event.shape[0] * event.shape[1] < 2:
                raise ValueError(f"a Checkerboard splits images (H, W, C) of two pixels or more, got shape {event.shape}")
            return jnp.where(self.split.mask(*event.shape[:2]), event, 0), event
        size = event.shape[-1]
        if isinstance(self.split, int):
            if not 0 <= self.split < size:
                raise ValueError(f"split must be in 0..{size - 1} for {_entries(event)}, got {self.split}")
            return event[..., : self.split], event[..., self.split :]
        mask = np.asarray(self.split)
        if mask.size != size:
            raise ValueError(f"split must be a mask of {_entries(event)}, got one of {mask.size}")
        if mask.all():
            raise ValueError("split leaves nothing to transform: at least one entry of the mask must be False")
        return event[..., np.flatnonzero(mask)], event[..., np.flatnonzero(~mask)]

    def _merge(self, event, kept, moved, log_slope):
        if isinstance(self.split, Checkerboard):
            mask = np.broadcast_to(self.split.mask(*event.shape[:2]), event.shape)
            return jnp.where(mask, event, moved), jnp.where(mask, 0.0, log_slope).sum()
        joined = jnp.concatenate([kept, moved], -1)
        if isinstance(self.split, tuple):
            mask = np.asarray(self.split)
            joined = joined[..., np.argsort(np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)]))]
        return joined, log_slope.sum()


def network_input(kept: Array, context: Context) -> Array:
    """What a conditioner reads: the kept part and the context, or a constant 1 where there is neither.

    For a vector the context is flat. Beside an image (H, W, C), a context that is itself an image, of a multiple k of its
    height and width, is squeezed to that size (k^2 times the channels), one smaller by k is enlarged to it; a context of
    another rank is flat, and equal in every pixel. Raises ValueError for an image of another size.
    """
    space = kept.shape[:-1]
    parts = [kept] if context is None else [kept, _beside(context, space, kept.dtype).astype(kept.dtype)]
    joined = jnp.concatenate(parts, -1)
    return joined if joined.size else jnp.ones((*space, 1), kept.dtype)


def _beside(context: Array, space: Shape, dtype: Any) -> Array:
    if context.ndim == 3 and len(space) == 2:
        factor, shrink = context.shape[0] // space[0], space[0] // context.shape[0]
        if factor and context.shape[:2] == (factor * space[0], factor * space[1]):
            return space_to_channels(context, factor)
        if shrink and space == (shrink * context.shape[0], shrink * context.shape[1]):
            return jnp.repeat(jnp.repeat(context, shrink, 0), shrink, 1)
        raise ValueError(
            f"a context that is an image must be a whole multiple or part of the {space} pixels of a layer, got {context.shape}"
        )
    return jnp.broadcast_to(flat_context(context, dtype).reshape((1,) * len(space) + (-1,)), (*space, context.size))


def space_to_channels(image: Array, factor: int) -> Array:
    """(H, W, C) -> (H / k, W / k, k^2 C): each k x k block of pixels becomes one pixel, row by row."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(height // factor, width // factor, factor**2 * channels)


def _entries(event: Array) -> str:
    return f"{event.shape[-1]} " + ("coordinates" if event.ndim == 1 else "channels")
