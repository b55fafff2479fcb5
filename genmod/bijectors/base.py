"""The Bijector protocol: an invertible map of ONE latent event z to one data event x, with parameters outside.

`forward` is base to data, `inverse` data to base, and the log-determinant is always that of the map just applied:

    x = f(z),  log_det = log |det df/dz|        z = f^-1(x),  log_det = log |det df^-1/dx| = -log |det df/dz|

A bijector implements `_init`, `_forward`, `_inverse`; the public methods check their arguments and call those. Bijectors made of
others, and those that are solved or estimated numerically, implement one hook for both directions, `_move`, which is also what
a composition calls: inside it nothing is checked again.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from genmod.core.checks import check_array, check_context, check_context_shape
from genmod.core.description import Description
from genmod.core.distribution import Likelihood
from genmod.core.info import mark_failed
from genmod.core.numerics import same_precision
from genmod.core.types import REALS, Array, Context, Info, Interval, Key, Params, Shape


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EventShape:
    """The shape of the data that parameters were made for, among the parameters of a bijector that fits any: no array."""

    shape: Shape


class Bijector(Description, abc.ABC):
    """An invertible map of one event.

    Attributes:
      event_shape: the shape of x; None where any will do: then it is that of the data that `init` sees.
      context_shape: shape of the context; None where none is taken.
      likelihood: EXACT unless the log-determinant is an estimate.
      onto_reals: whether it is known to map all of R^D onto R^D, in both directions.
      reads_data: whether `_init` reads the values of its example, and not its shape alone. False saves a composition the way
        of the data through its layers.
      own_precision: whether the hooks get a context as it was given; else it comes in the precision of the event.

    z and x have equally many entries; a bijector that changes their shape says so in `data_shape` and `latent_shape`.
    """

    event_shape: Shape | None = None
    context_shape: Shape | None = None
    likelihood: Likelihood = Likelihood.EXACT
    onto_reals: bool = False
    reads_data: bool = True
    own_precision: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_context_shape(self)

    def init(self, key: Key, x: ArrayLike, context: ArrayLike | None = None) -> Params:
        """Parameters from an example batch x, (n,) + event_shape, and context, (n,) + context_shape.

        Most bijectors read only the shape of x; those that initialise from data (ActNorm) read its statistics.
        Raises ValueError or TypeError where x or context does not fit.
        """
        x = check_array("x", x, batched=True)
        if self.event_shape is not None and x.shape[1:] != self.event_shape:
            raise ValueError(f"x must have shape (n,) + {self.event_shape}, got {x.shape}")
        context = check_context(type(self).__name__, context, self.context_shape, batch=x.shape[:1])
        return self.init_rows(key, x, None if context is None else jnp.asarray(context))

    def init_rows(self, key: Key, x: Array, context: Context = None) -> Params:
        """`init` of rows that have been checked: what a composition calls for its members."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # data may be of 16 bits, parameters are of 32 or 64
        context = context if self.context_shape is not None else None
        params = self._init(key, x, context if self.own_precision else same_precision(context, x))
        if self.event_shape is not None or not isinstance(params, dict) or isinstance(params.get("event"), EventShape):
            return params  # a wrapper's parameters are those of what it wraps, which has noted its own shape
        if "event" in params:
            raise ValueError(
                f"the parameters of {type(self).__name__} have an entry 'event', under which a bijector notes the shape of its "
                "data; rename it (in a network: that layer)"
            )
        return params | {"event": EventShape(x.shape[1:])}

    def data_shape(self, latent_shape: Shape) -> Shape:
        """The shape of x for a z of shape `latent_shape`: the same, unless the bijector says otherwise."""
        return latent_shape

    def latent_shape(self, data_shape: Shape) -> Shape:
        """The shape of z for an x of shape `data_shape`."""
        return data_shape

    def image(self, interval: Interval, inverse: bool = False) -> Interval | None:
        """The interval that coordinates of z in `interval` are sent to; with `inverse`, from which those of x come.

        None where that is not known. Raises ValueError where the map is not defined on all of the interval.
        """
        return REALS if self.onto_reals and interval == REALS else None

    def bound_shape(self, params: Params) -> Shape | None:
        """The shape of x that these parameters are for; None where nothing says it."""
        if self.event_shape is not None:
            return self.event_shape
        bound = params.get("event") if isinstance(params, dict) else None
        return bound.shape if isinstance(bound, EventShape) else None

    def forward_and_log_det(
        self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> tuple[Array, Array]:
        """Base to data: one event and its log-determinant.

        Args:
          params: what `init` made.
          z: one latent event. context: its context.
          key: where the log-determinant is an estimate.

        Returns (x, log |det dx/dz|). Raises ValueError or TypeError where z or the context does not fit.
        """
        return _marked(*self.forward_with_info(params, z, context, key=key))

    def inverse_and_log_det(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None
    ) -> tuple[Array, Array]:
        """Data to base: one event and its log-determinant.

        Args:
          params: what `init` made.
          x: one data event. context: its context.
          key: where the log-determinant is an estimate.

        Returns (z, log |det dz/dx|). Raises ValueError or TypeError where x or the context does not fit.
        """
        return _marked(*self.inverse_with_info(params, x, context, key=key))

    def forward(self, params: Params, z: ArrayLike, context: ArrayLike | None = None) -> Array:
        """x = f(z) for one event."""
        return _marked(*self.forward_with_info(params, z, context, log_det=False))[0]

    def inverse(self, params: Params, x: ArrayLike, context: ArrayLike | None = None) -> Array:
        """z = f^-1(x) for one event."""
        return _marked(*self.inverse_with_info(params, x, context, log_det=False))[0]

    def forward_with_info(
        self, params: Params, z: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None, log_det: bool = True
    ) -> tuple[Array, Array, Info]:
        """(x, log |det dx/dz|, info): how a numerical map went, as scalars that add up along a chain ({} for closed maps).

        Args:
          params: what `init` made.
          z: one latent event. context: its context.
          key: where the log-determinant is an estimate.
          log_det: False says that nobody will read the second entry, which then means nothing, and costs nothing.

        Where a solve fails, the event is its last state and `info["failed_solves"]` counts it; the methods without info give
        NaN there. Raises ValueError or TypeError where z or the context does not fit.
        """
        return self._at_the_door("z", params, z, context, key, False, log_det)

    def inverse_with_info(
        self, params: Params, x: ArrayLike, context: ArrayLike | None = None, *, key: Key | None = None, log_det: bool = True
    ) -> tuple[Array, Array, Info]:
        """(z, log |det dz/dx|, info) for one data event x; arguments, info and what is raised as in `forward_with_info`."""
        return self._at_the_door("x", params, x, context, key, True, log_det)

    def _at_the_door(self, name, params, event, context, key, inverse, log_det):
        event = check_array(name, event)
        shape = self.bound_shape(params)
        if shape is not None and not inverse:
            shape = self.latent_shape(shape)
        if shape is not None and event.shape != shape:
            raise ValueError(f"{name} must be one event of shape {shape}, got {event.shape}; jax.vmap takes a batch")
        wanted = self.latent_shape(event.shape) if inverse else self.data_shape(event.shape)
        context = check_context(type(self).__name__, context, self.context_shape)
        context = None if context is None else jnp.asarray(context)
        moved, total, info = self._move(params, event, context, key, inverse, log_det)
        return _checked_output(self, event, wanted, moved, total, info)

    @abc.abstractmethod
    def _init(self, key: Key, x: Array, context: Context) -> Params: ...

    @abc.abstractmethod
    def _forward(self, params: Params, z: Array, context: Context) -> tuple[Array, ArrayLike]: ...

    @abc.abstractmethod
    def _inverse(self, params: Params, x: Array, context: Context) -> tuple[Array, ArrayLike]: ...

    def _move(
        self, params: Params, event: Array, context: Context, key: Key | None, inverse: bool, log_det: bool
    ) -> tuple[Array, ArrayLike, Info]:
        """The event on the other side, the log-determinant and the info: of x if `inverse`, else of z."""
        return *(self._inverse if inverse else self._forward)(params, event, same_precision(context, event)), {}


class InfoBijector(Bijector, abc.ABC):
    """A bijector that needs a key or reports how it went, or that is made of others, which may: it implements `_move`."""

    own_precision = True

    @abc.abstractmethod
    def _move(
        self, params: Params, event: Array, context: Context, key: Key | None, inverse: bool, log_det: bool
    ) -> tuple[Array, ArrayLike, Info]: ...

    def _forward(self, params, z, context):
        return self._move(params, z, context, None, False, True)[:2]

    def _inverse(self, params, x, context):
        return self._move(params, x, context, None, True, True)[:2]


def _marked(event: Array, log_det: Array, info: Info) -> tuple[Array, Array]:
    return mark_failed(event, info), mark_failed(log_det, info)


def _checked_output(bijector: Bijector, given: Array, wanted: Shape, event: Array, log_det: Any, info: Info):
    # Accumulated in at least float32, whatever the event is stored in.
    log_det = jnp.asarray(log_det, jnp.promote_types(given.dtype, jnp.float32))
    name = type(bijector).__name__
    if log_det.shape:
        raise ValueError(
            f"{name} returned a log_det of shape {log_det.shape}; a bijector maps one event and must sum to a scalar"
        )
    if event.shape != wanted:
        raise ValueError(
            f"{name} made an event of shape {event.shape} from one of shape {given.shape}, wanted {wanted}; "
            "its parameters are of another event shape, or it broadcasts"
        )
    return event, log_det, info
