"""LOFT, the log soft extension (Andrade 2024, arXiv:2402.16408): the identity up to a threshold, logarithmic beyond.

    x = sign(z) (min(|z|, t) + log(1 + max(|z| - t, 0))),   log |dx/dz| = -log(1 + max(|z| - t, 0))

Behind the layers of a flow it keeps single huge draws from ruining the gradient of a reverse KL, at no cost to all others. Where
|x| - t exceeds 88 in float32 (709 in float64) the inverse overflows: no draw gets there.
"""

import dataclasses

import jax.numpy as jnp

from genmod.bijectors.elementwise import ScalarMap
from genmod.core.checks import check_positive
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class LOFT(ScalarMap):
    """The log soft extension beyond `threshold`, R to R; a `DiagonalAffine` behind it gives the scale back."""

    threshold: float = 100.0
    onto_reals = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(threshold=self.threshold)

    def _map(self, z):
        return self._kept(z) + jnp.sign(z) * jnp.log1p(self._beyond(z))

    def _unmap(self, x):
        return self._kept(x) + jnp.sign(x) * jnp.expm1(self._beyond(x))

    def _log_slope(self, z):
        return -jnp.log1p(self._beyond(z))

    def _kept(self, value: Array) -> Array:
        return jnp.clip(value, -self.threshold, self.threshold)

    def _beyond(self, value: Array) -> Array:
        return jnp.maximum(jnp.abs(value) - self.threshold, 0.0)
