"""`Conditioned`: a conditional bijector that sees its context in units of its own."""

import dataclasses
import math
from typing import Any

import jax
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

    Each entry of a vector has a mean and a scale of its own, an image (H, W, C) one per channel. A context of floats is centred
    in its own precision, then rounded to that of the data; integers are first made real in JAX's default precision. With
    context_shape = (K,), K >= 2, class labels 0 .. K - 1 may stand for one-hot vectors (`core.labels`); one integer where a
    context is one number, which may be a label, is refused.

    What the initialising batch does not show is not scaled, so let it be one like the data:
      - an entry that is 0 or 1 in every row, such as those of a one-hot vector, stays as it is, whatever comes later;
      - one that is constant keeps its unit: later ones are seen as their distance from that constant.
    `health` warns where contexts reach a network much larger than 1. A context that is NaN makes events and densities NaN.

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
        statistics, context = params["context"].constant, jnp.asarray(context)
        refuse_label(context.dtype, math.prod(self.context_shape or ()))
        dtype = statistics["shift"].dtype
        wide = _wide(context.dtype, dtype)
        shift, rest, log_scale = (
            jnp.broadcast_to(statistics[name].astype(wide), context.shape) for name in ("shift", "rest", "log_scale")
        )
        return ((context.astype(wide) - shift - rest) * jnp.exp(-log_scale)).astype(dtype)

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
        params: Params = {"context": Fixed(_statistics(context, jnp.promote_types(x.dtype, jnp.float32)))}
        return params | {"bijector": self.bijector.init_rows(key, x, self.encode(params, context))}

    def _move(self, params, event, context, key, inverse, log_det):
        seen = self.encode(params, context)
        assert seen is not None
        event, total, info = self.bijector._move(params["bijector"], event, seen, key, inverse, log_det)
        # Tails of a spline do not read their network, and would be finite.
        unknown = jnp.isnan(seen).any()
        return jnp.where(unknown, jnp.nan, event), jnp.where(unknown, jnp.nan, total), info


def _wide(context: Any, data: Any) -> Any:
    """The dtype in which contexts are centred: their own or that of the data, the wider; of integers and bools JAX's default."""
    return jnp.promote_types(context if jnp.issubdtype(context, jnp.floating) else jnp.result_type(float), data)


def _statistics(context: Array, dtype: Any) -> dict[str, Array]:
    """Mean, as a sum of two numbers that has twice the digits of `dtype`, and log-scale of contexts."""
    axes = tuple(range(max(context.ndim - 1, 1)))
    flags = ((context == 0) | (context == 1)).all(axes)
    found = batch_statistics(context.astype(_wide(context.dtype, dtype)))
    mean, log_scale = (jnp.where(flags, 0.0, found[name]) for name in ("shift", "log_scale"))
    precision = jnp.finfo(dtype)
    shift = jax.lax.reduce_precision(mean, precision.nexp, precision.nmant)  # which XLA, unlike a cast and back, must not drop
    return {name: value.astype(dtype) for name, value in {"shift": shift, "rest": mean - shift, "log_scale": log_scale}.items()}


def conditioned(bijector: Bijector) -> Bijector:
    """The bijector, `Conditioned` where it takes a context."""
    return bijector if bijector.context_shape is None else Conditioned(bijector)


def inner(bijector: Bijector, params: Params, context: Context) -> tuple[Params, Context]:
    """The parameters of what `conditioned` was given, and contexts as it sees them, of any leading axes."""
    return (params["bijector"], bijector.encode(params, context)) if isinstance(bijector, Conditioned) else (params, context)
