"""`UniformLevels`: integers of which all are equally likely."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from genmod.core.checks import check_count, check_shape
from genmod.core.distribution import Distribution
from genmod.core.event import Levels
from genmod.core.types import Shape


@dataclasses.dataclass(frozen=True)
class UniformLevels(Distribution):
    """p(x) = num_levels^-D of D integers 0 .. num_levels - 1, an array of shape `shape`. It has no parameters."""

    shape: Shape
    num_levels: int

    def __post_init__(self):
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        check_count(num_levels=self.num_levels)
        super().__post_init__()

    @property
    def event(self):
        return Levels(self.shape, self.num_levels)

    def _init(self, key, x, context):
        return {}

    def log_prob_one(self, params, x, context=None, key=None):
        levels = x.astype(jnp.int32)
        inside = ((levels >= 0) & (levels < self.num_levels)).all()
        return jnp.where(inside, -math.prod(self.shape) * math.log(self.num_levels), -jnp.inf)

    def sample_one(self, params, key, context=None):
        return jax.random.randint(key, self.shape, 0, self.num_levels).astype(self.event.dtype)
