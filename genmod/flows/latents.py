"""What the latents of a multi-scale flow are for: interpolation between images, and images that share some scales.

Both go data -> latents -> data through a flow whose bijector is a `MultiScale`; `scales` names entries of
`flow.bijector.latent_shapes`, from "scale_1", the finest, to "scale_L", the coarsest; None is all of them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.bijectors import Conditioned, MultiScale
from genmod.core.batching import row_keys
from genmod.core.checks import check_context, check_count
from genmod.core.keys import check_key
from genmod.core.types import Array, Key, Params
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
    """Images from x_0 to x_1 by straight lines in latent space, z(a) = (1 - a) z_0 + a z_1 with a from 0 to 1.

    Args:
      flow, params: a flow with scales, and what its `init` or `fit` made.
      x_0, x_1: where the lines begin and end, (n,) + event_shape each.
      num: images on each line, both ends included.
      scales: names of the latents that move; the others stay those of x_0.
      context: one for all, or one for each line, (n,) + context_shape.

    Returns the images, (n, num) + event_shape. Raises ValueError for unknown scales, for a flow without scales, and where x_0
    and x_1 differ in shape.
    """
    check_count(num=num)
    bijector, scales = _multi_scale(flow, scales)
    context = check_context(type(flow).__name__, context, flow.context_shape, batch=jnp.shape(x_0)[:1], any_batch=True)
    if jnp.shape(x_0) != jnp.shape(x_1):
        raise ValueError(f"x_0 and x_1 must have one shape, got {jnp.shape(x_0)} and {jnp.shape(x_1)}")
    start, end = (bijector.unpack(flow.encode(params, x, context)) for x in (x_0, x_1))
    weights = jnp.linspace(0.0, 1.0, num)

    def line(name, a, b):
        weight = weights.reshape(1, num, *(1,) * (a.ndim - 1)).astype(a.dtype) * (name in scales)
        return a[:, None] + weight * (b - a)[:, None]

    z = bijector.pack({name: line(name, start[name], end[name]) for name in start})
    shared = context is None or jnp.shape(context) == flow.context_shape
    return flow.decode(params, z, context if shared else jnp.asarray(context)[:, None])


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
    """Images like x, some of whose latents are drawn anew.

    Args:
      flow, params: a flow with scales, and what its `init` or `fit` made.
      key: of the draws.
      x: (n,) + event_shape.
      scales: names of the latents that are drawn; the others stay those of x.
      temperature: standard deviation of the draws, as a multiple of the base's.
      context: one for all, or one for each image, (n,) + context_shape.

    Returns the images, (n,) + event_shape. Raises ValueError for unknown scales, for a flow without scales, and as
    `Pushforward.tempered`.
    """
    bijector, scales = _multi_scale(flow, scales)
    num = len(jnp.asarray(x))
    context = check_context(type(flow).__name__, context, flow.context_shape, batch=(num,), any_batch=True)
    old = bijector.unpack(flow.encode(params, x, context))
    narrowed = flow if temperature == 1.0 else flow.tempered(temperature)
    each = None if context is None else jnp.broadcast_to(context, (num, *(flow.context_shape or ())))
    draw = jax.vmap(narrowed.draw_base_one, (None, 0, None if each is None else 0))
    drawn = draw(params, row_keys(check_key(key), num), each)  # type: ignore[arg-type]
    new = bijector.unpack(drawn)
    return flow.decode(params, bijector.pack({name: (new if name in scales else old)[name] for name in old}), context)


def multi_scale(flow: Flow) -> MultiScale:
    """The bijector of a flow with scales; ValueError for another."""
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a gm.models.Flow (of a Dequantized, its `model`), got {type(flow).__name__}")
    bijector = flow.bijector.bijector if isinstance(flow.bijector, Conditioned) else flow.bijector
    if not isinstance(bijector, MultiScale):
        given = type(bijector).__name__
        raise ValueError(f"flow must have a MultiScale bijector (gm.flows.glow, real_nvp_image), got {given}")
    return bijector


def _multi_scale(flow: Flow, scales: Sequence[str] | None) -> tuple[MultiScale, Sequence[str]]:
    bijector = multi_scale(flow)
    known = list(bijector.latent_shapes)
    if isinstance(scales, str) or (scales is not None and not set(scales) <= set(known)):
        raise ValueError(f"scales must be a sequence of names among {known}, got {scales!r}")
    return bijector, known if scales is None else scales
