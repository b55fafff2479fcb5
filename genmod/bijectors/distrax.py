"""The door to Distrax's bijectors, in both directions: `from_distrax` and `as_distrax`.

Compositions, `Flow` and the builders take a `distrax.Bijector` as it is, through `as_bijector`.
"""

import dataclasses

import distrax
import jax

from genmod.bijectors.base import Bijector
from genmod.core.checks import check_context
from genmod.core.types import Array, Params
from genmod.densities.base import Frozen, freeze


@dataclasses.dataclass(frozen=True)
class FromDistraxBijector(Bijector):
    """A `distrax.Bijector` as one of ours, its arrays constant; build it with `from_distrax`."""

    frozen: Frozen
    event_ndims: int
    reads_data = False

    def _init(self, key, x, context):
        self._thawed(x[0])
        return {}

    def _forward(self, params, z, context):
        x, log_det = self._thawed(z).forward_and_log_det(z)
        return x, log_det.sum()

    def _inverse(self, params, x, context):
        z, log_det = self._thawed(x).inverse_and_log_det(x)
        return z, log_det.sum()

    def _thawed(self, x):
        if x.ndim < self.event_ndims:
            raise ValueError(f"this distrax bijector takes events of at least {self.event_ndims} axes, got shape {x.shape}")
        return self.frozen.thaw(x.dtype)


def from_distrax(bijector: distrax.Bijector) -> Bijector:
    """A `distrax.Bijector` as one of ours. Its arrays are constants, in the precision in which they were made.

    Raises TypeError for another type, ValueError where input and output ranks differ.
    """
    if not isinstance(bijector, distrax.Bijector):
        raise TypeError(f"bijector must be a distrax.Bijector, got {type(bijector).__name__}")
    if bijector.event_ndims_in != bijector.event_ndims_out:
        raise ValueError("a distrax bijector that changes the rank of its event cannot be used")
    return FromDistraxBijector(freeze(bijector), bijector.event_ndims_in)


def as_bijector(bijector: "Bijector | distrax.Bijector", name: str = "bijector") -> Bijector:
    """One of ours as it is, one of Distrax through `from_distrax`; TypeError, which speaks of it as `name`, for anything else."""
    if isinstance(bijector, distrax.Bijector):
        return from_distrax(bijector)
    if not isinstance(bijector, Bijector):
        raise TypeError(f"{name} must be a gm.Bijector or a distrax.Bijector, got {bijector!r}")
    return bijector


def as_distrax(bijector: Bijector, params: Params, context: Array | None = None, *, event_ndims: int = 1) -> distrax.Bijector:
    """Our bijector with its parameters as a `distrax.Bijector`, for `distrax.Transformed` and the like.

    Args:
      bijector, params: one of ours, and what its `init` made.
      context: one for all events; wanted by a bijector that is conditional.
      event_ndims: the rank of a latent event; leading axes are batch, as Distrax has it. A bijector that changes the rank
        (`MultiScale`: a vector to an image) must know its `event_shape`.

    Raises ValueError where the context does not fit.
    """
    context = check_context(type(bijector).__name__, context, bijector.context_shape)
    return _AsDistrax(bijector, params, context, event_ndims)


class _AsDistrax(distrax.Bijector):
    def __init__(self, bijector, params, context, event_ndims):
        shape = bijector.event_shape  # of x
        super().__init__(event_ndims_in=event_ndims, event_ndims_out=event_ndims if shape is None else len(shape))
        self._bijector, self._params, self._context = bijector, params, context

    def forward_and_log_det(self, x):
        return self._batched(self._bijector.forward_and_log_det, x, self.event_ndims_in)

    def inverse_and_log_det(self, y):
        return self._batched(self._bijector.inverse_and_log_det, y, self.event_ndims_out)

    def _batched(self, direction, x, event_ndims):
        def fn(event):
            return direction(self._params, event, self._context)

        for _ in range(x.ndim - event_ndims):
            fn = jax.vmap(fn)
        return fn(x)
