"""Angles as a network should see them: as points of the circle, equal at -pi and pi."""

import flax.linen as nn
import jax.numpy as jnp

from genmod.core.types import Array


class OnCircle(nn.Module):
    """`body` of (cos z, sin z) in the place of angles z: (..., D) becomes (..., 2 D), the cosines first; a scalar becomes (2,).

    The decoder of a latent on a circle, `OnCircle(FlatNet(MLP((64,)), 784))`, or the encoder of data on one. Further inputs, a
    context, go to `body` as they are.
    """

    body: nn.Module

    @nn.compact
    def __call__(self, z: Array, *others: Array) -> Array:
        parts = [jnp.cos(z), jnp.sin(z)]
        return self.body(jnp.concatenate(parts, -1) if z.ndim else jnp.stack(parts), *others)
