"""`Conditioned`: a conditional bijector that sees its context in units of its own."""

import dataclasses
import math

import jax.numpy as jnp

from genmod.bijectors.actnorm import batch_statistics
from genmod.bijectors.base import Bijector
from genmod.bijectors.repeat import Wrapper
from genmod.core.numerics import refuse_label
from genmod.core.params import Fixed
from genmod.core.types import Array, Context, Params


@dataclasses.dataclass(frozen=True)
class Conditioned(Wrapper):
    """The bijector, given its context standardised by the contexts of the initialising batch; that is never trained.

    Each entry of a vector has a mean and a scale of its own, an image (H, W, C) one per channel. Entries that are 0 or 1 in every
    row, such as those of a one-hot vector, stay as they are. Integers are numbers; one alone, which may be a label, is refused.

    Parameters: {"context": statistics, "bijector": ...}.
    Raises ValueError for a bijector without a context.
    """

    bijector: Bijector

    def __post_init__(self):
        super().__post_init__()
        if self.context_shape is None:
            raise ValueError(f"Conditioned wants a bijector with a context_shape, got {self.bijector!r}")

    def encode(self, params: Params, context: Context) -> Context:
        """What the bijector sees of a context, of any leading axes; None of None."""
        if context is None:
            return None
        statistics = params["context"].constant
        refuse_label(jnp.asarray(context).dtype, math.prod(self.context_shape or ()))
        context = jnp.asarray(context).astype(jnp.promote_types(jnp.asarray(context).dtype, statistics["shift"].dtype))
        shift, log_scale = (jnp.broadcast_to(statistics[name], context.shape) for name in ("shift", "log_scale"))
        return (context - shift) * jnp.exp(-log_scale)

    def data_shape(self, latent_shape):
        return self.bijector.data_shape(latent_shape)

    def latent_shape(self, data_shape):
        return self.bijector.latent_shape(data_shape)

    def image(self, interval, inverse=False):
        return self.bijector.image(interval, inverse)

    def bound_shape(self, params):
        return self.bijector.bound_shape(params["bijector"])

    def _init(self, key, x, context):
        assert context is not None
        params: Params = {"context": Fixed(_statistics(context.astype(jnp.promote_types(x.dtype, jnp.float32))))}
        return params | {"bijector": self.bijector.init_rows(key, x, self.encode(params, context))}

    def _move(self, params, event, context, key, inverse, log_det):
        context = self.encode(params, context)
        return self.bijector._move(params["bijector"], event, context, key, inverse, log_det)


def _statistics(context: Array) -> dict[str, Array]:
    axes = tuple(range(max(context.ndim - 1, 1)))
    flags = ((context == 0) | (context == 1)).all(axes)
    return {name: jnp.where(flags, 0.0, value) for name, value in batch_statistics(context).items()}


def conditioned(bijector: Bijector) -> Bijector:
    """The bijector, `Conditioned` where it takes a context."""
    return bijector if bijector.context_shape is None else Conditioned(bijector)


def inner(bijector: Bijector, params: Params, context: Context) -> tuple[Params, Context]:
    """The parameters of what `conditioned` was given, and contexts as it sees them, of any leading axes."""
    return (params["bijector"], bijector.encode(params, context)) if isinstance(bijector, Conditioned) else (params, context)
