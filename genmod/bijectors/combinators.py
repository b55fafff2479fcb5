"""Bijectors made of bijectors: `Chain`, `Repeat` and `Invert`.

The log-determinants of a composition add up: log |det d(g o f)| = log |det df|(z) + log |det dg|(f(z)).
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from genmod.base import Array, Bijector, Context, InfoBijector, Params, add_info, vmap_events
from genmod.checks import check_count


@dataclasses.dataclass(frozen=True)
class Chain(InfoBijector):
    """One bijector after the other, in the order base to data: `Chain((f, g))` is x = g(f(z)).

    Parameters: a tuple, one entry per bijector. Members without a context are not given one.
    Raises ValueError where the members want different contexts.
    """

    bijectors: tuple[Bijector, ...]

    def __post_init__(self):
        super().__post_init__()
        for i, bijector in enumerate(self.bijectors):
            if not isinstance(bijector, Bijector):
                raise TypeError(f"Chain.bijectors[{i}] must be a Bijector, got {type(bijector).__name__}")
        shapes = {b.context_shape for b in self.bijectors} - {None}
        if len(shapes) > 1:
            raise ValueError(f"the bijectors of a Chain must share one context_shape, got {sorted(map(str, shapes))}")

    @property
    def event_shape(self):
        shape = None
        for bijector in self.bijectors:
            through = None if shape is None else bijector.data_shape(shape)
            shape = bijector.event_shape if bijector.event_shape is not None else through
        return shape

    def data_shape(self, latent_shape):
        for bijector in self.bijectors:
            latent_shape = bijector.data_shape(latent_shape)
        return latent_shape

    def latent_shape(self, data_shape):
        for bijector in reversed(self.bijectors):
            data_shape = bijector.latent_shape(data_shape)
        return data_shape

    @property
    def context_shape(self):
        return next((b.context_shape for b in self.bijectors if b.context_shape is not None), None)

    @property
    def likelihood(self):
        return max((b.likelihood for b in self.bijectors), default=Bijector.likelihood)

    def _init(self, key, x, context):
        params = []
        for i, bijector in reversed(list(enumerate(self.bijectors))):
            params.insert(0, init_member(bijector, jax.random.fold_in(key, i), x, context))
            if i > 0:
                x = inverse_batch(bijector, params[0], x, context)
        return tuple(params)

    def _forward_with_info(self, params, z, context, key, log_det):
        return self._compose("forward_with_info", range(len(self.bijectors)), params, z, context, key, log_det)

    def _inverse_with_info(self, params, x, context, key, log_det):
        return self._compose("inverse_with_info", reversed(range(len(self.bijectors))), params, x, context, key, log_det)

    def _compose(self, direction, order, params, event, context, key, log_det):
        if len(params) != len(self.bijectors):
            raise ValueError(f"params must have one entry for each of {len(self.bijectors)} bijectors, got {len(params)}")
        total, infos = jnp.zeros((), jnp.promote_types(event.dtype, jnp.float32)), []
        for i in order:
            bijector, member_key = self.bijectors[i], None if key is None else jax.random.fold_in(key, i)
            step = getattr(bijector, direction)
            event, term, info = step(params[i], event, context_for(bijector, context), key=member_key, log_det=log_det)
            total, infos = total + term, [*infos, info]
        return event, total, add_info(*infos)


class _Wrapper(InfoBijector, abc.ABC):
    """A bijector made of one other, whose shapes and likelihood are its own."""

    bijector: Bijector

    @property
    def event_shape(self):
        return self.bijector.event_shape

    @property
    def context_shape(self):
        return self.bijector.context_shape

    @property
    def likelihood(self):
        return self.bijector.likelihood


@dataclasses.dataclass(frozen=True)
class Repeat(_Wrapper):
    """`num` equal layers, each with parameters of its own, stacked on a leading axis and run by one `lax.scan`.

    The layer is traced and compiled once, whatever `num`; `unroll` layers are laid out in line per iteration, which runs
    a little faster and compiles a little slower. Parameters: those of the bijector with a leading axis of `num`, base
    first.
    """

    bijector: Bijector
    num: int
    unroll: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_count(num=self.num, unroll=self.unroll)

    def _init(self, key, x, context):
        if self.bijector.latent_shape(x.shape[1:]) != x.shape[1:]:
            raise ValueError(f"Repeat wants a bijector that keeps the shape {x.shape[1:]} of its event")

        def layer(x, key):
            params = self.bijector.init(key, x, context)
            return inverse_batch(self.bijector, params, x, context), params

        return jax.lax.scan(layer, x, jax.random.split(key, self.num), reverse=True)[1]

    def _forward_with_info(self, params, z, context, key, log_det):
        return self._scan(self.bijector.forward_with_info, params, z, context, key, log_det, reverse=False)

    def _inverse_with_info(self, params, x, context, key, log_det):
        return self._scan(self.bijector.inverse_with_info, params, x, context, key, log_det, reverse=True)

    def _scan(self, direction, params, event, context, key, log_det, reverse):
        def layer(carry, inputs):
            (event, total), (params, key) = carry, inputs
            event, term, info = direction(params, event, context, key=key, log_det=log_det)
            return (event, total + term), info

        start = event, jnp.zeros((), jnp.promote_types(event.dtype, jnp.float32))
        inputs = params, None if key is None else jax.random.split(key, self.num)
        options = {"length": self.num, "reverse": reverse, "unroll": min(self.unroll, self.num)}
        (event, total), infos = jax.lax.scan(layer, start, inputs, **options)
        return event, total, {name: values.sum(0) for name, values in infos.items()}


@dataclasses.dataclass(frozen=True)
class Invert(_Wrapper):
    """The bijector with its two directions exchanged: an inverse autoregressive layer becomes a masked one, and back.

    Data-dependent initialisation is for the data side, so inside `Invert` a batch only serves as an example.
    """

    bijector: Bijector

    @property
    def event_shape(self):
        inner = self.bijector.event_shape
        return None if inner is None else self.bijector.latent_shape(inner)

    def data_shape(self, latent_shape):
        return self.bijector.latent_shape(latent_shape)

    def latent_shape(self, data_shape):
        return self.bijector.data_shape(data_shape)

    def _init(self, key, x, context):
        # An example of the other side: only its shape is right.
        other = self.latent_shape(x.shape[1:])
        return self.bijector.init(key, x.reshape(x.shape[0], *other), context)

    def _forward_with_info(self, params, z, context, key, log_det):
        return self.bijector.inverse_with_info(params, z, context, key=key, log_det=log_det)

    def _inverse_with_info(self, params, x, context, key, log_det):
        return self.bijector.forward_with_info(params, x, context, key=key, log_det=log_det)


def context_for(bijector: Bijector, context: Context) -> Context:
    """The context if `bijector` takes one, else None."""
    return None if bijector.context_shape is None else context


def init_member(bijector: Bijector, key: Array, x: Array, context: Context) -> Params:
    """The parameters of a member of a composition, whose context it may not want."""
    return bijector.init(key, x, context_for(bijector, context))


def inverse_batch(bijector: Bijector, params: Params, x: Array, context: Context) -> Array:
    """z of a batch of x, on its way to the member before."""
    context = context_for(bijector, context)
    return vmap_events(bijector.inverse, (None, 0, None if context is None else 0))(params, x, context)


def inner_layer(bijector: Bijector) -> Bijector:
    """The layer next to the base: the first of a Chain, or the bijector itself."""
    return bijector.bijectors[0] if isinstance(bijector, Chain) and bijector.bijectors else bijector


def inner_params(bijector: Bijector, params: Params) -> Params:
    """Its parameters among those of the bijector."""
    return params[0] if isinstance(bijector, Chain) else params


def before_inner(bijector: Bijector, params: Params, x: Array) -> Array:
    """Data x, (n,) + event shape, on the data side of the inner layer; the layers outside of it are held fixed."""
    if not isinstance(bijector, Chain):
        return x
    outer = Chain(bijector.bijectors[1:])
    return vmap_events(outer.inverse, (None, 0))(jax.lax.stop_gradient(params[1:]), x)
