"""Autoregressive layers (Kingma et al. 2016, arXiv:1606.04934; Papamakarios et al. 2017, arXiv:1705.07057).

    x_i = tau(z_i; net_i(z_<i, context)),  log_det = sum_i log |dtau/dz_i|

`forward` costs ONE network pass (this direction is IAF: fast samples); `inverse` produces z coordinate by coordinate. For
density estimation wrap it: `Invert(Autoregressive(...))` is MAF, with the cheap direction from data to base. A `MADE`
conditioner computes each hidden unit once, so its inverse costs about one pass as well; any other conditioner D passes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genmod import nets
from genmod.bijectors.base import InfoBijector
from genmod.bijectors.linear import vector_dim
from genmod.bijectors.permutation import check_order
from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check_parts
from genmod.core.numerics import context_inputs
from genmod.core.types import Array, Shape


@dataclasses.dataclass(frozen=True)
class Autoregressive(InfoBijector):
    """An autoregressive layer of a vector, (D,).

    Attributes:
      transformer: the scalar bijection of each coordinate.
      conditioner: `nets.MADE`, or any Flax Linen module (D,) [, context] -> (D, transformer.num_params) whose row i
        depends on entries before i only (`check_bijection` would show it if not). Of a circular transformer it is given
        cosines and sines, (D, 2).
      order: coordinates in the order in which they are produced; None is 0, 1, ..., D - 1.
      context_shape: shape of the context, None without one.
    """

    transformer: Transformer
    conditioner: Any
    order: tuple[int, ...] | None = None
    context_shape: Shape | None = None
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, transformer=Transformer)
        check_order(self.order)

    @property
    def event_shape(self):
        return None if self.order is None else (len(self.order),)

    def image(self, interval, inverse=False):
        return self.transformer.image(interval)

    def _init(self, key, x, context):
        vector_dim(self, x)
        rest = context_inputs(None if context is None else context[0], x.dtype)
        return nets.init(self._network(), key, self._seen(x[0]), *rest)

    def _move(self, params, event, context, key, inverse, log_det):
        ordered = self._ordered(event)
        if inverse:
            moved, log_slope = self._backward(params, ordered, context)
        else:
            moved, log_slope = self.transformer.forward(self._raw(params, ordered, context), ordered)
        return self._unordered(moved), log_slope.sum(), self.transformer.info(moved, inverse)

    def _backward(self, params, x, context):
        if isinstance(self.conditioner, nets.MADE):
            flat = context_inputs(context, x.dtype) or (None,)
            return self._network().scan(params, self.transformer.inverse, x, *flat, features=self._seen)

        def step(z, i):
            z_i, log_slope = self.transformer.inverse(self._raw(params, z, context)[i], x[i])
            return z.at[i].set(z_i), log_slope

        return jax.lax.scan(step, jnp.zeros_like(x), jnp.arange(x.shape[0]))

    def _raw(self, params, ordered, context):
        rest = context_inputs(context, ordered.dtype)
        raw = nets.apply(self._network(), params, self._seen(ordered), *rest).astype(ordered.dtype)
        wanted = (*ordered.shape, self.transformer.num_params)
        if raw.shape != wanted:
            raise ValueError(f"the conditioner must return shape (D, num_params) = {wanted}, got {raw.shape}")
        return raw

    def _seen(self, ordered):
        features = self.transformer.features(ordered)
        return features.squeeze(-1) if self.transformer.num_features == 1 else features

    def _network(self):
        if isinstance(self.conditioner, nets.MADE):
            return self.conditioner.clone(num_outputs=self.transformer.num_params)
        return self.conditioner

    def _ordered(self, event: Array) -> Array:
        return event if self.order is None else event[np.asarray(self.order)]

    def _unordered(self, event: Array) -> Array:
        return event if self.order is None else event[np.argsort(self.order)]
