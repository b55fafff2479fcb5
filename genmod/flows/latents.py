"""What the latents of a multi-scale flow are for: interpolation between images, and images that share some scales.

Both go data -> latents -> data through a flow whose bijector is a `MultiScale`; `scales` names entries of
`flow.bijector.latent_shapes`, from "scale_1", the finest, to "scale_L", the coarsest; None is all of them.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.base import Array, Key, Params, Shape
from genmod.bijectors import MultiScale
from genmod.checks import check_count
from genmod.keys import check_key
from genmod.models.flow import Flow


def interpolate(
    flow: Flow,
    params: Params,
    x_0: ArrayLike,
    x_1: ArrayLike,
    num: int = 8,
    *,
    scales: Sequence[str] | None = None,
    context: ArrayLike | None = None,
) -> Array:
    """`num` images from x_0 to x_1, (n,) + event_shape each, by straight lines in latent space: (n, num) + event_shape.

    Only the named scales move, z(a) = (1 - a) z_0 + a z_1, a from 0 to 1; the others stay those of x_0. context: one for all,
    or (n,) + context_shape. Raises ValueError for unknown scales, for a flow without scales, and where x_0 and x_1 differ in
    shape.
    """
    check_count(num=num)
    bijector, scales = _multi_scale(flow, scales)
    if jnp.shape(x_0) != jnp.shape(x_1):
        raise ValueError(f"x_0 and x_1 must have one shape, got {jnp.shape(x_0)} and {jnp.shape(x_1)}")
    context = _rows(context, flow.context_shape, len(jnp.asarray(x_0)))
    start, end = (bijector.unpack(flow.encode(params, x, context)) for x in (x_0, x_1))
    weights = jnp.linspace(0.0, 1.0, num)

    def line(name, a, b):
        weight = weights.reshape(1, num, *(1,) * (a.ndim - 1)).astype(a.dtype) * (name in scales)
        return a[:, None] + weight * (b - a)[:, None]

    z = bijector.pack({name: line(name, start[name], end[name]) for name in start})
    context = None if context is None else jnp.repeat(context, num, 0)
    return flow.decode(params, z.reshape(-1, z.shape[-1]), context).reshape(*z.shape[:2], *flow.event_shape)


def resample(
    flow: Flow,
    params: Params,
    key: Key,
    x: ArrayLike,
    *,
    scales: Sequence[str] | None = None,
    temperature: float = 1.0,
    context: ArrayLike | None = None,
) -> Array:
    """Images like x, (n,) + event_shape, whose latents of the named scales are drawn anew, at `temperature`.

    Raises ValueError for unknown scales, for a flow without scales, and as `Pushforward.tempered`.
    """
    bijector, scales = _multi_scale(flow, scales)
    old = bijector.unpack(flow.encode(params, x, context))
    drawn = flow.tempered(temperature).draw_base(params, check_key(key), len(jnp.asarray(x)))[1]
    new = bijector.unpack(drawn)
    return flow.decode(params, bijector.pack({name: (new if name in scales else old)[name] for name in old}), context)


def multi_scale(flow: Flow) -> MultiScale:
    """The bijector of a flow with scales; ValueError for another."""
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a gm.models.Flow (of a Dequantized, its `model`), got {type(flow).__name__}")
    if not isinstance(flow.bijector, MultiScale):
        given = type(flow.bijector).__name__
        raise ValueError(f"flow must have a MultiScale bijector (gm.flows.glow, real_nvp_image), got {given}")
    return flow.bijector


def _multi_scale(flow: Flow, scales: Sequence[str] | None) -> tuple[MultiScale, Sequence[str]]:
    bijector = multi_scale(flow)
    known = list(bijector.latent_shapes)
    if isinstance(scales, str) or (scales is not None and not set(scales) <= set(known)):
        raise ValueError(f"scales must be a sequence of names among {known}, got {scales!r}")
    return bijector, known if scales is None else scales


def _rows(context: ArrayLike | None, context_shape: Shape | None, num: int) -> Array | None:
    """One context for each of `num` rows."""
    if context is None:
        return None
    context = jnp.asarray(context)
    return jnp.broadcast_to(context[None], (num, *context.shape)) if context.shape == context_shape else context
