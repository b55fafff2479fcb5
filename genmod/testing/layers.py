"""A health report of a trained bijector: where it loses digits, stretches too far, or leaves the range of its splines.

Each layer is looked at on the data that reach it, from the data side to the base. The float32 round trip of a layer with
smallest local slope s loses about eps |x| / s: the report shows both, and warns before a log_prob cannot be trusted.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from genmod.bijectors.autoregressive import Autoregressive
from genmod.bijectors.base import Bijector
from genmod.bijectors.chain import Chain
from genmod.bijectors.context import Conditioned
from genmod.bijectors.continuous import ContinuousFlow
from genmod.bijectors.coupling import Coupling
from genmod.bijectors.distrax import as_bijector
from genmod.bijectors.image import MultiScale
from genmod.bijectors.repeat import Invert, Repeat
from genmod.bijectors.transformers import Elementwise
from genmod.core.batching import vmap_events
from genmod.core.checks import check_context
from genmod.core.params import cast
from genmod.core.types import Array, Context, Params

_WARN_LOG_PROB, _WARN_ROUND_TRIP, _WARN_CONTEXT = 1e-2, 1e-3, 30.0
_MOST_FOR_SLOPES = 256


class LayerHealth(NamedTuple):
    """One layer on the data.

    Attributes:
      name: of the layer, with its place. round_trip: the largest error of x -> z -> x.
      smallest_slope, largest_slope: extreme singular values of dx/dz; nan for events of more than 256 entries.
      tail_share: how many of its inputs lie outside of its spline; nan where it has none.
      log_det_range: the least and the largest log-determinant, in nats.
    """

    name: str
    round_trip: float
    smallest_slope: float
    largest_slope: float
    tail_share: float
    log_det_range: tuple[float, float]


class HealthReport(NamedTuple):
    """What `health` found; print it.

    Attributes:
      layers: from the data to the base.
      round_trip: the largest error of x -> z -> x of the whole.
      log_det_error: the largest difference of the log-determinant from that in float64, in nats.
      warnings: what to worry about, one sentence each.
    """

    layers: tuple[LayerHealth, ...]
    round_trip: float
    log_det_error: float
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{'layer (data to base)':<46}{'round trip':>11}{'slopes of x(z)':>22}{'in tails':>10}{'log_det':>18}"
        lines = [head]
        for layer in self.layers:
            slopes = "" if np.isnan(layer.smallest_slope) else f"{layer.smallest_slope:.2g} .. {layer.largest_slope:.2g}"
            tails = "" if np.isnan(layer.tail_share) else f"{layer.tail_share:.2%}"
            log_dets = "{:.2f} .. {:.2f}".format(*layer.log_det_range)
            lines.append(f"{layer.name[:45]:<46}{layer.round_trip:>11.1e}{slopes:>22}{tails:>10}{log_dets:>18}")
        lines.append(f"whole: round trip {self.round_trip:.1e}, log_det against float64 {self.log_det_error:.1e} nats")
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def health(
    bijector: Bijector, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, num_points: int = 256
) -> HealthReport:
    """Looks at each layer of a bijector on data, in their dtype.

    Slopes are singular values of each layer's Jacobian dx/dz, so their logs bound what a layer adds to the log-density.

    Args:
      bijector, params: that of a flow, and `params["bijector"]`.
      x: data, (n,) + event_shape. context: of each, (n,) + context_shape.
      num_points: how many of them are looked at.

    Returns a report; print it. Raises TypeError for what is no bijector, and what the bijector raises for parameters and arrays
    that do not fit.
    """
    bijector = as_bijector(bijector)
    points = jnp.asarray(x)[:num_points]
    context = check_context(type(bijector).__name__, context, bijector.context_shape, batch=np.shape(x)[:1])
    context = None if context is None else jnp.asarray(context)[:num_points]
    layers, event, contexts = [], points, []
    _whole(bijector, params, points, context)  # raises, in the bijector's own words, where the arguments do not fit
    for name, layer, layer_params, num_kept in _layers(bijector, params):
        own = None if layer.context_shape is None else context
        if own is not None:
            outer = layer.bijector if isinstance(layer, Invert) else layer
            contexts.append(outer.encode(layer_params, own) if isinstance(outer, Conditioned) else own)
        measured, event = _measure(layer, layer_params, event, own)
        event = event[..., :num_kept]
        layers.append(_layer_health(name, *jax.device_get(measured)))
    _, log_det, round_trip = jax.device_get(_whole(bijector, params, points, context))
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(points), np.float64)
        wide_context = None if context is None else jnp.asarray(np.asarray(context), np.float64)
        exact_log_det = np.asarray(_whole(bijector, cast(params, np.float64), wide, wide_context)[1])
    error = float(np.abs(log_det - exact_log_det).max())
    size = float(np.abs(np.asarray(points) - np.asarray(points).mean(0)).max()) or 1.0
    return HealthReport(
        tuple(layers), float(round_trip), error, tuple(_warnings(layers, error, float(round_trip) / size, contexts))
    )


def _layers(bijector: Bijector, params: Params) -> Iterator[tuple[str, Bijector, Params, int | None]]:
    """The simple layers from the data side to the base; and how many channels go on to the next (None: all)."""
    if isinstance(bijector, Chain):
        for inner, inner_params in reversed(list(zip(bijector.bijectors, params, strict=True))):
            yield from _layers(inner, inner_params)
    elif isinstance(bijector, Repeat):
        for i in reversed(range(bijector.num)):
            one = jax.tree.map(lambda p, i=i: p[i], params)
            yield from ((f"{i}: {name}", layer, p, kept) for name, layer, p, kept in _layers(bijector.bijector, one))
    elif isinstance(bijector, MultiScale):
        kept_shapes = bijector.kept_shapes()
        for i, level in enumerate(bijector.levels):
            inner = _layers(level, params["levels"][i])
            yield from ((f"scale_{i + 1}, {name}", layer, p, kept) for name, layer, p, kept in inner)
            if i < len(kept_shapes):
                yield f"scale_{i + 1} leaves", bijector.split, params["splits"][i], kept_shapes[i][-1]
    elif isinstance(bijector, Conditioned):
        for name, layer, own, kept in _layers(bijector.bijector, params["bijector"]):
            if layer.context_shape is not None:
                layer, own = Conditioned(layer), params | {"bijector": own}
            yield name, layer, own, kept
    else:
        inner = bijector.bijector if isinstance(bijector, Invert) else bijector
        transformer = getattr(inner, "transformer", None)
        name = type(inner).__name__ + ("" if transformer is None else f"({type(transformer).__name__})")
        yield (f"Invert({name})" if isinstance(bijector, Invert) else name), bijector, params, None


def _within(layer: Bijector) -> Bijector:
    return layer.bijector if isinstance(layer, Conditioned) else layer


@functools.partial(jax.jit, static_argnums=0)
def _measure(layer: Bijector, params: Params, x: Array, context: Context):
    axes = (None, 0, None if context is None else 0)
    z, log_det = vmap_events(_with_key(layer.inverse_and_log_det), axes)(params, x, context)
    back = vmap_events(layer.forward, axes)(params, z, context)
    size = int(np.prod(x.shape[1:], dtype=int))
    slopes = jnp.full((), jnp.nan)
    if size <= _MOST_FOR_SLOPES:
        # dz/dx is the cheap direction of a density model; its singular values are the reciprocals of those of dx/dz.
        # An adaptive solve has reverse mode only.
        differentiate = jax.jacrev if isinstance(_within(layer), ContinuousFlow) else jax.jacfwd
        jacobian = jax.vmap(differentiate(layer.inverse, argnums=1), axes)(params, x, context)
        slopes = jnp.linalg.svd(jacobian.reshape(-1, size, size), compute_uv=False)
    measured = jnp.abs(back - x).max(), 1 / slopes.max(), 1 / slopes.min(), _tail_share(layer, z, x), log_det.min(), log_det.max()
    return measured, z


def _layer_health(name, round_trip, smallest, largest, tails, low, high) -> LayerHealth:
    return LayerHealth(name, float(round_trip), float(smallest), float(largest), float(tails), (float(low), float(high)))


def _tail_share(layer: Bijector, z: Array, x: Array) -> Array:
    """Share of transformed coordinates on the straight part of their transformer (nan if it has none)."""
    layer = _within(layer)
    inner, inside = (layer.bijector, x) if isinstance(layer, Invert) else (layer, z)
    if not isinstance(inner, Coupling | Autoregressive | Elementwise) or inner.transformer.interval is None:
        return jnp.full((), jnp.nan)
    if isinstance(inner, Coupling):
        inside = jax.vmap(inner.parts)(inside)[1]
    low, high = inner.transformer.interval
    return jnp.mean((inside < low) | (inside > high))


@functools.partial(jax.jit, static_argnums=0)
def _whole(bijector: Bijector, params: Params, x: Array, context: Context):
    axes = (None, 0, None if context is None else 0)
    z, log_det = vmap_events(_with_key(bijector.inverse_and_log_det), axes)(params, x, context)
    return z, log_det, jnp.abs(vmap_events(bijector.forward, axes)(params, z, context) - x).max()


def _with_key(direction):
    """One draw of the probes for all events, where the log-determinant is an estimate."""
    return functools.partial(direction, key=jax.random.key(0))


def _warnings(layers: list[LayerHealth], log_det_error: float, round_trip: float, contexts: list) -> Iterator[str]:
    if not np.isfinite([log_det_error, round_trip]).all():
        yield "values that are not finite on the data; the model has diverged"
    elif log_det_error > _WARN_LOG_PROB:
        yield f"float32 is not enough here: log_prob is off by up to {log_det_error:.1e} nats; use float64 (jax_enable_x64)"
    elif round_trip > _WARN_ROUND_TRIP:
        yield f"float32 is not enough for the inverse: x comes back off by {round_trip:.1e} of the data's range"
    size = max((float(jnp.abs(seen).max()) for seen in contexts), default=0.0)
    if size > _WARN_CONTEXT:
        yield f"contexts reach {size:.2g} where a network sees them: standardise them, as bijectors.Conditioned does"
    for layer in layers:
        if layer.tail_share > 0.05:
            yield f"{layer.name}: {layer.tail_share:.1%} of its inputs lie outside the spline; raise its bound"
