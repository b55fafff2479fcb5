"""Coupling layers (Dinh et al. 2014, arXiv:1410.8516; 2016, arXiv:1605.08803).

One part of the event passes unchanged and parameterises a transformer of the other part:

    x_a = z_a,  x_b = tau(z_b; net(z_a, context)),  log_det = sum log |dtau/dz_b|.

Both directions cost one pass of the network. With `Additive` this is NICE, with `Affine` RealNVP, with a spline NSF.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from genmod import nets
from genmod.base import Array, Bijector, Context, Shape
from genmod.bijectors.transformers import Transformer


@dataclasses.dataclass(frozen=True)
class Coupling(Bijector):
    """A coupling layer of a vector, (D,).

    Attributes:
      transformer: the scalar bijection of the changed part.
      conditioner: a Flax Linen module, (num_inputs,) -> features. A zero-initialised dense layer follows it, so that the
        layer starts as the identity. Its input is the unchanged part and the flat context; the constant 1 if both are empty.
      split: the number of leading coordinates that pass unchanged, or a mask of D bools, True where unchanged.
      context_shape: shape of the context, None without one.

    Raises ValueError where the split does not fit the event or leaves nothing to transform.
    """

    transformer: Transformer
    conditioner: Any
    split: int | tuple[bool, ...]
    context_shape: Shape | None = None

    @property
    def event_shape(self):
        return None if isinstance(self.split, int) else (len(self.split),)

    def _init(self, key, x, context):
        kept, _ = self.parts(x[0])
        inputs = network_input(kept, None if context is None else context[0])
        return nets.init(self._network(x.shape[1]), key, inputs)

    def _forward(self, params, z, context):
        return self._transform(self.transformer.forward, params, z, context)

    def _inverse(self, params, x, context):
        return self._transform(self.transformer.inverse, params, x, context)

    def _transform(self, direction, params, event, context):
        kept, moved = self.parts(event)
        raw = nets.apply(self._network(event.shape[0]), params, network_input(kept, context))
        # Parameter by parameter in memory, so that a transformer's reads of one parameter are contiguous.
        raw = raw.astype(event.dtype).reshape(self.transformer.num_params, *moved.shape)
        raw = jnp.moveaxis(raw, 0, -1)
        moved, log_slope = direction(raw, moved)
        return self._merge(kept, moved), log_slope.sum()

    def _network(self, dim):
        num_moved = dim - (self.split if isinstance(self.split, int) else sum(self.split))
        return nets.Head(self.conditioner, num_moved * self.transformer.num_params)

    def parts(self, event: Array) -> tuple[Array, Array]:
        """(unchanged, changed) part of one event."""
        if event.ndim != 1:
            raise ValueError(f"Coupling takes vectors, got an event of shape {event.shape}")
        if isinstance(self.split, int):
            if not 0 <= self.split < event.shape[0]:
                raise ValueError(f"split must be in 0..{event.shape[0] - 1} for {event.shape[0]} coordinates, got {self.split}")
            return event[: self.split], event[self.split :]
        mask = np.asarray(self.split)
        if mask.all():
            raise ValueError("split leaves nothing to transform: at least one entry of the mask must be False")
        return event[np.flatnonzero(mask)], event[np.flatnonzero(~mask)]

    def _merge(self, kept: Array, moved: Array) -> Array:
        joined = jnp.concatenate([kept, moved])
        if isinstance(self.split, int):
            return joined
        mask = np.asarray(self.split)
        return joined[np.argsort(np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)]))]


def network_input(kept: Array, context: Context) -> Array:
    """What a conditioner reads: the kept part and the flat context, or a constant 1 where there is neither."""
    parts = [kept] if context is None else [kept, context.reshape(-1).astype(kept.dtype)]
    joined = jnp.concatenate(parts)
    return joined if joined.size else jnp.ones(1, kept.dtype)
