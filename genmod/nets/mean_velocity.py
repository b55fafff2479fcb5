"""A field that also reads how long it is to be followed: the mean velocity of a flow (`models.MeanFlow`)."""

import flax.linen as nn
import jax.numpy as jnp

from genmod.core.numerics import flat_context
from genmod.core.types import Array


class MeanVelocity(nn.Module):
    """u(x, t, context, duration), the mean velocity over [t, t + duration] of the flow that is at x at time t.

    `body(x, t, c)`, any network of `nets.VelocityMLP`'s or `nets.UNet`'s kind, reads c = (duration, present context, present),
    flat, and c = (duration,) without a context. Without a duration it is the field of the flow itself, as a `CNF` wants it.
    """

    body: nn.Module

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        context: Array | None = None,
        *,
        duration: Array | None = None,
        present: Array | None = None,
    ) -> Array:
        """An array of the shape of x.

        Args:
          x: ONE event. t: its time. context: of the event.
          duration: a scalar, None for 0. present: 0 where the event has lost its context, None for 1.
        """
        conditions = [jnp.asarray(0.0 if duration is None else duration, x.dtype).reshape(1)]
        if context is not None:
            flag = jnp.asarray(1.0 if present is None else present, x.dtype).reshape(1)
            conditions += [flat_context(context, x.dtype) * flag, flag]
        return self.body(x, t, jnp.concatenate(conditions))
