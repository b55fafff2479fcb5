"""Bijectors made of bijectors: `Chain`, `Repeat` and `Invert`.

The log-determinants of a composition add up: log |det d(g o f)| = log |det df|(z) + log |det dg|(f(z)).
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from genmod.base import Array, Bijector, Context, check_positive


@dataclasses.dataclass(frozen=True)
class Chain(Bijector):
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
        return next((b.event_shape for b in self.bijectors if b.event_shape is not None), None)

    @property
    def context_shape(self):
        return next((b.context_shape for b in self.bijectors if b.context_shape is not None), None)

    @property
    def likelihood(self):
        return max((b.likelihood for b in self.bijectors), default=Bijector.likelihood)

    def _init(self, key, x, context):
        params = []
        for i, bijector in reversed(list(enumerate(self.bijectors))):
            params.insert(0, _init_member(bijector, jax.random.fold_in(key, i), x, context))
            if i > 0:
                x = _inverse_batch(bijector, params[0], x, context)
        return tuple(params)

    def _forward(self, params, z, context):
        total = jnp.zeros((), jnp.promote_types(z.dtype, jnp.float32))
        for bijector, p in zip(self.bijectors, params, strict=True):
            z, log_det = bijector.forward_and_log_det(p, z, context_for(bijector, context))
            total = total + log_det
        return z, total

    def _inverse(self, params, x, context):
        total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
        for bijector, p in reversed(list(zip(self.bijectors, params, strict=True))):
            x, log_det = bijector.inverse_and_log_det(p, x, context_for(bijector, context))
            total = total + log_det
        return x, total


class _Wrapper(Bijector, abc.ABC):
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
        check_positive(num=self.num, unroll=self.unroll)

    def _init(self, key, x, context):
        def layer(x, key):
            params = self.bijector.init(key, x, context)
            return _inverse_batch(self.bijector, params, x, context), params

        return jax.lax.scan(layer, x, jax.random.split(key, self.num), reverse=True)[1]

    def _forward(self, params, z, context):
        return self._scan(self.bijector.forward_and_log_det, params, z, context, reverse=False)

    def _inverse(self, params, x, context):
        return self._scan(self.bijector.inverse_and_log_det, params, x, context, reverse=True)

    def _scan(self, direction, params, event, context, reverse):
        def layer(carry, params):
            event, total = carry
            event, log_det = direction(params, event, context)
            return (event, total + log_det), None

        start = event, jnp.zeros((), jnp.promote_types(event.dtype, jnp.float32))
        options = {"length": self.num, "reverse": reverse, "unroll": min(self.unroll, self.num)}
        return jax.lax.scan(layer, start, params, **options)[0]


@dataclasses.dataclass(frozen=True)
class Invert(_Wrapper):
    """The bijector with its two directions exchanged: an inverse autoregressive layer becomes a masked one, and back.

    Data-dependent initialisation is for the data side, so inside `Invert` a batch only serves as an example.
    """

    bijector: Bijector

    def _init(self, key, x, context):
        return self.bijector.init(key, x, context)

    def _forward(self, params, z, context):
        return self.bijector.inverse_and_log_det(params, z, context)

    def _inverse(self, params, x, context):
        return self.bijector.forward_and_log_det(params, x, context)


def context_for(bijector: Bijector, context: Context) -> Context:
    """The context if `bijector` takes one, else None."""
    return None if bijector.context_shape is None else context


def _init_member(bijector: Bijector, key: Array, x: Array, context: Context):
    return bijector.init(key, x, context_for(bijector, context))


def _inverse_batch(bijector: Bijector, params, x: Array, context: Context) -> Array:
    context = context_for(bijector, context)
    return jax.vmap(bijector.inverse, in_axes=(None, 0, None if context is None else 0))(params, x, context)
