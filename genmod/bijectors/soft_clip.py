"""The affine transformer with a softly clipped log-scale, one limit for stretching and one for shrinking.

    x = z exp(c(s)) + raw_0,   c(s) = (2 / pi) a arctan(s / a),  a = `upper` for s >= 0 and `lower` for s < 0,  s = raw_1

In deep flows trained by the reverse KL a few draws get very large, and with them the variance of the gradient: scales multiply
over the layers. Stretching is therefore limited far more than shrinking, to exp(0.1) for exp(-2) (Andrade 2024,
arXiv:2402.16408, "asymmetric soft clamping").
"""

import dataclasses
import math

import jax.numpy as jnp

from genmod.bijectors.transformers import Transformer
from genmod.core.checks import check_positive
from genmod.core.types import Array


@dataclasses.dataclass(frozen=True)
class SoftClippedAffine(Transformer):
    """x = z exp(c(s)) + raw_0, with -lower < c < upper."""

    upper: float = 0.1
    lower: float = 2.0
    onto_reals = True

    def __post_init__(self):
        super().__post_init__()
        check_positive(upper=self.upper, lower=self.lower)

    @property
    def num_params(self) -> int:
        return 2

    def forward(self, raw, z):
        log_scale = self._clip(raw[..., 1])
        return z * jnp.exp(log_scale) + raw[..., 0], log_scale

    def inverse(self, raw, x):
        log_scale = self._clip(raw[..., 1])
        return (x - raw[..., 0]) * jnp.exp(-log_scale), -log_scale

    def _clip(self, s: Array) -> Array:
        limit = jnp.where(s >= 0, self.upper, self.lower).astype(s.dtype)
        return (2 / math.pi) * limit * jnp.arctan(s / limit)
