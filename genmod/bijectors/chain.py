"""`Chain`: one bijector after the other, and the parts of a model that lie between the data and its first layer.

The log-determinants of a composition add up: log |det d(g o f)| = log |det df|(z) + log |det dg|(f(z)).
"""

import dataclasses

import jax
import jax.numpy as jnp

from genmod.bijectors.base import Bijector, InfoBijector
from genmod.bijectors.distrax import as_bijector
from genmod.core.batching import vmap_events
from genmod.core.info import add_info
from genmod.core.types import Array, Context, Params, Shape


@dataclasses.dataclass(frozen=True)
class Chain(InfoBijector):
    """One bijector after the other, in the order base to data: `Chain((f, g))` is x = g(f(z)).

    Members are bijectors of ours or of Distrax; those without a context are not given one.
    Parameters: a tuple, one entry per bijector.
    Raises ValueError where the members want different contexts, TypeError for a member that is no bijector.
    """

    bijectors: tuple[Bijector, ...]

    def __post_init__(self):
        if not isinstance(self.bijectors, tuple):
            raise TypeError(f"Chain takes a tuple of bijectors, got {self.bijectors!r}")
        members = (as_bijector(bijector, f"bijectors[{i}]") for i, bijector in enumerate(self.bijectors))
        object.__setattr__(self, "bijectors", tuple(members))
        super().__post_init__()
        common_context("the bijectors of a Chain", self.bijectors)

    @property
    def event_shape(self):
        shape = None
        for bijector in self.bijectors:
            through = None if shape is None else bijector.data_shape(shape)
            shape = bijector.event_shape if bijector.event_shape is not None else through
        return shape

    @property
    def context_shape(self):
        return common_context("the bijectors of a Chain", self.bijectors)

    @property
    def likelihood(self):
        return max((b.likelihood for b in self.bijectors), default=Bijector.likelihood)

    @property
    def reads_data(self):
        return any(b.reads_data for b in self.bijectors)

    def data_shape(self, latent_shape):
        for bijector in self.bijectors:
            latent_shape = bijector.data_shape(latent_shape)
        return latent_shape

    def latent_shape(self, data_shape):
        for bijector in reversed(self.bijectors):
            data_shape = bijector.latent_shape(data_shape)
        return data_shape

    def image(self, interval, inverse=False):
        for bijector in reversed(self.bijectors) if inverse else self.bijectors:
            interval = bijector.image(interval, inverse)
            if interval is None:
                return None
        return interval

    def bound_shape(self, params):
        shape = None
        for bijector, own in zip(self.bijectors, params, strict=False):
            through = None if shape is None else bijector.data_shape(shape)
            bound = bijector.bound_shape(own)
            shape = through if bound is None else bound
        return shape

    def _init(self, key, x, context):
        params = []
        for i, bijector in reversed(list(enumerate(self.bijectors))):
            params.insert(0, bijector.init_rows(jax.random.fold_in(key, i), x, context))
            if any(b.reads_data for b in self.bijectors[:i]):
                x = inverse_rows(bijector, params[0], x, context)
            elif i > 0:  # only the shape matters
                x = x.reshape(x.shape[0], *bijector.latent_shape(x.shape[1:]))
        return tuple(params)

    def _move(self, params, event, context, key, inverse, log_det):
        num = len(self.bijectors)
        if not isinstance(params, tuple | list) or len(params) != num:
            given = len(params) if isinstance(params, tuple | list) else f"a {type(params).__name__}"
            raise ValueError(f"params must be a tuple with one entry for each of {num} bijectors, got {given}")
        total, infos = jnp.zeros((), jnp.promote_types(event.dtype, jnp.float32)), []
        for i in reversed(range(num)) if inverse else range(num):
            bijector, own_key = self.bijectors[i], None if key is None else jax.random.fold_in(key, i)
            own = context if bijector.context_shape is not None else None
            event, term, info = bijector._move(params[i], event, own, own_key, inverse, log_det)
            total, infos = total + term, [*infos, info]
        return event, total, add_info(*infos)


def common_context(owner: str, bijectors: tuple[Bijector, ...]) -> Shape | None:
    """The context shape that the bijectors share, None without one; raises ValueError where there are several."""
    shapes = {b.context_shape for b in bijectors} - {None}
    if len(shapes) > 1:
        raise ValueError(f"{owner} must share one context_shape, got {sorted(map(str, shapes))}")
    return next(iter(shapes), None)


def inverse_rows(bijector: Bijector, params: Params, x: Array, context: Context) -> Array:
    """z of rows x, on their way to the member before; nothing is checked.

    Args:
      bijector, params: the member, and its parameters.
      x: (n,) + event_shape. context: (n,) + its context_shape, of the composition, or None.
    """

    def one(x, context):
        return bijector._move(params, x, context, None, True, False)[0]

    own = context if bijector.context_shape is not None else None
    return vmap_events(one, (0, None if own is None else 0))(x, own)
