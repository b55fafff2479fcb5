"""Transformers: scalar bijections x = tau(z; raw) as pure functions of raw, unconstrained parameters.

A transformer maps arrays elementwise: `z` of any shape S and `raw` of shape S + (num_params,) give x and log |dx/dz| of
shape S. The ZERO vector of raw parameters is the identity, so a layer whose network ends in zeros starts as the identity.
`Elementwise`, `Coupling` and `Autoregressive` take any transformer.
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp

from genmod.bijectors.base import InfoBijector
from genmod.core.checks import check_parts
from genmod.core.description import Description
from genmod.core.info import lost_roots
from genmod.core.numerics import soft_bound
from genmod.core.types import REALS, Array, Context, Info, Interval, Key, Params


class Transformer(Description, abc.ABC):
    """A scalar bijection.

    `interval` is where it differs from a straight line (None: everywhere). A network sees a coordinate as `num_features` numbers.
    With a `numerical_inverse`, what is NaN is a root that was not found. `onto_reals`: whether it is known to map R onto R.
    `knots`: where its pieces meet at raw = 0, for `check_bijection` to look at.
    """

    interval: Interval | None = None
    knots: tuple[float, ...] = ()
    num_features: int = 1
    numerical_inverse: bool = False
    onto_reals: bool = False

    @property
    @abc.abstractmethod
    def num_params(self) -> int:
        """How many raw numbers one scalar takes."""

    @abc.abstractmethod
    def forward(self, raw: Array, z: Array) -> tuple[Array, Array]:
        """(x, log |dx/dz|), elementwise."""

    @abc.abstractmethod
    def inverse(self, raw: Array, x: Array) -> tuple[Array, Array]:
        """(z, log |dz/dx|), elementwise."""

    def at(self, indices: Any) -> "Transformer":
        """That of some coordinates of a vector, for one that treats them differently."""
        return self

    def info(self, moved: Array, inverse: bool) -> Info:
        """Whether a root was not found among the `moved` coordinates of one event; nothing where none is looked for."""
        return lost_roots(moved) if inverse and self.numerical_inverse else {}

    def features(self, z: Array) -> Array:
        """What a network sees of coordinates z that the layer moves elsewhere: shape S + (num_features,), here z itself."""
        return z[..., None]

    def image(self, interval: Interval) -> Interval | None:
        """The interval that `interval` is mapped onto, in both directions; see `Bijector.image`."""
        return interval if (self.onto_reals and interval == REALS) or interval == self.interval else None


@dataclasses.dataclass(frozen=True)
class Additive(Transformer):
    """x = z + raw (NICE; Dinh et al. 2014, arXiv:1410.8516, eq. 3)."""

    onto_reals = True

    @property
    def num_params(self) -> int:
        return 1

    def forward(self, raw, z):
        return z + raw[..., 0], jnp.zeros_like(z)

    def inverse(self, raw, x):
        return x - raw[..., 0], jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class Affine(Transformer):
    """x = z exp(s) + raw_0 with s = bound tanh(raw_1 / bound) (RealNVP; Dinh et al. 2016, arXiv:1605.08803, eq. 4).

    The bound on the log-scale fits as well as none and keeps the inverse accurate far from the data.
    """

    bound: float = 3.0
    onto_reals = True

    def __post_init__(self):
        super().__post_init__()
        if not self.bound > 0:
            raise ValueError(f"bound must be > 0, got {self.bound}")

    @property
    def num_params(self) -> int:
        return 2

    def forward(self, raw, z):
        log_scale = soft_bound(raw[..., 1], self.bound)
        return z * jnp.exp(log_scale) + raw[..., 0], log_scale

    def inverse(self, raw, x):
        log_scale = soft_bound(raw[..., 1], self.bound)
        return (x - raw[..., 0]) * jnp.exp(-log_scale), -log_scale


@dataclasses.dataclass(frozen=True)
class Elementwise(InfoBijector):
    """Each coordinate through its own learned transformer: x_i = tau(z_i; raw_i). Starts as the identity."""

    transformer: Transformer
    reads_data = False

    def __post_init__(self):
        super().__post_init__()
        check_parts(self, transformer=Transformer)

    def image(self, interval, inverse=False):
        return self.transformer.image(interval)

    def _init(self, key: Key, x: Array, context: Context) -> Params:
        return {"raw": jnp.zeros((*x.shape[1:], self.transformer.num_params), x.dtype)}

    def _move(self, params, event, context, key, inverse, log_det):
        direction = self.transformer.inverse if inverse else self.transformer.forward
        moved, log_slope = direction(params["raw"].astype(event.dtype), event)
        return moved, log_slope.sum(), self.transformer.info(moved, inverse)
